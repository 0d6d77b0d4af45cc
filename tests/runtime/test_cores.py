"""Tasks side by side on one thread each: results, errors, modes, and the threads of the process afterwards."""

import threading

import pytest
import torch

from fastprobe.runtime.cores import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 5])
def cores(request):
    """Set the number of threads of torch for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_task_has_one_thread_and_results_keep_the_order(cores):
    found = side_by_side(lambda item: (item, torch.get_num_threads()), range(7), CPU)

    assert found == [(item, 1) for item in range(7)]


def test_results_have_the_same_bits_whatever_the_number_of_cores(randn):
    x = [randn(150, 150) for _ in range(3)]
    before, found = torch.get_num_threads(), []
    try:
        for cores in (1, 2, 3):
            torch.set_num_threads(cores)
            found.append(side_by_side(lambda a: torch.linalg.cholesky(a @ a.mT), x, CPU))
    finally:
        torch.set_num_threads(before)

    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_the_first_error_is_raised_and_the_threads_are_as_before(cores):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 / (item - 2), range(5), CPU)

    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == cores
    assert later == [cores]
    assert not [each for each in threading.enumerate() if each.name.startswith("fastprobe")]


def test_tasks_have_the_modes_of_their_caller():
    def modes(_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.no_grad():
        assert side_by_side(modes, [0], CPU) == [(False, False)]
    with torch.inference_mode():
        assert side_by_side(modes, [0], CPU) == [(False, True)]


def test_on_another_device_tasks_run_in_the_thread_of_their_caller():
    assert side_by_side(lambda _: threading.current_thread(), [0, 1], torch.device("meta")) == 2 * [
        threading.main_thread()
    ]


def test_no_items_give_no_results():
    assert side_by_side(str, [], CPU) == []
