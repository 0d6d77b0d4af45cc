"""Distances of pairs of layers from commuting: f_i f_j x compared with f_j f_i x.

This measure is fastprobe's own. Zhao et al. (2021) measure the effect of a swap on the output of the whole model
(:func:`fastprobe.commutativity`). Here the two layers run alone, on one state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fastprobe.data.checks import counted_mask
from fastprobe.data.shares import Shares
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of, evaluating, to_device
from fastprobe.models.digest import check_same_run
from fastprobe.models.inputs import ModelBatches
from fastprobe.models.resolve import resolve
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.plan import OrderPlan
from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.reordering.checked_stack import check_stack
from fastprobe.reordering.effects import Sums, compare, sum_by_sequence
from fastprobe.reordering.legend import PAIRS
from fastprobe.reordering.order_runs import OrderRuns
from fastprobe.reordering.pairs import pair_matrix
from fastprobe.reordering.rows import ratio, root
from fastprobe.results.result import Result
from fastprobe.results.views import View, square_heatmap
from fastprobe.runtime.cores import side_by_side
from fastprobe.runtime.deprecation import renamed_arguments
from fastprobe.runtime.distributed import Ranks, together
from fastprobe.runtime.progress import OrderProgress
from fastprobe.scan.result import LinearityScan

FIRST_LAYER_INPUT = "own"
"""State of a pair: the input that its first layer has in the baseline."""


@dataclass(frozen=True, repr=False)
class Commutators(Result):
    """Distances from commuting: one row for every pair of layers i < j."""

    kind: ClassVar[str] = "commutator"
    metric: ClassVar[str] = "relative_l2"
    columns = PAIRS

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """Return one metric as a symmetric ``(layers, layers)`` matrix, ``nan`` on its diagonal.

        Raises:
            InputError: no row has the metric.
        """
        return pair_matrix(self.rows_with(metric), self.config["layers"], metric)

    def views(self, metric: str) -> list[View]:
        """Return a heatmap of the pairs."""
        return [square_heatmap(self.matrix(metric), x_label="layer", y_label="and layer", label=metric)]


@together()
@plain_numbers
def commutator(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    state: str | int = FIRST_LAYER_INPUT,
    stack: str | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Commutators:
    """Compare f_j f_i x with f_i f_j x for every pair of layers i < j.

    Rows have ``relative_l2``, the norm of the difference over that of f_j f_i x (the baseline), and ``cosine``, the
    mean over tokens of the cosine between the two, each with its standard error over sequences. Padding never counts.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, and perhaps ``token_mask``, the tokens that count,
            each ``(batch, length)``; read once.
        state: the state x. ``"own"`` is the input that layer i has in the model. A number is the input of that layer,
            for all pairs: 144 layer forwards for 12 layers and the input of the first one.
        stack: path of the stack of layers, or a part of it, like ``"encoder"``; the longest by default.
        memory: bytes that states may take at one time; a quarter of the free memory by default.
        progress: show a progress bar on standard error.

    Raises:
        InputError: no such state, a model of one layer, or no batches.
        UnsupportedModelError: the layers of the model cannot be found, or do not give its output one after another.
    """
    points = resolve(model, stack)
    model = points.part_of(model)
    depth = len(points.layers)
    if state != FIRST_LAYER_INPUT and not (isinstance(state, int) and 0 <= state <= depth):
        raise InputError(f"state: must be {FIRST_LAYER_INPUT!r} or the input of a layer, 0 to {depth}, got {state!r}")
    batches = ModelBatches(model, points, batches)
    ranks = Ranks.here()
    check_same_run(model, points, ranks, state=state)
    pairs = list(itertools.combinations(range(depth), 2))
    if not pairs:
        raise InputError("commutator: a model of one layer has no two to compare; name one that has more")
    plan = OrderPlan.of(order for pair in pairs for order in _both_orders(pair, state))
    device = device_of(model)
    shares = Shares(batches, ranks)
    sums: list[Sums] = [{"error": [], "norm": [], "cosine": [], "tokens": []} for _ in pairs]
    bar = OrderProgress(batches.tokens, len(pairs), progress and ranks.is_first, "pairs")
    with bar, evaluating(model), torch.no_grad(), FastLinear():
        make_stack, runner = check_stack(model, points, to_device(shares.head, device))
        for share in shares.rounds():
            found: dict[int, Sums] = {}
            for batch in share.batches:
                batch = to_device(batch, device)
                mask = counted_mask(batch)
                run = make_stack(model, points, batch)
                runs = OrderRuns(run, plan, memory, lambda node, depth, state: bar.ran(1))
                bar.batch(share.tokens, 0, plan.applications)
                for pair, baseline, swapped in _paired(runs):
                    rows = (run.rows(final, mask).float() for final in (swapped, baseline))
                    found[pair] = sum_by_sequence(compare(*rows), mask)
                    bar.finished()
            for of_process in ranks.gather(found):
                for pair, of_batch in of_process.items():
                    for name, values in of_batch.items():
                        sums[pair][name] += values
    config = {
        "layers": depth,
        "state": state,
        "sequences": len(sums[0]["tokens"]),
        "tokens": int(sum(sums[0]["tokens"])),
        "runner": runner,
        **shares.counted,
        **points.description(),
        "layer_forwards": plan.applications,
        "layer_forwards_naive": 4 * len(pairs),
    }
    return Commutators(config, [_row(i, j, state, sums[k]) for k, (i, j) in enumerate(pairs)])


def _both_orders(pair: tuple[int, int], state: str | int) -> tuple[Order, Order]:
    """Return the layers up to x and then the pair, in the baseline's order and swapped."""
    i, j = pair
    before = tuple(range(i if state == FIRST_LAYER_INPUT else int(state)))
    return Order((*before, i, j)), Order((*before, j, i))


