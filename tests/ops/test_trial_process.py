"""A trial of a kernel in another process: a fault of the kernel is a refusal, and the caller goes on."""

import pytest
import torch

from fastprobe.errors import BackendError
from fastprobe.ops._dispatch import trial_process
from fastprobe.ops._dispatch.triton import _agrees
from fastprobe.ops.gram import cuda
from tests.ops import broken_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Keep results in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = (trial_process._result_of, _agrees, cuda._device_refuses)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path / "fastprobe" / "trials"
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (broken_kernels.aborts, "its trial on cpu failed: signal SIGABRT"),
        (broken_kernels.raises, "its trial on cpu failed: RuntimeError: CUDA error: an illegal memory access"),
        (broken_kernels.leaves, "its trial on cpu failed: exit code 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_is_an_error_and_is_not_kept(trial, reason, cache):
    with pytest.raises(BackendError, match=reason):
        trial_process.result_of(trial, CPU)

    assert not cache.exists()


def test_a_kernel_that_hangs_is_given_up():
    name = f"{broken_kernels.__name__}:hangs"

    with pytest.raises(BackendError, match="its trial on cpu did not end within 3 s"):
        trial_process.run(name, "cpu", seconds=3)


def test_a_result_is_kept_for_later_processes(cache, monkeypatch):
    assert trial_process.result_of(broken_kernels.right, CPU) == 1e-8
    trial_process._result_of.cache_clear()  # as a new process has it
    monkeypatch.setattr(trial_process, "run", lambda *_: pytest.fail("it ran again"))

    assert trial_process.result_of(broken_kernels.right, CPU) == 1e-8
    assert cache.exists()


def test_a_result_of_this_process_is_kept_for_later_ones(monkeypatch):
    trial_process.keep(broken_kernels.hangs, CPU, 0.25)
    monkeypatch.setattr(trial_process, "run", lambda *_: pytest.fail("it ran"))

    assert trial_process.result_of(broken_kernels.hangs, CPU) == 0.25


def test_other_kernels_are_tried_again(monkeypatch):
    trial_process.result_of(broken_kernels.right, CPU)
    trial_process._result_of.cache_clear()
    monkeypatch.setattr(trial_process, "_kernels", lambda: "other")
    monkeypatch.setattr(trial_process, "run", lambda *_: 0.5)

    assert trial_process.result_of(broken_kernels.right, CPU) == 0.5


def test_auto_passes_over_a_triton_kernel_whose_trial_fails():
    with pytest.warns(UserWarning, match="its Triton kernel is not used: its trial on cpu failed: signal SIGABRT"):
        assert not _agrees(broken_kernels.aborts, CPU)


def test_the_cuda_kernels_refuse_with_the_fault_of_their_trial(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "library", lambda: type("Library", (), {"ARCHITECTURES": "9.0a"}))
    monkeypatch.setattr(cuda, "gram_error", broken_kernels.raises)

    assert "an illegal memory access" in cuda._device_refuses(CPU, False)
