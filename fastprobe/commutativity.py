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
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.journal import Journal
from fastprobe.memory import free_bytes, freed_memory_kept
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.record import device_of, evaluating, to_device
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.ops import FastLinear
from fastprobe.orders import Order
from fastprobe.plan import ROOT, OrderPlan
from fastprobe.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens of the states that one call of a layer takes side by side: more would not make it faster."""

_SWAP = re.compile(r"swap (?:attention |ffn )?(\d+) (\d+)")


@dataclass(frozen=True)
class OrderEffects(Result):
    """What every order does to the output: one row an order, the first one the model's own.

    ``config`` holds the ``layer_forwards`` of a batch and ``layer_forwards_naive``, what running the orders one by one
    would take.
    """

    kind: ClassVar[str] = "commutativity"

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
            mask = _mask(batch, number)
            sequences += len(mask)
            results = dict(journal.finished(number))
            share = int(mask.sum()) / len(wanted)  # of the bar, for one order
            bar.update(share * len(results))
            missing = [index for index in range(len(wanted)) if index not in results]
            if missing:
                labels = batch.pop("labels", None)
                stack = LayerStack.record(model, points, batch)
                if number == 0:
                    _check_stack(model, stack, batch)
                runs = _Runs(stack, wanted, missing, memory)
                effects = None
                for index, state in runs.final_states():
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


class _Runs:
    """The final states of some orders on one batch, the model's own first."""

    def __init__(self, stack: LayerStack, wanted: Sequence[Order], missing: Sequence[int], memory: int | None):
        self.stack = stack
        self.numbers = list(dict.fromkeys([0, *missing]))
        self.plan = OrderPlan.of([wanted[number] for number in self.numbers])
        self.layer_runs = 0
        free = free_bytes(stack.stem.device)
        room = memory if memory is not None else 2**30 if free is None else free // 4
        self.budget = max(1, room // stack.stem.nbytes)
        tokens = BATCH_TOKENS.get(stack.stem.device.type, BATCH_TOKENS["cuda"])
        self.batch = max(1, tokens // (stack.stem.shape[0] * stack.stem.shape[1]))

    def final_states(self) -> Iterator[tuple[int, Tensor]]:
        """Pairs of an order's number and its final state."""
        size = len(self.stack.stem)
        states = {ROOT: self.stack.stem}
        waiting: list[tuple[int, Tensor]] = []  # until the model's own state is there
        own = False
        for run in self.plan.schedule(self.budget, self.batch):
            inputs = [states[node] for node in run.inputs]
            together = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
            outputs = self.stack.apply(run.step, together, len(inputs)).split(size)
            self.layer_runs += len(outputs)
            states.update(zip(run.outputs, outputs, strict=True))
            waiting += [(self.numbers[order], states[node]) for node, order in run.ends]
            own = own or any(number == 0 for number, _ in waiting)
            for node in run.freed:
                del states[node]
            if own:
                yield from sorted(waiting, key=lambda pair: pair[0])
                waiting.clear()


def _mask(batch: Mapping[str, Any], number: int) -> Tensor:
    for key in ("input_ids", "attention_mask"):
        if not isinstance(batch.get(key), Tensor) or batch[key].ndim != 2:
            raise InputError(f"batches: batch {number} has no (batch, length) tensor {key!r}")
    return batch["attention_mask"].bool()


def _check_stack(model: nn.Module, stack: LayerStack, batch: Mapping[str, Any]) -> None:
    """That the layers in their own order are the model."""
    state = stack.stem
    for layer in range(len(stack)):
        state = stack.apply(layer, state)
    mine, own = stack.head(state)[0], model(**stack.batch)[0]
    mask = batch["attention_mask"].bool()
    error = float((mine - own)[mask].norm() / own[mask].norm())
    if not error <= TOLERANCE[own.dtype]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its layers, run one after the other, are off from the model by {error:.1e}; "
            "something happens between them that is not known here"
        )