def _paired(runs: OrderRuns) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index of a pair, f_j f_i x and f_i f_j x, once both are complete. They are orders 2k and 2k + 1."""
    waiting: dict[int, Tensor] = {}
    for order, final in runs:
        pair, is_swapped = divmod(order, 2)
        if pair in waiting:
            other = waiting.pop(pair)
            yield (pair, other, final) if is_swapped else (pair, final, other)
        else:
            waiting[pair] = final


def _row(i: int, j: int, state: str | int, sums: Sums) -> dict[str, Any]:
    arrays = {name: np.array(values) for name, values in sums.items()}
    relative_l2, relative_l2_se = root(*ratio(arrays["error"], arrays["norm"]))
    cosine, cosine_se = ratio(arrays["cosine"], arrays["tokens"])
    return {
        "i": i,
        "j": j,
        "relative_l2": relative_l2,
        "relative_l2_se": relative_l2_se,
        "cosine": cosine,
        "cosine_se": cosine_se,
        "state": state,
    }


@renamed_arguments(fit="method")
def linear_commutator(scan: LinearityScan, method: LeastSquares | None = None) -> Commutators:
    """Compare the products of the affine maps that approximate layers: ``|A_j A_i - A_i A_j| / |A_j A_i|``, Frobenius.

    Args:
        scan: of the element ``layer``, with its moments.
        method: ridge penalty and rank threshold of the maps.

    Raises:
        InputError: the scan has no moments, or fewer than two rows of ``layer``.
    """
    layers = {row["layer"]: row for row in scan.rows if row["element"] == "layer"}
    if scan.moments is None or len(layers) < 2:
        raise InputError('linear_commutator: needs a scan of element "layer" of two layers or more, with its moments')
    fits = {start: (x, y) for name, start, _, x, y, _ in scan.config["fits"] if name == "layer"}
    moments = scan.moments

    def linear_map(layer: int) -> Tensor:
        x, y = fits[layer]
        return Factorisation.of(moments, x, method or LeastSquares()).fit(y).coef.mT

    maps = dict(zip(layers, side_by_side(linear_map, list(layers), moments.counts.device), strict=True))
    rows = []
    for i, j in itertools.combinations(sorted(maps), 2):
        baseline, swapped = maps[j] @ maps[i], maps[i] @ maps[j]
        relative_l2 = float((baseline - swapped).norm() / baseline.norm())
        rows.append({"i": i, "j": j, "relative_l2": relative_l2, "state": "linear"})
    return Commutators({"layers": 1 + max(maps), "state": "linear"}, rows)
