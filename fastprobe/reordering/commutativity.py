"""What an order of layers does to a model's output, for many orders at the price of their distinct prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fastprobe.errors import InputError
from fastprobe.models.record import device_of, evaluating, to_device
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack, has_language_head
from fastprobe.models.unpadded.stack import FlatStack
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order, parse, wanted_of
from fastprobe.orders.changes import layers_dropped, layers_kept, swapped_layers
from fastprobe.orders.plan import OrderPlan
from fastprobe.reordering import pictures
from fastprobe.reordering.depths import DepthEffects
from fastprobe.reordering.effects import BatchEffects, EffectSums, Metric, Sums, check_own
from fastprobe.reordering.order_runs import OrderRuns, check_stack, mask_of
from fastprobe.reordering.pairs import pair_matrix
from fastprobe.results.result import BY_DEPTH, Result
from fastprobe.runtime.journal import Journal
from fastprobe.runtime.memory import freed_memory_kept
from fastprobe.runtime.progress import OrderProgress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CHANGES = ("i", "j", "kept", "dropped")
"""Columns that say what an order changes: the two layers that it swaps, how many layers a permutation leaves in place,
and the layers that do not run."""


@dataclass(frozen=True, repr=False)
class OrderEffects(Result):
    """What every order does to the output: one row an order, the first one the model's own.

    ``config`` holds the ``layer_forwards`` of a batch and ``layer_forwards_naive``, what running the orders one by one
    would take.
    """

    kind: ClassVar[str] = "commutativity"
    metric: ClassVar[str] = "relative_l2"

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """One metric of swaps as a symmetric ``(layers, layers)`` matrix; ``nan`` where there is no such row.

        Raises:
            InputError: no row has the metric.
        """
        return pair_matrix(self.rows_with(metric), self.config["layers"], metric)

    def profile(self, metric: str = "relative_l2") -> np.ndarray:
        """One metric of the states on the way, ``(orders, layers)``: ``[:, k]`` is that after k + 1 steps.

        An order of fewer steps than the model has layers has ``nan`` from where it ends.

        Raises:
            InputError: the run was not asked for ``depths``.
        """
        profiles = [row.get(metric + BY_DEPTH) for row in self.rows]
        if not any(profiles):
            raise InputError(f"profile: no row has {metric + BY_DEPTH!r}; run commutativity(..., depths=True)")
        matrix = np.full((len(self.rows), self.config["layers"]), np.nan)
        for line, values in zip(matrix, profiles, strict=True):
            line[: len(values or [])] = values or []
        return matrix

    def plot(self, path: str | Path | None = None, metric: str = "relative_l2") -> Figure:
        """A heatmap where the rows are swaps, else a dot an order, from least to most.

        Args:
            path: where to save the picture, if anywhere.
            metric: the column to draw; one that ends in ``_by_depth`` as a heatmap of orders and depths.
        """
        baseline, *others = self.rows
        if metric.endswith(BY_DEPTH):
            column = metric.removesuffix(BY_DEPTH)
            return pictures.profiles(self.title, column, others, self.profile(column)[1:], path)
        rows = [row for row in self.top(len(self.rows), metric) if row is not baseline]
        matrix = self.matrix(metric)
        if np.triu(~np.isnan(matrix), 1).sum() == len(rows) > 0:  # each row is a swap of its own
            return pictures.pairs(self.title, metric, matrix, "swapped with layer", path)
        return pictures.orders(self.title, metric, rows, path)

    @classmethod
    def restored(cls, config: dict[str, Any], rows: list[dict[str, Any]]) -> Self:
        """Return the result that a file holds. Version 0.1.0 wrote no :data:`CHANGES`; they follow from the order."""

        def changes(text: str) -> dict[str, Any]:
            try:
                return _changes(parse(text), config["layers"])
            except InputError:  # an edited layer
                return dict.fromkeys(CHANGES)

        return cls(config, [row if "kept" in row else row | changes(row["order"]) for row in rows])


@freed_memory_kept()
def commutativity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    which: Iterable[Order | Sequence[int]],
    *,
    metrics: Mapping[str, Metric] | None = None,
    depths: bool = False,
    memory: int | None = None,
    progress: bool = True,
    journal: Journal | None = None,
) -> OrderEffects:
    """Run a model's layers in many orders and measure what each does to its output.

    Orders that begin alike share what they share: every distinct prefix is run once a batch. States are compared after
    the last layer, over tokens that are no padding; a model with a language-model head also gets loss, accuracy, KL
    divergence and agreement with its own order, at the tokens it is to predict: the next ones for a decoder, those with
    ``labels`` other than -100 for an encoder.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``; gone through once.
        which: orders; the model's own is added in front.
        metrics: more columns by name: functions of a final state and that of the model's own order, each
            ``(batch, length, width)``, to ``(batch, length)``; rows have the mean over tokens.
        depths: also compare the state after every step with the model's own after as many layers; rows get lists
            ``relative_l2_by_depth`` and ``cosine_by_depth`` and their standard errors. Costs one more run of each layer
            a batch.
        memory: bytes that states may take at one time; a quarter of what is free by default.
        progress: show a progress bar on standard error.
        journal: where finished orders are kept while others run, and what is not run again.

    Raises:
        InputError: an order that the model cannot run, labels for a model without a head, or no batches.
        UnsupportedModelError: the layers of the model cannot be found, or do not compose to the model.
        NumericalError: a final state of the model's own is not finite. Those of another order leave its columns empty.

    Example:
        >>> effects = commutativity(model, batches, fp.orders.swaps(12))  # doctest: +SKIP
        >>> effects.top(3, "relative_l2")  # doctest: +SKIP
    """
    points = resolve(model)
    depth = len(points.layers)
    wanted = wanted_of(which, depth)
    sums = EffectSums(len(wanted), metrics or {})
    journal = journal or Journal()
    device = device_of(model)
    sequences, checked, runner = 0, False, "none"
    progressing = OrderProgress(getattr(batches, "tokens", None), len(wanted), progress)
    kept = {"orders": [str(order) for order in wanted], "metrics": [*(metrics or {})], "depths": depths}
    with progressing, journal.keeping(kept), evaluating(model), torch.no_grad(), FastLinear():
        for number, batch in enumerate(batches):
            batch = to_device(batch, device)
            mask = mask_of(batch, number)
            sequences += len(mask)
            results = dict(journal.finished(number))
            missing = [index for index in range(len(wanted)) if index not in results]
            if missing:
                labels = _labels(batch, model)
                if not checked:
                    make_stack, runner = check_stack(
                        model, points, batch, edited=any(order.is_edited for order in wanted)
                    )
                    checked = True
                stack = make_stack(model, points, batch, sequences - len(mask))
                runs = _BatchOrders(
                    stack, mask, labels, wanted, missing, metrics or {}, depths, memory, progressing.ran
                )
                progressing.batch(int(mask.sum()), len(results), runs.planned)
                for index, found in runs:
                    if index == 0:
                        check_own(found, number, stack.stem.dtype)
                    results[index] = found
                    journal.add(number, index, found)
                    progressing.finished()
            else:
                progressing.batch(int(mask.sum()), len(results), 0)
            for index in range(len(wanted)):
                sums.add(index, results[index])
    if not sequences:
        raise InputError("batches: there are none")
    plan = OrderPlan.of(wanted)
    config = {
        "layers": depth,
        "sequences": sequences,
        "tokens": sums.row(0)["tokens"],
        "runner": runner,
        "layer_forwards": plan.applications,
        "layer_forwards_naive": plan.naive_applications,
        "layer_forwards_run": progressing.layer_runs,  # of all batches
    }
    rows = [
        {"order": str(order), "name": order.name} | sums.row(i) | _changes(order, depth)
        for i, order in enumerate(wanted)
    ]
    return OrderEffects(config, rows)


def _changes(order: Order, depth: int) -> dict[str, Any]:
    """Return the columns that say what an order changes: those of :data:`CHANGES`."""
    i, j = swapped_layers(order, depth) or (None, None)
    return {"i": i, "j": j, "kept": layers_kept(order, depth), "dropped": layers_dropped(order, depth)}


class _BatchOrders:
    """Pairs of an order's place in a list and its sums over one batch, as they are complete.

    Args:
        stack: the model on the batch.
        mask: ``(batch, length)`` bool, tokens that count.
        labels: what an encoder is to predict.
        wanted: orders, the model's own first.
        missing: the places of those to run; the first one runs in any case, for the others are compared with it.
        metrics: more columns.
        depths: compare states on the way, too.
        memory: bytes that states may take.
        ran: is told how many layers ran, as they do.
    """

    def __init__(
        self,
        stack: LayerStack | FlatStack,
        mask: Tensor,
        labels: Tensor | None,
        wanted: Sequence[Order],
        missing: Sequence[int],
        metrics: Mapping[str, Metric],
        depths: bool,
        memory: int | None,
        ran: Callable[[int], None],
    ):
        self._missing, self._compare = set(missing), partial(BatchEffects, stack, mask, labels, metrics=metrics)
        self._places = [0, *(place for place in missing if place)]
        self._on_the_way = DepthEffects(stack, mask) if depths else None
        if self._on_the_way and memory is not None:
            memory = max(0, memory - self._on_the_way.nbytes)
        self._ran = ran
        self._runs = OrderRuns(stack, OrderPlan.of(wanted[place] for place in self._places), memory, self._see)

    @property
    def planned(self) -> int:
        """Layers that are to run."""
        return self._runs.plan.applications + (self._on_the_way.layer_runs if self._on_the_way else 0)

    def _see(self, node: int, depth: int, state: Tensor) -> None:
        if self._on_the_way:
            self._on_the_way.see(node, depth, state)
        self._ran(1)

    def __iter__(self) -> Iterator[tuple[int, Sums]]:
        effects = None
        if self._on_the_way:
            self._ran(self._on_the_way.layer_runs)
        for index, state in _own_first(self._runs):
            effects = effects or self._compare(state=state)
            place = self._places[index]
            if place in self._missing:
                sums = effects(state)
                if self._on_the_way:
                    sums |= self._on_the_way.along(self._runs.plan.path(self._runs.plan.ends[index]))
                yield place, sums


def _labels(batch: dict[str, Any], model: nn.Module) -> Tensor | None:
    """The labels of a batch, taken out of it."""
    labels = batch.pop("labels", None)
    if labels is not None and not has_language_head(model):
        raise InputError(
            f"batches: {type(model).__name__} has no language-model head to predict their labels with; "
            "load it by a class that has one, or leave the labels out"
        )
    return labels


def _own_first(states: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """The same pairs of order and state; those that come before the model's own, order 0, wait for it."""
    waiting: list[tuple[int, Tensor]] = []
    own = False
    for index, state in states:
        waiting.append((index, state))
        own = own or index == 0
        if own:
            yield from sorted(waiting, key=lambda pair: pair[0])
            waiting.clear()
