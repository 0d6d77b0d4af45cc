"""Processes that gather, add up and fail together."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist

from fastprobe.errors import InputError, NumericalError, ProcessError, UnsupportedModelError
from fastprobe.runtime.distributed import Ranks, launched, together
from fastprobe.runtime.memory import free_bytes
from tests.worlds import World


def test_one_process_exchanges_nothing():
    ranks, tensor = Ranks.here(), torch.ones(3)

    with together() as same:
        assert same == ranks == Ranks(0, 1)
    ranks.sum_([tensor])

    assert ranks.gather("a") == ["a"]
    assert ranks.from_first(lambda: 5) == 5
    assert tensor.tolist() == [1, 1, 1]
    assert not launched()


def gather_and_add(rank):
    with together() as ranks:
        summed = torch.full((2,), 1.0 + rank)
        ranks.sum_([summed])
        return ranks.gather(rank), ranks.from_first(lambda: rank), summed.tolist()


def test_values_come_together_and_tensors_are_added(world_of_four):
    answers = world_of_four(gather_and_add)

    assert answers == [([0, 1, 2, 3], 0, [10.0, 10.0])] * 4


def disagree(rank):
    Ranks.here().agree("model", rank == 1, "load the same one")


def test_a_value_that_differs_is_named_with_the_processes(world_of_two):
    for error in world_of_two(disagree):
        assert isinstance(error, InputError)
        assert str(error) == "model: must be the same in all processes, but 0 and 1 differ; load the same one"


ERRORS = [
    InputError("a: must be b"),
    NumericalError("batch 3: NaN"),
    OSError(28, "No space left on device", "scores.json"),
    KeyboardInterrupt(),
    ZeroDivisionError("a fault"),
]


def fail(rank, failing, error, depth):
    """Fail in one process, in blocks inside each other, while the others wait for a sum."""
    with together() as ranks:
        if depth:
            return fail(rank, failing, error, depth - 1)
        if rank == failing:
            raise error
        ranks.sum_([torch.zeros(3)])
    return None


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_in_one_process_is_raised_in_all(error, failing, depth, world_of_two):
    started = time.monotonic()

    answers = world_of_two(fail, failing, error, depth)

    assert [type(answer) for answer in answers] == [type(error)] * 2
    assert [str(answer) for answer in answers] == [str(error)] * 2
    assert time.monotonic() - started < 5
    assert world_of_two(gather_and_add)[1][0] == [0, 1]  # and the processes go on


def fail_at_the_end(rank):
    with together():
        if rank == 1:
            raise InputError("text: too short")
    return "done"


def test_no_process_leaves_a_block_before_the_others_have_ended_it(world_of_two):
    assert [str(answer) for answer in world_of_two(fail_at_the_end)] == ["text: too short"] * 2


def fail_each(rank):
    with together():
        raise InputError(f"process {rank}")


def test_of_several_errors_that_of_the_first_process_counts(world_of_four):
    assert {str(answer) for answer in world_of_four(fail_each)} == {"process 0"}


def catch_and_go_on(rank):
    with together() as ranks:
        try:
            with together():
                if rank == 1:
                    raise UnsupportedModelError("no layers")
                ranks.gather(None)
        except UnsupportedModelError:
            return ranks.gather(rank)


def test_an_error_that_is_caught_in_all_processes_ends_nothing(world_of_two):
    assert world_of_two(catch_and_go_on) == [[0, 1], [0, 1]]


class UnpicklableError(Exception):
    def __init__(self):
        super().__init__("a text")
        self.held = lambda: None


def fail_unpicklably(rank):
    try:
        with together() as ranks:
            if rank == 0:
                raise UnpicklableError
            ranks.gather(None)
    except Exception as error:
        return str(error)


def test_an_error_that_cannot_be_sent_is_sent_as_text(world_of_two):
    assert world_of_two(fail_unpicklably) == ["a text", "UnpicklableError: a text"]


def be_interrupted(rank, times):
    """Press Ctrl-C while processes exchange values, and return what ended this process."""
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    answer = None
    try:
        with together() as ranks:
            if rank in times:
                timer.start()
            for _ in range(100_000):
                ranks.gather(None)
    except BaseException as error:
        answer = type(error).__name__
    if rank in times:
        with suppress(KeyboardInterrupt):  # of two processes the error of one may come before the other's Ctrl-C
            timer.join()
            time.sleep(0.05)
    return answer


@pytest.mark.parametrize("times", [(0,), (1,), (0, 1)])
def test_ctrl_c_in_any_process_ends_all_of_them(times, world_of_two):
    for _ in range(3):
        assert world_of_two(be_interrupted, times) == ["KeyboardInterrupt"] * 2
    assert world_of_two(gather_and_add)[1][0] == [0, 1]


def be_killed(rank, killed):
    with together() as ranks:
        ranks.gather(None)
        if rank == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.sum_([torch.zeros(3)])


def test_a_killed_process_ends_the_others_with_a_message(tmp_path):
    world = World(2, tmp_path)
    started = time.monotonic()

    killed, error = world(be_killed, 0)
    world.close()

    assert killed is None
    assert isinstance(error, ProcessError)
    assert str(error).startswith("torchrun: another process ended without a message (")
    assert "\n" not in str(error)
    assert time.monotonic() - started < 20


def join_again(rank, folder):
    before = Ranks.here().control
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder / 'again'}", rank=rank, world_size=2)
    with together() as ranks:
        return ranks.control is not before, ranks.gather(rank)


def test_a_new_process_group_gets_a_new_group_for_messages(tmp_path):
    world = World(2, tmp_path)

    assert world(join_again, tmp_path) == [(True, [0, 1])] * 2
    world.close()


def test_processes_of_one_machine_divide_its_memory(monkeypatch):
    alone = free_bytes(torch.device("cpu"))
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")

    assert alone is not None
    assert alone / 8 < free_bytes(torch.device("cpu")) < alone / 2
