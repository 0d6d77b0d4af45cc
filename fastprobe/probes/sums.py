"""Sums that the classifiers of every state are fitted on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from fastprobe.errors import InputError
from fastprobe.probes.token_labels import TokenLabels
from fastprobe.regression.moment_plan import MomentPlan, Stage
from fastprobe.regression.moments import Moments
from fastprobe.runtime.memory import free_bytes, human


class ProbeSums:
    """Moments of every state and its tasks. Tasks with a class for every token share the sums of the state alone.

    Args:
        labels: the tasks.
        width: of states.
        states: number of states.
        folds: of the moments.
        device: of the moments.
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
        self.width, self.device = width, device
        self.moments: list[list[Moments]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return sum(plan.nbytes for plans in self.plans for plan in plans)

    def open(self) -> ProbeSums:
        """Allocate the sums, all zero, and return ``self``.

        Raises:
            InputError: they do not fit in the free memory.
        """
        free = free_bytes(self.device)
        if free is not None and self.nbytes > free:
            raise InputError(
                f"memory: the moments of {len(self.plans)} states take {human(self.nbytes)} and {human(free)} are "
                "free; use folds=0, fewer tasks or fewer orders"
            )
        self.moments = [[Moments.zero(plan, self.device) for plan in plans] for plans in self.plans]
        return self

    def share_origins_(self) -> None:
        """Take the origins of the first process that has rows; see :meth:`Moments.share_origins_`."""
        for moments in itertools.chain(*self.moments):
            moments.share_origins_()

    def all_reduce_(self) -> None:
        """Add the rows of all processes."""
        for moments in itertools.chain(*self.moments):
            moments.all_reduce_()

    def add(self, state: int, rows: Tensor, classes: Mapping[str, Tensor], fold: Tensor, backend: str) -> None:
        """Add the rows of a state.

        Args:
            state: its number.
            rows: ``(rows, width)``.
            classes: ``(rows,)`` for each task; -1 for none.
            fold: ``(rows,)``, -1 for padding; the rows of a fold are adjacent.
            backend: of the sums.
        """
        x = block(state)
        for group, moments in zip(self.groups, self.moments[state], strict=True):
            labelled = torch.where(classes[group[0]] >= 0, fold, -1)
            stage = Stage(first=True, fresh=(x,), pairs=((x, x),))
            moments.update_({x: rows}, labelled, stage=stage, backend=backend)
            for task in group:
                moments.update_classes_(x, task, rows, classes[task], labelled)


def block(state: int) -> str:
    """Return the name of a state's block of moments."""
    return f"state.{state}"
