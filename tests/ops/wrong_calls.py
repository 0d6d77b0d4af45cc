"""Calls of operations that mypy must refuse. Nothing here runs.

``make check`` type-checks this file. An error that goes unnoticed leaves its ``type: ignore`` unused, which
``warn_unused_ignores`` reports.
"""

from torch import Tensor

from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.score import score


def calls(x: Tensor) -> None:
    add_norm(x, x, x, "bias", 1e-5)  # type: ignore[arg-type]
    add_norm(x, x, x, x)  # type: ignore[call-arg]
    add_norm.on("cpu")(x, x, x, x, "eps")  # type: ignore[arg-type]
    add_norm.on_if_implemented("cpu")(x, x, x)  # type: ignore[call-arg]
    add_norm.refusals(x, x, x, x, None)  # type: ignore[arg-type]
    add_norm.choose(x, x, x, x, None)  # type: ignore[arg-type]
    add_norm.on("cpu").choose(x, x, x, 1, 1e-5)  # type: ignore[arg-type]
    score(x, x, x, x, residual=x)  # type: ignore[arg-type]
    score(x, x, x, x, residuals=None)  # type: ignore[call-arg]
    out: int = add_norm(x, x, x, x, 1e-5)  # type: ignore[assignment]
    print(out)


def check(x: Tensor, scale: float) -> None: ...


def other(x: Tensor) -> None: ...


def definitions() -> None:
    @operation(check=check)
    def scaled(x: Tensor, scale: float) -> Tensor:
        return x * scale

    @scaled.register("cpu", unless=lambda x, scale: None)
    def on_cpu(x: Tensor, scale: float) -> Tensor:
        return x * scale

    @scaled.register("triton", unless=lambda x, scale: None)  # type: ignore[arg-type]
    def without_scale(x: Tensor) -> Tensor:
        return x

    @scaled.register("cuda", unless=lambda x, scale: 3)  # type: ignore[arg-type, return-value]
    def with_a_number_for_a_reason(x: Tensor, scale: float) -> Tensor:
        return x

    @operation(check=other)  # type: ignore[arg-type]
    def unchecked(x: Tensor, scale: float) -> Tensor:
        return x
