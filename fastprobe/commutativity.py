"""What an order of layers does to a model's output, for many orders at the price of their distinct prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastprobe import figures, orders
from fastprobe.effects import BatchEffects, EffectSums, Metric
from fastprobe.errors import InputError
from fastprobe.journal import Journal
from fastprobe.memory import freed_memory_kept
from fastprobe.models.record import device_of, evaluating, to_device
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.ops import FastLinear
from fastprobe.orders import Order
from fastprobe.plan import OrderPlan
from fastprobe.results import Result
from fastprobe.runs import OrderRuns, check_stack, mask_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SWAP = re.compile(r"swap (?:attention |ffn )?(\d+) (\d+)")


@dataclass(frozen=True)
class OrderEffects(Result):
    """What every order does to the output: one row an order, the first one the model's own.

    ``config`` holds the ``layer_forwards`` of a batch and ``layer_forwards_naive``, what running the orders one by one
    would take.
    """

    kind: ClassVar[str] = "commutativity"
    metric: ClassVar[str] = "relative_l2"

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """One metric of swaps as a symmetric ``(layers, layers)`` matrix; ``nan`` where there is no such row."""
        depth = self.config["layers"]
        matrix = np.full((depth, depth), np.nan)
        for row in self.rows:
            if (match := _SWAP.fullmatch(row["name"])) and row.get(metric) is not None:
                i, j = int(match[1]), int(match[2])
                matrix[i, j] = matrix[j, i] = row[metric]
        return matrix

    def plot(self, path: str | Path | None = None, metric: str = "relative_l2") -> Figure:
        """A heatmap where the rows are swaps, else a dot an order, from least to most.

        Args:
            path: where to save the picture, if anywhere.
            metric: the column to draw.
        """
        return figures.order_effects(self, metric, path)


@freed_memory_kept()
def commutativity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    which: Iterable[Order | Sequence[int]],
    *,
    metrics: Mapping[str, Metric] | None = None,
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
        memory: bytes that states may take at one time; a quarter of what is free by default.
        progress: show a progress bar on standard error.
        journal: where finished orders are kept while others run, and what is not run again.

    Raises:
        InputError: an order that the model cannot run, or no batches.
        UnsupportedModelError: the layers of the model cannot be found, or do not compose to the model.

    Example:
        >>> effects = commutativity(model, batches, fp.orders.swaps(12))  # doctest: +SKIP
        >>> effects.top(3, "relative_l2")  # doctest: +SKIP
    """
    points = resolve(model)
    depth = len(points.layers)
    wanted = [orders.identity(depth)]
    for order in which:
        order = order if isinstance(order, Order) else Order(tuple(order))
        orders.check(order, depth)
        if order not in wanted:
            wanted.append(order)
    sums = EffectSums(len(wanted), metrics or {})
    journal = journal or Journal()
    device = device_of(model)
    forwards = sequences = 0
    bar = tqdm(total=getattr(batches, "tokens", None), unit=" tokens", unit_scale=True, disable=not progress)
    kept = {"orders": [str(order) for order in wanted], "metrics": [*(metrics or {})]}
    with bar, journal.keeping(kept), evaluating(model), torch.no_grad(), FastLinear():
        for number, batch in enumerate(batches):
            batch = to_device(batch, device)
            mask = mask_of(batch, number)
            sequences += len(mask)
            results = dict(journal.finished(number))
            share = int(mask.sum()) / len(wanted)  # of the bar, for one order
            bar.update(share * len(results))
            missing = [index for index in range(len(wanted)) if index not in results]
            if missing:
                labels = batch.pop("labels", None)
                if number == 0:
                    check_stack(model, points, batch)
                stack = LayerStack.record(model, points, batch)
                numbers = list(dict.fromkeys([0, *missing]))  # the others are compared with the model's own
                runs = OrderRuns(stack, [wanted[index] for index in numbers], memory)
                effects = None
                for index, state in _own_first((numbers[i], state) for i, state in runs):
                    effects = effects or BatchEffects(stack, mask, labels, state, metrics or {})
                    if index not in results:
                        results[index] = effects(state)
                        journal.add(number, index, results[index])
                        bar.update(share)
                forwards += runs.layer_runs
                bar.set_postfix_str(f"{forwards:,} layer runs", refresh=False)
            for index in range(len(wanted)):
                sums.add(index, results[index])
    if not sequences:
        raise InputError("batches: there are none")
    plan = OrderPlan.of(wanted)
    config = {
        "layers": depth,
        "sequences": sequences,
        "tokens": sums.row(0)["tokens"],
        "layer_forwards": plan.applications,
        "layer_forwards_naive": plan.naive_applications,
        "layer_forwards_run": forwards,  # of all batches
    }
    rows = [{"order": str(order), "name": order.name} | sums.row(i) for i, order in enumerate(wanted)]
    return OrderEffects(config, rows)


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
