"""Loading of the C++ library, and the warnings where it is missing or of another version."""

import sys
import types

import pytest

from fastprobe.ops._dispatch import cpu_library


@pytest.fixture
def library(monkeypatch):
    """Replace ``fastprobe._cpu`` by a module, or by none, and load it again."""

    def replaced_by(module):
        monkeypatch.setitem(sys.modules, "fastprobe._cpu", module)
        return cpu_library.cpu_library.__wrapped__()

    return replaced_by


def test_a_build_of_other_sources_is_refused(library):
    with pytest.warns(UserWarning, match=r"fastprobe._cpu was built from other sources; .*pip install"):
        assert library(types.SimpleNamespace(INTERFACE=cpu_library.INTERFACE - 1)) is None


def test_a_missing_build_is_reported_with_the_command_that_builds_it(library):
    with pytest.warns(UserWarning, match=r"using torch, because fastprobe._cpu is missing .*pip install"):
        assert library(None) is None


def test_a_build_of_these_sources_is_used(library):
    module = types.SimpleNamespace(INTERFACE=cpu_library.INTERFACE)

    assert library(module) is module
