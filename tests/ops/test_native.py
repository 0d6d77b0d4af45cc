"""The door to the C++ kernels: what is said where they are missing or of another version."""

import sys
import types

import pytest

from fastprobe.ops import _native


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
