"""The two passes of a probe over states: sums that classifiers are fitted on, then a look at what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import picked
from fastprobe.data.checks import checked_mask
from fastprobe.models.record import device_of, to_device
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.stack import MakeStack
from fastprobe.ops.products import matmul
from fastprobe.orders.plan import OrderPlan
from fastprobe.probes.token_labels import TokenLabels
from fastprobe.regression.least_squares import Factorisation, Fit
from fastprobe.regression.moment_plan import MomentPlan, Stage
from fastprobe.regression.moments import Moments
from fastprobe.reordering.order_runs import OrderRuns


@dataclass
class StateRows:
    """The states of one batch after another, with the class and the fold of every row.

    Args:
        model: in evaluation mode.
        points: where its layers are.
        labels: what is read.
        plan: state k is what order k - 1 of it makes; state 0 is what the first step gets.
        memory: bytes that states may take at one time.
        make_stack: from the model and a batch to its layers.
    """

    model: nn.Module
    points: ModelPoints
    labels: TokenLabels
    plan: OrderPlan
    memory: int | None = None
    make_stack: MakeStack = LayerStack.record
    classes: dict[str, Tensor] = field(init=False, default_factory=dict)  # task -> (rows,)
    fold: Tensor = field(init=False)  # (rows,), -1 for padding

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model takes."""
        return {key: value for key, value in batch.items() if key not in ("labels", *self.labels.given)}

    def of(self, batch: Mapping[str, Any], fold: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every state as (its number, ``(rows, width)``), 0 first.

        Args:
            batch: what the model takes, and labels.
            fold: ``(batch,)``, of each sequence.
        """
        order = fold.argsort(stable=True)  # sums take the rows of one fold as a slice
        batch = to_device(picked(batch, order), device_of(self.model))
        mask = checked_mask(batch, 0)
        stack = self.make_stack(self.model, self.points, self.inputs(batch))
        self.classes = {task: stack.by_row(column) for task, column in self.labels(batch).items()}
        self.fold = stack.by_row(torch.where(mask, fold[order].to(mask.device)[:, None], -1))
        yield 0, stack.stem.flatten(0, -2)
        for index, state in OrderRuns(stack, self.plan, self.memory):
            yield index + 1, state.flatten(0, -2)


class ProbeSums:
    """Moments of every state with its tasks. Tasks that every token has a class of share the sums of the state alone.

    Args:
        labels: the tasks.
        width: of states.
        states: how many there are.
        folds: of the moments.
        device: where they are kept.
    """

    def __init__(self, labels: TokenLabels, width: int, states: int, folds: int, device: torch.device):
        shared = [task for task in labels.tasks if task not in labels.given]
        self.groups = [shared] * bool(shared) + [[task] for task in labels.given]
        self.plans = [
            [
                MomentPlan(
                    {x: width} | {task: labels.classes(task) for task in group},
                    ((x, x), *((x, task) for task in group)),
                    folds=max(folds, 1),
                )
                for group in self.groups
            ]
            for x in map(block, range(states))
        ]
        self.device = device
        self.moments: list[list[Moments]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return sum(plan.nbytes for plans in self.plans for plan in plans)

    def open(self) -> ProbeSums:
        """Make room for the sums; returns itself."""
        self.moments = [[Moments.zero(plan, self.device) for plan in plans] for plans in self.plans]
        return self

    def add(self, state: int, rows: Tensor, classes: Mapping[str, Tensor], fold: Tensor, backend: str) -> None:
        """Add the rows of a state; see :meth:`StateRows.of`."""
        x = block(state)
        for group, moments in zip(self.groups, self.moments[state], strict=True):
            labelled = torch.where(classes[group[0]] >= 0, fold, -1)
            stage = Stage(first=True, fresh=(x,), pairs=((x, x),))
            moments.update_({x: rows}, labelled, stage=stage, backend=backend)
            for task in group:
                moments.update_classes_(x, task, rows, classes[task], labelled)


def block(state: int) -> str:
    """The name of a state's block."""
    return f"state.{state}"


class StateProbes:
    """The classifiers of one state, in and out of fold, from its whitened coordinates."""

    def __init__(self, source: Factorisation, fits: Mapping[str, Fit], dtype: torch.dtype):
        self.tasks = list(fits)
        self.sizes = [len(fit.y_mean) for fit in fits.values()]
        self.mean = (source.moments.origin(source.x) + source.mean).to(dtype)
        self.whiten = source.whiten.to(dtype)
        self.whole = _side_by_side([(fit.whitened, fit.y_mean) for fit in fits.values()], dtype)
        self.without = {
            fold: _side_by_side([source.fold_map(fit, place) for fit in fits.values()], dtype)
            for place, fold in enumerate(source.folds if source.moments.plan.folds > 1 else ())
        }
        self.hits: dict[tuple[str, str], int] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def look(self, rows: Tensor, classes: Mapping[str, Tensor], fold: Tensor) -> None:
        """Count the tokens whose class is the largest prediction; arguments as for :meth:`ProbeSums.add`."""
        z = matmul(rows.to(self.mean.dtype) - self.mean, self.whiten)
        self._count("accuracy", self.whole, z, classes, (fold >= 0).nonzero()[:, 0])
        for index, maps in self.without.items():
            self._count("accuracy_cv", maps, z, classes, (fold == index).nonzero()[:, 0])

    def _count(
        self, column: str, maps: tuple[Tensor, Tensor], z: Tensor, classes: Mapping[str, Tensor], rows: Tensor
    ) -> None:
        if not len(rows):
            return
        predicted = matmul(z[rows], maps[0]) + maps[1]
        for task, scores in zip(self.tasks, predicted.split(self.sizes, 1), strict=True):
            label, key = classes[task][rows], (task, column)
            self.hits[key] = self.hits.get(key, 0) + int((scores.argmax(1) == label).sum())
            self.counts[key] = self.counts.get(key, 0) + int((label >= 0).sum())

    def accuracy(self, task: str, column: str) -> float | None:
        """The share of labelled tokens that were told right; ``None`` where none was looked at."""
        count = self.counts.get((task, column))
        return self.hits[task, column] / count if count else None


def _side_by_side(maps: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.cat([coef for coef, _ in maps], 1).to(dtype), torch.cat([intercept for _, intercept in maps]).to(dtype)
