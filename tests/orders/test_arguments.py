"""Numbers of users: integers of any library are accepted by every public function, other values refused in one line."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastprobe as fp
from fastprobe.errors import FastprobeError, InputError
from fastprobe.orders.arguments import integer, integers, number, plain_numbers
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

KINDS = [np.int64, np.int32, np.uint64, torch.tensor, np.array, lambda value: torch.tensor(value, dtype=torch.int32)]
WRONG = [0.5, 3.0, float("nan"), "3", True, np.True_, torch.tensor(True), np.float64(3), torch.tensor(3.0), [3], 3j]


@given(st.integers(0, 2**31 - 1), st.sampled_from(KINDS))
def test_integers_and_numbers_of_every_library_are_those_of_python(value, kind):
    @plain_numbers
    def got(a: "int", b: "float | None" = None, c: "int | str" = "all", *, d: "str" = ""):
        return a, b, c, d

    assert type(integer(kind(value), "n")) is int
    for found in (got(kind(value), kind(value), kind(value)), got(a=kind(value), b=kind(value), c=kind(value))):
        assert found == (value, value, value, "")
        assert {type(one) for one in found[:3]} == {int}
    assert got(1, None, "all", d="x") == (1, None, "all", "x")


@given(st.floats(allow_nan=False, width=32), st.sampled_from([float, np.float64, np.float32, torch.tensor]))
def test_real_numbers_of_every_library_are_those_of_python(value, kind):
    assert number(kind(value), "alpha") == value
    assert type(number(kind(value), "alpha")) is float


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_other_values_are_refused_in_one_line(value):
    with pytest.raises(InputError, match=r"^folds: must be an integer, got .*$"):
        integer(value, "folds")


@pytest.mark.parametrize("value", ["3", True, np.True_, None, 3j, torch.ones(2)], ids=repr)
def test_what_is_no_number_is_refused_in_one_line(value):
    with pytest.raises(InputError, match=r"^alpha: must be a number, got .*$"):
        fp.LeastSquares(alpha=value)


@pytest.mark.parametrize(
    "mask", [[True, False, True], np.array([True, False]), torch.tensor([True, False])], ids=["list", "array", "tensor"]
)
def test_a_mask_is_no_list_of_layers(mask):
    with pytest.raises(InputError, match="layers: must be an integer, got "):
        integers(mask, "layers")


def public():
    """Yield every public function and method by name."""
    rooms = {"": vars(fp), "orders.": vars(fp.orders)}
    for prefix, members in rooms.items():
        for name, member in members.items():
            if inspect.isfunction(member):
                yield prefix + name, member
            elif inspect.isclass(member) and not getattr(member, "_is_protocol", False):
                for method, function in inspect.getmembers(member, inspect.isfunction):
                    made = method == "__init__" and dataclasses.is_dataclass(member)  # of results, made by fastprobe
                    if not made and not method.startswith("_" if method != "__init__" else " "):
                        yield f"{name}.{method}", function


def numbers():
    """Yield every argument of a public function that is a number, with its kind."""
    for name, function in public():
        for argument, parameter in inspect.signature(function).parameters.items():
            kinds = {*str(parameter.annotation).split(" | ")}
            if kinds & {"int", "float"} and kinds <= {"int", "float", "str", "None"}:
                yield pytest.param(function, argument, "float" in kinds, id=f"{name}-{argument}")


FOUND = [*numbers()]
MODEL = tiny_model("bert")


def test_arguments_of_the_public_functions_are_found():
    assert {"linearity-folds", "probe-seed", "orders.swaps-n", "LinearFit.__init__-x_dim"} <= {one.id for one in FOUND}


@pytest.mark.parametrize(("function", "argument", "real"), FOUND)
@pytest.mark.parametrize("value", [0.5, np.float64(1.5), [1], True, 1j], ids=repr)
def test_every_number_of_a_public_function_is_checked_before_anything_else(function, argument, real, value):
    if real and isinstance(value, float):
        return
    given = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            given[name] = 1 if "int" in str(parameter.annotation) else MODEL if name == "model" else None
    with pytest.raises(FastprobeError, match=rf"must be an? (integer|number), got {re.escape(repr(value))}"):
        function(**given | {argument: value})


def test_results_of_runs_with_numbers_of_numpy_can_be_saved(tmp_path):
    n, batches = np.int64, tiny_batches()
    results = {
        "linearity": fp.linearity(MODEL, batches, folds=n(2), score_sequences=n(3), seed=n(1), progress=False),
        "ablation": fp.ablation(
            MODEL, batches, mode="linear", folds=torch.tensor(2), alpha=np.float32(1), seed=n(1), progress=False
        ),
        "probe": fp.probe(MODEL, batches, folds=np.uint8(2), score_sequences=n(3), seed=n(1), progress=False),
        "commutator": fp.commutator(MODEL, batches, state=n(1), memory=n(10**6), progress=False),
        "orders": fp.commutativity(MODEL, batches, fp.orders.swaps(n(3)), memory=n(10**6), progress=False),
    }
    for name, result in results.items():
        result.save(tmp_path / name)

        assert fp.load(tmp_path / name).rows == result.rows
