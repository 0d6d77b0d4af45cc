"""How memory is held: freed blocks come back without a page fault, and sums start as zeros in any case."""

import subprocess
import sys

import pytest
import torch

from fastprobe.runtime import memory
from fastprobe.testing.peak_memory import peak_memory

PAGES = 12_288

SCRIPT = """
import resource, torch
from fastprobe.runtime.memory import freed_memory_kept

SIZE = 48 * 2**20  # bytes: over the 32 MB above which glibc maps every block afresh

def faults_of_a_large_block():
    for _ in range(4):  # an aligned request does not always fit where the last one lay
        torch.ones(SIZE // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(SIZE // 4)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults_of_a_large_block()
try:
    with freed_memory_kept():
        faults_of_a_large_block()
        raise RuntimeError
except RuntimeError:
    faults_of_a_large_block()
"""
"""In a process of its own: what others left in the heap of this one is used again in any case."""


@pytest.mark.skipif(not hasattr(memory._LIBC, "mallopt"), reason="not glibc")
def test_freed_memory_is_kept_within_the_block_and_given_back_after_it_even_if_it_fails() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    before, within, after = map(int, run.stdout.split())
    assert before > PAGES / 2
    assert within < PAGES / 10
    assert after > PAGES / 2


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


@pytest.mark.parametrize("size", [2**20, 2**26])  # below and above what glibc keeps when it is freed
def test_the_peak_of_a_call_is_seen_even_where_it_uses_what_was_freed_before(size):
    try:
        peaks = [peak_memory(lambda: torch.ones(size // 4)) for _ in range(5)]
    except NotImplementedError as reason:
        pytest.skip(str(reason))

    assert all(0.9 * size < peak for peak in peaks), peaks
    assert min(peaks) < 1.1 * size + 2**20, peaks  # the system may map 1.5 MB of something else meanwhile
