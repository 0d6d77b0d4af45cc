"""Several linear layers of the same rows: the queries, keys and values of an attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastprobe.ops import _linear_layers
from fastprobe.ops._linear_layers import Layer
from fastprobe.ops._operation import operation
from fastprobe.ops._platform import linear


def _check(x: Tensor, layers: Sequence[Layer]) -> None:
    for layer in layers:
        _linear_layers.check("projections", x, layer)


@operation(check=_check)
def projections(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Every layer's output on the same rows.

        out[i] = x weight_i^T + bias_i

    Args:
        x: ``(N, D)``, any floating dtype.
        layers: weight ``(E, D)`` and bias ``(E,)`` or ``None`` of each, of the dtype of ``x``; E may differ.

    Returns:
        ``(N, E)`` for each layer, in the dtype of ``x``.

    Raises:
        ShapeError: a layer does not take ``x``.
    """
    return [linear(x, weight, bias) for weight, bias in layers]


def _cpu_refuses(x: Tensor, layers: Sequence[Layer]) -> str | None:
    if len(x) < (fewest := _linear_layers.FEWEST_ROWS):
        return f"it takes {fewest} rows or more, not {len(x)}"
    return _linear_layers.cpu_refuses(x, layers)


@projections.register("cpu", unless=_cpu_refuses, passed_over=lambda x, layers: not _linear_layers.are_faster(len(x)))
def _cpu(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    return _linear_layers.project(x, layers)
