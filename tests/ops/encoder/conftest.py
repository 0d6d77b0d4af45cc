"""Backends of the halves of an encoder layer."""

import pytest

from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets
from fastprobe.ops.encoder import cpu


@pytest.fixture(params=["torch", "triton", *(f"cpu {isa}" for isa in instruction_sets()), "cpu, products by a library"])
def run_sublayer(request, monkeypatch):
    """``run_sublayer(operation, *arguments)`` on every backend, and both ways of the C++ one."""
    backend, _, isa = request.param.partition(" ")
    library = request.param.endswith("library")
    monkeypatch.setattr(cpu, "products_are_faster", lambda rows: not library)

    def call(operation, *args):
        name = backend.rstrip(",")
        if reason := operation.refusals(*args)[name]:
            pytest.skip(f"{name}: {reason}")
        if not isa or library:
            return operation.on(name)(*args)
        with instruction_set(isa):
            return operation.on(name)(*args)

    return call
