"""How far two layers are from commuting: f_i f_j x against f_j f_i x.

This measure is fastprobe's own. Zhao et al. (2021) look at what a swap does to the output of the whole model
(:func:`fastprobe.commutativity`); here the two layers are looked at alone, at one state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fastprobe.errors import InputError
from fastprobe.models.record import device_of, evaluating, to_device, without_labels
from fastprobe.models.resolve import resolve
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order
from fastprobe.orders.plan import OrderPlan
from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.reordering import pictures
from fastprobe.reordering.effects import by_sequence, compared, ratio
from fastprobe.reordering.order_runs import OrderRuns, check_stack, mask_of
from fastprobe.reordering.pairs import pair_matrix
from fastprobe.results.result import Result
from fastprobe.runtime.memory import freed_memory_kept
from fastprobe.runtime.progress import OrderProgress
from fastprobe.scan.result import LinearityScan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "own"


@dataclass(frozen=True, repr=False)
class Commutators(Result):
    """One row for every pair of layers i < j."""

    kind: ClassVar[str] = "commutator"
    metric: ClassVar[str] = "relative_l2"

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """Return one metric as a symmetric ``(layers, layers)`` matrix, ``nan`` on its diagonal.

        Raises:
            InputError: no row has the metric.
        """
        return pair_matrix(self.rows_with(metric), self.config["layers"], metric)

    def plot(self, path: str | Path | None = None, metric: str = "relative_l2") -> Figure:
        """A heatmap.

        Args:
            path: where to save the picture, if anywhere.
            metric: the column to draw.
        """
        return pictures.pairs(self.title, metric, self.matrix(metric), "and layer", path)


@freed_memory_kept()
def commutator(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    state: str | int = OWN,
    memory: int | None = None,
    progress: bool = True,
) -> Commutators:
    """Compare f_j f_i x with f_i f_j x for every pair of layers i < j.

    Rows have ``relative_l2``, the norm of their difference over that of f_j f_i x (the model's own order), and
    ``cosine``, the mean over tokens between the two, each with its standard error over sequences. Padding never counts.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``; gone through once.
        state: ``"own"`` takes for x the state that layer i gets in the model; a number the input of that layer, for
            all pairs: 144 layer runs for 12 layers and the first one's input.
        memory: bytes that states may take at one time; a quarter of what is free by default.
        progress: show a progress bar on standard error.

    Raises:
        InputError: no such state, a model of one layer, or no batches.
        UnsupportedModelError: the layers of the model cannot be found, or do not compose to the model.
    """
    points = resolve(model)
    depth = len(points.layers)
    if state != OWN and not (isinstance(state, int) and 0 <= state <= depth):
        raise InputError(f"state: must be {OWN!r} or the input of a layer, 0 to {depth}, got {state!r}")
    pairs = list(itertools.combinations(range(depth), 2))
    if not pairs:
        raise InputError("commutator: a model of one layer has no two to compare; name one that has more")
    orders = []
    for i, j in pairs:
        before = tuple(range(i if state == OWN else int(state)))
        orders += [Order((*before, i, j)), Order((*before, j, i))]
    plan = OrderPlan.of(orders)
    device = device_of(model)
    sums: list[dict[str, list[float]]] = [{"error": [], "norm": [], "cosine": [], "tokens": []} for _ in pairs]
    progressing = OrderProgress(getattr(batches, "tokens", None), len(pairs), progress, "pairs")
    with progressing, evaluating(model), torch.no_grad(), FastLinear():
        for number, batch in enumerate(batches):
            batch = without_labels(to_device(batch, device))
            mask = mask_of(batch, number)
            if number == 0:
                make_stack, runner = check_stack(model, points, batch)
            stack = make_stack(model, points, batch)
            runs = OrderRuns(stack, plan, memory, lambda node, depth, state: progressing.ran(1))
            progressing.batch(int(mask.sum()), 0, plan.applications)
            first: dict[int, Tensor] = {}  # of each pair, until the other one is there
            for order, final in runs:
                pair, turned = divmod(order, 2)
                if pair not in first:
                    first[pair] = final
                    continue
                other = first.pop(pair)
                own, swapped = (other, final) if turned else (final, other)
                tokens = (stack.rows(each, mask).float() for each in (swapped, own))
                for name, values in by_sequence(compared(*tokens), mask).items():
                    sums[pair][name] += values
                progressing.finished()
    if not progressing.layer_runs:
        raise InputError("batches: there are none")
    config = {
        "layers": depth,
        "state": state,
        "sequences": len(sums[0]["tokens"]),
        "tokens": int(sum(sums[0]["tokens"])),
        "runner": runner,
        "layer_forwards": plan.applications,
        "layer_forwards_naive": 4 * len(pairs),
    }
    return Commutators(config, [_row(i, j, state, sums[k]) for k, (i, j) in enumerate(pairs)])


def _row(i: int, j: int, state: str | int, sums: Mapping[str, list[float]]) -> dict[str, Any]:
    arrays = {name: np.array(values) for name, values in sums.items()}
    squared, squared_se = ratio(arrays["error"], arrays["norm"])
    cosine, cosine_se = ratio(arrays["cosine"], arrays["tokens"])
    root = None if squared is None else squared**0.5
    return {
        "i": i,
        "j": j,
        "relative_l2": root,
        "relative_l2_se": squared_se / (2 * root) if root and squared_se is not None else None,
        "cosine": cosine,
        "cosine_se": cosine_se,
        "state": state,
    }


def linear_commutator(scan: LinearityScan, fit: LeastSquares | None = None) -> Commutators:
    """The same of the affine maps that stand in for layers: ``|A_i A_j - A_j A_i| / |A_i A_j|``, Frobenius.

    Args:
        scan: of the element ``layer``, with its moments.
        fit: how maps are fitted.

    Raises:
        InputError: the scan has no moments, or fewer than two rows of ``layer``.
    """
    layers = {row["layer"]: row for row in scan.rows if row["element"] == "layer"}
    if scan.moments is None or len(layers) < 2:
        raise InputError('linear_commutator: needs a scan of element "layer" of two layers or more, with its moments')
    fits = {start: (x, y) for name, start, _, x, y, _ in scan.config["fits"] if name == "layer"}
    maps = {
        layer: Factorisation(scan.moments, fits[layer][0], fit or LeastSquares()).fit(fits[layer][1]).coef.mT
        for layer in layers
    }
    rows = []
    for i, j in itertools.combinations(sorted(maps), 2):
        one, other = maps[j] @ maps[i], maps[i] @ maps[j]
        rows.append({"i": i, "j": j, "relative_l2": float((one - other).norm() / one.norm()), "state": "linear"})
    return Commutators({"layers": 1 + max(maps), "state": "linear"}, rows)
