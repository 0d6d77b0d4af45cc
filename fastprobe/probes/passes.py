"""Two passes over the states of a model: one for the sums of all tokens, one for accuracies on a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask, counted_mask
from fastprobe.data.sample import SequenceSample
from fastprobe.data.shares import Shares
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.protocols import MakeStack
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.stack import LayerStack
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Edited
from fastprobe.orders.plan import OrderPlan
from fastprobe.probes.classifiers import StateClassifiers
from fastprobe.probes.sums import ProbeSums
from fastprobe.probes.token_labels import TokenLabels
from fastprobe.regression.linear_fit import fold_of_sequences
from fastprobe.reordering.checked_stack import check_stack
from fastprobe.reordering.order_runs import OrderRuns
from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.progress import PassProgress


@dataclass
class StateRows:
    """The states of one batch after another, with the class and the fold of every row.

    Args:
        model: in evaluation mode.
        points: the layers of the model.
        labels: the tasks.
        plan: state k is the output of its order k - 1; state 0 is the input of the first layer.
        edits: the steps that run edited layers.
        memory: bytes that states may take at one time.
    """

    model: nn.Module
    points: ModelPoints
    labels: TokenLabels
    plan: OrderPlan
    edits: Sequence[Edited] = ()
    memory: int | None = None
    make_stack: MakeStack = field(init=False, default=LayerStack.record)
    runner: str = field(init=False, default="none")
    classes: dict[str, Tensor] = field(init=False, default_factory=dict)  # task -> (rows,)
    fold: Tensor = field(init=False)  # (rows,), -1 for rows that do not count

    def check(self, batch: Mapping[str, Any]) -> int:
        """Check the layers of the model on the first batch, choose how they run, and return the width of states."""
        inputs = to_device(self._inputs(batch), device_of(self.model))
        self.make_stack, self.runner = check_stack(self.model, self.points, inputs, edits=self.edits)
        return self.make_stack(self.model, self.points, inputs).stem.shape[-1]

    def of(self, batch: Mapping[str, Any], fold: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield every state as its number and ``(rows, width)``, state 0 first. Sets ``classes`` and ``fold``.

        Args:
            batch: inputs of the model, and labels.
            fold: ``(batch,)``, of each sequence.
        """
        order = fold.argsort(stable=True)  # sums take the rows of one fold as a slice
        batch = to_device(select(batch, order), device_of(self.model))
        mask = counted_mask(batch)
        stack = self.make_stack(self.model, self.points, self._inputs(batch))
        self.classes = {task: stack.by_row(column) for task, column in self.labels(batch).items()}
        self.fold = stack.by_row(torch.where(mask, fold[order].to(mask.device)[:, None], -1))
        yield 0, stack.stem.flatten(0, -2)
        for index, state in OrderRuns(stack, self.plan, self.memory):
            yield index + 1, state.flatten(0, -2)

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model takes of a batch."""
        return {key: value for key, value in batch.items() if key not in ("labels", *self.labels.given)}


class SumPass:
    """The first pass: sums over all tokens, and the sample of sequences for the second pass.

    Args:
        states: the states of the batches.
        sample: takes the sequences for the second pass.
        folds: of the sums; 0 for none.
        backend: of the sums.
    """

    def __init__(self, states: StateRows, sample: SequenceSample, folds: int, backend: str):
        self._states, self._sample, self._folds, self._backend = states, sample, folds, backend
        self.sequences = 0
        self.largest_batch = 0
        self.counted: dict[str, Any] = {}

    def run(self, batches: Iterable[Mapping[str, Any]], fast: FastLinear, progress: PassProgress) -> ProbeSums:
        """Return the sums over all tokens.

        Args:
            batches: read once.
            fast: the fast linear layers, which are off while sums are added.
            progress: counts tokens.

        Raises:
            InputError: there are no batches, or the sums do not fit in the free memory.
        """
        ranks = Ranks.here()
        shares = Shares(batches, ranks)
        self.counted = shares.counted
        sums = self._open(self._states.check(shares.head))
        progress.begin("sums", getattr(batches, "tokens", None), "tokens")
        for share in shares.rounds():
            for batch in share.batches:
                count = attended_mask(batch).shape[:1]
                fold = fold_of_sequences(share.first, count, max(self._folds, 1), torch.device("cpu"), share.step)
                for state, rows in self._states.of(batch, fold):
                    with fast.suspended():
                        sums.add(state, rows, self._states.classes, self._states.fold, self._backend)
                self._sample.add(batch, fold, share.first, share.step)
                self.largest_batch = max(self.largest_batch, len(fold))
            if share.opens:
                sums.share_origins_()
            self.sequences = share.sequences
            progress.ran(share.tokens)
        sums.all_reduce_()
        self._sample.gather_(ranks)
        self.largest_batch = max(ranks.gather(self.largest_batch))
        return sums

    def _open(self, width: int) -> ProbeSums:
        states = 1 + len(self._states.plan.ends)
        return ProbeSums(self._states.labels, width, states, self._folds, device_of(self._states.model)).open()


def count_accuracies(
    states: StateRows,
    sample: SequenceSample,
    batch_size: int,
    classifiers: Sequence[Sequence[StateClassifiers]],
    fast: FastLinear,
    progress: PassProgress,
) -> None:
    """Run the second pass: count the correct predictions of every classifier on the sample.

    Args:
        states: the states of the batches.
        sample: the sequences.
        batch_size: most sequences of a batch.
        classifiers: of every state.
        fast: the fast linear layers, which are off while classifiers run.
        progress: counts sequences.
    """
    if len(sample):
        progress.begin("accuracy", len(sample), "sequences")
    if not any(classifiers):
        return
    for batch, fold in sample.batches(batch_size):
        for state, rows in states.of(batch, fold):
            with fast.suspended():
                for one in classifiers[state]:
                    one.count(rows, states.classes, states.fold)
        progress.ran(len(fold))
