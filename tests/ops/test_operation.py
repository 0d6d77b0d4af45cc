"""The choice of an implementation, with reasons for those that refuse; products and row selection."""

import pytest
import torch
from torch.nn import functional as F

from fastprobe.errors import BackendError, ShapeError
from fastprobe.ops._dispatch.operation import BACKENDS, operation
from fastprobe.ops.products import FastLinear, matmul
from fastprobe.ops.rows import select_rows


def _check(x):
    if x < 0:
        raise ShapeError("double: x must not be negative")


@pytest.fixture
def double(monkeypatch):
    """An operation with a definition, and a triton implementation that refuses odd numbers."""
    monkeypatch.delenv("FASTPROBE_BACKEND", raising=False)

    @operation(check=_check)
    def double(x):
        """Return twice x."""
        return "torch", 2 * x

    @double.register("triton", unless=lambda x: "it takes even numbers" if x % 2 else None)
    def _double_triton(x):
        return "triton", 2 * x

    return double


def test_auto_runs_the_fastest_that_does_not_refuse(double):
    assert double(4) == ("triton", 8)
    assert double(3) == ("torch", 6)


def test_a_forced_backend_runs_there(double):
    assert double.on("torch")(4) == ("torch", 8)
    assert double.on("torch")(4) == ("torch", 8)


def test_a_forced_backend_never_falls_back_and_its_error_names_the_others(double):
    with pytest.raises(BackendError, match=r"'triton': it takes even numbers; .* can run on: torch$"):
        double.on("triton")(3)


def test_a_backend_without_an_implementation_is_refused(double):
    with pytest.raises(BackendError, match=r"double has no cuda implementation .* can run on: triton, torch$"):
        double.on("cuda")(4)


def test_the_error_for_an_unknown_backend_names_the_known_ones(double):
    with pytest.raises(BackendError, match="'numpy' is not one of auto, cuda, triton, cpu, torch"):
        double.on("numpy")(4)


def test_the_environment_names_the_backend_unless_the_caller_does(double, monkeypatch):
    monkeypatch.setenv("FASTPROBE_BACKEND", "torch")

    assert double(4) == ("torch", 8)
    assert double.on("triton")(4) == ("triton", 8)


def test_the_environment_does_not_fall_back_either(double, monkeypatch):
    monkeypatch.setenv("FASTPROBE_BACKEND", "triton")

    with pytest.raises(BackendError, match="even numbers"):
        double(3)


def test_on_if_implemented_runs_the_fastest_if_the_backend_has_no_implementation(double, monkeypatch):
    assert double.on_if_implemented("cuda")(4) == ("triton", 8)
    assert double.on_if_implemented("cuda")(3) == ("torch", 6)
    assert double.on_if_implemented("torch")(4) == ("torch", 8)
    with pytest.raises(BackendError, match="even numbers"):
        double.on_if_implemented("triton")(3)
    with pytest.raises(BackendError, match="'numpy' is not one of"):
        double.on_if_implemented("numpy")(4)
    monkeypatch.setenv("FASTPROBE_BACKEND", "cuda")
    assert double.on_if_implemented("auto")(4) == ("triton", 8)


def test_run_returns_the_backend(double):
    assert double.run(4) == ("triton", ("triton", 8))
    assert double.run(3) == ("torch", ("torch", 6))


def test_choose_returns_the_backend_of_a_call(double):
    assert double.choose(4) == "triton"
    assert double.choose(3) == "torch"


def test_refusals_name_every_backend(double):
    reasons = double.refusals(3)

    assert list(reasons) == list(BACKENDS)
    assert reasons["torch"] is None
    assert reasons["triton"] == "it takes even numbers"
    assert "no cpu implementation" in reasons["cpu"]


def test_arguments_are_checked_before_a_backend_is_chosen(double):
    with pytest.raises(ShapeError, match="negative"):
        double.on("cuda")(-3)


def test_an_operation_has_the_name_and_docstring_of_its_definition(double):
    assert double.__name__ == "double"
    assert double.__doc__ == "Return twice x."


@pytest.mark.parametrize("layout", ["rows", "columns", "strided rows", "strided columns"])
def test_matmul_is_the_product_in_every_layout(layout, randn):
    a, b = randn(37, 65, dtype=torch.float32), randn(65, 21, dtype=torch.float32)
    exact = a.double() @ b.double()
    if layout == "columns":
        a, b = a.mT.contiguous().mT, b.mT.contiguous().mT
    elif layout.startswith("strided"):
        a = torch.stack([a, a], dim=2)[..., 0]
        b = torch.stack([b, b], dim=2)[..., 1] if layout == "strided columns" else torch.cat([b, b], 1)[:, :21]

    out = matmul(a, b)

    # 65 products of float32: at most 65 roundings of 6e-8 of the sum of their sizes.
    assert ((out - exact).abs() <= 4e-6 * (a.double().abs() @ b.double().abs())).all()


@pytest.mark.parametrize("shapes", [((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0))], ids=str)
def test_matmul_of_empty_matrices_is_that_of_torch(shapes):
    a, b = (torch.ones(shape) for shape in shapes)

    assert torch.equal(matmul(a, b), a @ b)


def test_matmul_keeps_float64(randn):
    a, b = randn(5, 7), randn(7, 3)

    assert torch.equal(matmul(a, b), a @ b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_fast_linear_returns_the_result_of_linear(dtype, bias, randn):
    x, weight = randn(2, 9, 33, dtype=dtype), randn(17, 33, dtype=dtype)
    offset = randn(17, dtype=dtype) if bias else None
    plain = F.linear(x, weight, offset)

    with FastLinear():
        fast = F.linear(x, weight, offset)

    assert fast.dtype == dtype
    torch.testing.assert_close(fast, plain)


def test_fast_linear_leaves_gradients_alone(randn):
    x, weight = randn(4, 3, dtype=torch.float32), randn(2, 3, dtype=torch.float32).requires_grad_()

    with FastLinear():
        F.linear(x, weight, torch.zeros(2)).sum().backward()

    torch.testing.assert_close(weight.grad, x.sum(0).expand(2, 3))


@pytest.mark.parametrize("index", [[], [2], [0, 1, 2], [1, 3, 4], [0, 4]], ids=str)
def test_select_rows_is_indexing(index, randn):
    rows, index = randn(5, 3), torch.tensor(index, dtype=torch.int64)

    assert torch.equal(select_rows(rows, index), rows[index])


def test_adjacent_rows_are_selected_without_a_copy(randn):
    rows = randn(5, 3)

    assert select_rows(rows, torch.arange(1, 4)).data_ptr() == rows[1].data_ptr()
