"""How memory is held: freed blocks come back without a page fault, and sums start as zeros in any case."""

import resource

import pytest
import torch

from fastprobe import memory

SIZE = 48 * 2**20  # bytes: over the 32 MB above which glibc maps every block afresh
PAGES = SIZE // 4096

glibc = pytest.mark.skipif(not hasattr(memory._LIBC, "mallopt"), reason="not glibc")


def faults_of_a_large_block() -> int:
    """Page faults that filling a block costs once some of its size were filled and freed."""
    for _ in range(4):  # an aligned request does not always fit where the last one lay
        torch.ones(SIZE // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_freed_memory_is_kept_within_the_block_and_given_back_after_it() -> None:
    assert faults_of_a_large_block() > PAGES / 2
    with memory.freed_memory_kept():
        assert faults_of_a_large_block() < PAGES / 10
    assert faults_of_a_large_block() > PAGES / 2


@glibc
def test_memory_is_given_back_when_the_block_fails() -> None:
    with pytest.raises(RuntimeError), memory.freed_memory_kept():
        raise RuntimeError
    assert faults_of_a_large_block() > PAGES / 2


@pytest.mark.parametrize("libc", ["this one", "one without mallopt or madvise"])
def test_zeros_are_zero_whatever_the_memory_held(libc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if libc != "this one":
        monkeypatch.setattr(memory, "_LIBC", None)
    with memory.freed_memory_kept():
        torch.full((512, 1024), torch.nan, dtype=torch.float64)
        zeros = memory.zeros(2, 256, 1024, device="cpu")
    assert zeros.shape == (2, 256, 1024)
    assert zeros.dtype == torch.float64
    assert not zeros.any()
    assert not memory.zeros(3, device="cpu").any()
    assert memory.zeros(0, 2, device="cpu").shape == (0, 2)
