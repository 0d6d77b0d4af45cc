"""Effects of layer orders on a model's output, at the cost of their distinct prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from fastprobe.data.shares import Shares
from fastprobe.errors import InputError
from fastprobe.models.calling import evaluating
from fastprobe.models.digest import check_same_run, fingerprint
from fastprobe.models.inputs import ModelBatches
from fastprobe.models.resolve import resolve
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order, parse, wanted_of
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.plan import OrderPlan
from fastprobe.reordering.effects import Metric
from fastprobe.reordering.legend import ORDERS
from fastprobe.reordering.measured_orders import MeasuredOrders
from fastprobe.reordering.pairs import pair_matrix
from fastprobe.reordering.rows import CHANGES, EffectSums, changes
from fastprobe.reordering.views import depth_views, order_views
from fastprobe.results.result import BY_DEPTH, Result
from fastprobe.results.views import View, square_heatmap
from fastprobe.runtime.deprecation import renamed_arguments
from fastprobe.runtime.distributed import Ranks, together
from fastprobe.runtime.journal import WEIGHTS, Journal
from fastprobe.runtime.progress import OrderProgress


@dataclass(frozen=True, repr=False)
class OrderEffects(Result):
    """Effects of orders on the output: one row an order, the baseline first.

    ``config`` counts layer forwards. Each runs one layer, or another step of an order, on one batch:

    * ``layer_forwards``: for one batch, with each shared prefix once.
    * ``layer_forwards_naive``: for one batch, with each order by itself.
    * ``layer_forwards_run``: for all batches, without those that a resumed run had finished.
    """

    kind: ClassVar[str] = "commutativity"
    metric: ClassVar[str] = "relative_l2"
    shown = ("delta_loss",)
    columns = ORDERS

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """Return one metric of swaps as a symmetric ``(layers, layers)`` matrix; ``nan`` for pairs without a number.

        Raises:
            InputError: no row has the metric.
        """
        return pair_matrix(self.rows_with(metric), self.config["layers"], metric)

    def profile(self, metric: str = "relative_l2") -> np.ndarray:
        """Return one metric of the states after every step, ``(orders, layers)``: ``[:, k]`` is after k + 1 steps.

        An order of fewer steps than the model has layers has ``nan`` from its end on.

        Raises:
            InputError: the rows have no such column, because the run was made without ``depths``.
        """
        profiles = [row.get(metric + BY_DEPTH) for row in self.rows]
        if not any(profiles):
            raise InputError(f"profile: no row has {metric + BY_DEPTH!r}; run commutativity(..., depths=True)")
        matrix = np.full((len(self.rows), self.config["layers"]), np.nan)
        for line, values in zip(matrix, profiles, strict=True):
            if values:
                line[: len(values)] = values
        return matrix

    def views(self, metric: str) -> list[View]:
        """Return swaps as a heatmap, permutations over the layers they keep in place, and other orders as named dots.

        A column that ends in ``_by_depth`` is a heatmap of orders and depths.
        """
        baseline, *others = self.rows
        if metric.endswith(BY_DEPTH):
            column = metric.removesuffix(BY_DEPTH)
            return depth_views(column, others, self.profile(column)[1:])
        rows = [row for row in self.top(len(self.rows), metric) if row is not baseline]
        if _all_swaps(rows):
            return [square_heatmap(self.matrix(metric), x_label="layer", y_label="swapped with layer", label=metric)]
        return order_views(metric, rows)

    @property
    def metrics(self) -> list[str]:
        """The columns that can be drawn, those of states by depth included."""
        by_depth = [name for name in self.rows[0] if name.endswith(BY_DEPTH) and not name.endswith("_se" + BY_DEPTH)]
        return [*super().metrics, *by_depth]

    @classmethod
    def restored(cls, config: dict[str, Any], rows: list[dict[str, Any]]) -> Self:
        """Return the result that a file holds. Rows of version 0.1.0 get their ``CHANGES`` from the text of the order.

        An order with an edited layer has a text that cannot be parsed. Its changes are ``None``.
        """

        def changes_of(text: str) -> dict[str, Any]:
            try:
                return changes(parse(text), config["layers"])
            except InputError:
                return dict.fromkeys(CHANGES)

        return cls(config, [row if "kept" in row else row | changes_of(row["order"]) for row in rows])


@renamed_arguments(which="orders")
@together()
@plain_numbers
def commutativity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    orders: Iterable[Order | Sequence[int]],
    *,
    metrics: Mapping[str, Metric] | None = None,
    depths: bool = False,
    stack: str | None = None,
    memory: int | None = None,
    progress: bool = True,
    journal: Journal | None = None,
) -> OrderEffects:
    """Run a model's layers in many orders and measure how each order changes the output.

    Orders with a common beginning share it: every distinct prefix runs once a batch. States are compared after the last
    layer, over tokens that count: those of ``token_mask``, by default all but padding. A prediction counts if the token
    that makes it does. A model with a language-model head also gets loss, accuracy, KL divergence
    and agreement with the baseline, at the tokens it predicts: the next ones for a decoder, or those with ``labels``
    other than -100. The model's own loss decides which logits belong to a label: those of the token before for a
    decoder, those of the token itself for an encoder.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, and perhaps ``labels`` and ``token_mask``, the tokens
            that count, each ``(batch, length)``; read once.
        orders: orders of the layers; the baseline is added in front.
        metrics: additional columns by name: functions of a final state and the baseline's, each ``(batch, length,
            width)``, to ``(batch, length)``. Rows have the mean over tokens.
        depths: also compare the state after every step with the baseline's after as many layers. Rows get lists
            ``relative_l2_by_depth`` and ``cosine_by_depth`` and their standard errors. Costs one more layer
            forward for each layer and batch.
        stack: path of the stack of layers, or a part of it, like ``"encoder"``; the longest by default.
        memory: bytes that states may take at one time; a quarter of the free memory by default.
        progress: show a progress bar on standard error.
        journal: keeps finished orders on disk, and has those of an interrupted run, which do not run again.

    Raises:
        InputError: an order that the model cannot run, labels for a model without a head, or no batches.
        UnsupportedModelError: the layers of the model cannot be found, or do not give its output one after another; or
            its loss follows no known convention for labels.
        NumericalError: a final state of the baseline is not finite. If one of another order is not, that order's
            columns are ``None``.

    Example:
        >>> effects = commutativity(model, batches, fp.orders.swaps(12))  # doctest: +SKIP
        >>> effects.top(3, "relative_l2")  # doctest: +SKIP
    """
    points, ranks = resolve(model, stack), Ranks.here()
    model = points.part_of(model)
    depth = len(points.layers)
    wanted = wanted_of(orders, depth)
    check_same_run(model, points, ranks, orders=[*map(str, wanted)], metrics=[*(metrics or ())], depths=depths)
    batches = ModelBatches(model, points, batches)
    shares = Shares(batches, ranks)
    metrics, journal = metrics or {}, journal or Journal()
    sums = EffectSums(len(wanted), metrics)
    bar = OrderProgress(batches.tokens, len(wanted), progress and ranks.is_first)
    measured = MeasuredOrders(model, points, wanted, metrics, depths, memory, journal, bar)
    resumable = {"orders": [str(order) for order in wanted], "metrics": [*metrics], "depths": depths} | shares.config
    if journal.writes:
        resumable[WEIGHTS] = fingerprint(model, points)
    with bar, journal.keeping(resumable), evaluating(model), torch.no_grad(), FastLinear():
        for of_batch in measured.rounds(shares, ranks):
            for index, found in enumerate(of_batch):
                sums.add(index, found)
    rows = [
        {"order": str(order), "name": order.name} | sums.row(index) | changes(order, depth)
        for index, order in enumerate(wanted)
    ]
    plan = OrderPlan.of(wanted)
    config = {
        "layers": depth,
        "sequences": measured.sequences,
        "tokens": rows[0]["tokens"],
        "runner": next((runner for runner in ranks.gather(measured.runner) if runner != "none"), "none"),
        **shares.counted,
        **points.description(),
        "layer_forwards": plan.applications,
        "layer_forwards_naive": plan.naive_applications,
        "layer_forwards_run": sum(ranks.gather(measured.layer_forwards)),
    }
    return OrderEffects(config, rows)


def _all_swaps(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if every row swaps a pair of layers and no two rows swap the same pair: a matrix can show them."""
    pairs = {(row["i"], row["j"]) for row in rows if row["i"] is not None}
    return bool(rows) and len(pairs) == len(rows)
