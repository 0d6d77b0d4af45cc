"""The door to the C++ kernels: what is said where they are missing or of another version."""

import sys
import types

import pytest

from fastprobe.ops._dispatch import cpu_library as _native


@pytest.fixture
def library(monkeypatch):
    """Puts another module in the place of ``fastprobe._cpu``, or none, and asks for it anew."""

    def replaced_by(module):
        monkeypatch.setitem(sys.modules, "fastprobe._cpu", module)
        return _native.cpu_library.__wrapped__()

    return replaced_by


def test_a_build_of_other_sources_is_not_called(library):
    with pytest.warns(UserWarning, match=r"fastprobe._cpu was built from other sources; .*pip install"):
        assert library(types.SimpleNamespace(INTERFACE=_native.INTERFACE - 1)) is None


def test_a_missing_build_is_said_with_the_way_to_get_it(library):
    with pytest.warns(UserWarning, match=r"using torch, because fastprobe._cpu is missing .*pip install"):
        assert library(None) is None


def test_the_right_build_is_taken(library):
    module = types.SimpleNamespace(INTERFACE=_native.INTERFACE)

    assert library(module) is module


class _Library:
    """A build whose multiply-adds take as long as they are told to."""

    def __init__(self, seconds_of_pairs, seconds_of_floats):
        self.seconds = {True: seconds_of_pairs, False: seconds_of_floats}

    def instruction_sets(self):
        return ["avx512-bf16", "avx512", "portable"]

    def burn(self, steps, pairs, threads, isa):
        self.now += self.seconds[pairs]
        return steps

    now = 0.0


@pytest.mark.parametrize(("pairs", "floats", "first"), [(1.0, 2.0, "avx512-bf16"), (2.0, 1.0, "avx512")])
def test_pairs_of_bfloat16_come_first_only_where_they_are_faster(pairs, floats, first, monkeypatch):
    library = _Library(pairs, floats)
    monkeypatch.setattr(_native.time, "perf_counter", lambda: library.now)

    ranked = _native._ranked(library)

    assert ranked[0] == first
    assert sorted(ranked) == sorted(library.instruction_sets())
