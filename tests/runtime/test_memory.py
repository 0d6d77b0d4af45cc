"""Memory: freed blocks are kept where a process asks for it, sums start as zeros, and peaks are seen."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastprobe.errors import InputError
from fastprobe.runtime import memory
from fastprobe.runtime.memory import parse_bytes

PAGES = 12_288  # of 4 kB in the 48 MB of FAULTS

FAULTS = """
import resource, torch
from fastprobe.runtime.memory import keep_freed_memory

SIZE = 48 * 2**20  # bytes: over the 32 MB above which glibc maps every block afresh

def faults_of_a_large_block():
    for _ in range(4):  # an aligned request does not always fit where the last one lay
        torch.ones(SIZE // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(SIZE // 4)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults_of_a_large_block()
keep_freed_memory()
faults_of_a_large_block()
"""

PEAKS = """
import torch
from fastprobe.testing.peak_memory import peak_memory

torch.set_num_threads(1)
torch.ones(2**20)
for size in (2**24, 2**26):  # bytes, below and above what glibc keeps when it is freed
    print(size, *(peak_memory(lambda: torch.ones(size // 4)) for _ in range(5)))
"""


def run(script: str) -> str:
    """Run a script in a process of its own, whose heap holds nothing that other tests freed."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not hasattr(memory._LIBC, "mallopt"), reason="not glibc")
def test_freed_memory_is_kept_from_the_call_on() -> None:
    before, after = map(int, run(FAULTS).split())

    assert before > PAGES / 2
    assert after < PAGES / 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LIBC", None)

    memory.keep_freed_memory()
    memory.give_back_freed()


@pytest.mark.parametrize("shape", [(2, 256, 1024), (3, 4), (0, 2), (), (2**18,), (2**18 + 1,)], ids=str)
def test_zeros_are_float64_zeros_of_any_size_that_can_be_written(shape: tuple[int, ...]) -> None:
    zeros = memory.zeros(*shape, device="cpu")

    assert zeros.shape == shape
    assert zeros.dtype == torch.float64
    assert not zeros.any()
    assert torch.equal(zeros.add_(1), torch.ones(shape, dtype=torch.float64))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="not Linux")
def test_huge_pages_are_asked_for_as_long_as_the_zeros_live() -> None:
    def advised() -> int:
        flags = [line for line in Path("/proc/self/smaps").read_text().splitlines() if line.startswith("VmFlags")]
        return sum(" hg" in line for line in flags)

    before = advised()
    zeros = memory.zeros(2**21, device="cpu")
    assert advised() > before
    del zeros
    assert advised() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no peak that a process can forget")
def test_the_peak_of_a_call_is_seen_even_where_it_uses_what_was_freed_before() -> None:
    """The system may map megabytes of something else meanwhile; most of all before the first call."""
    for line in run(PEAKS).splitlines():
        size, *peaks = map(int, line.split())
        assert all(0.9 * size < peak for peak in peaks), peaks
        assert min(peaks) < 1.1 * size + 2**22, peaks


@pytest.mark.parametrize(
    ("text", "size"),
    [(1000, 1000), ("8GB", 8 * 10**9), ("1.5 GB", 15 * 10**8), ("500M", 5 * 10**8), ("2GiB", 2**31), ("7kB", 7000)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 potatoes", "0", 0, True, "1e9"])
def test_other_texts_are_no_size(text):
    with pytest.raises(InputError, match="memory: must be a number of bytes above 0"):
        parse_bytes(text)
