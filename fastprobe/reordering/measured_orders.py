"""Measure orders batch after batch, and take from a journal what an interrupted run has measured.

Several processes share the batches out. Their sums of a round come together in all of them, in the order of batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastprobe.data.batches import digest_of
from fastprobe.data.checks import TOKEN_MASK, counted_mask
from fastprobe.data.shares import Share, Shares
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of, has_language_head, to_device
from fastprobe.models.protocols import MakeStack
from fastprobe.models.resolve import ModelPoints
from fastprobe.orders import Order
from fastprobe.reordering.batch_orders import BatchOrders
from fastprobe.reordering.checked_stack import check_stack
from fastprobe.reordering.effects import Metric, Sums, check_baseline
from fastprobe.reordering.label_targets import LabelTargets
from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.journal import Journal
from fastprobe.runtime.progress import OrderProgress


class MeasuredOrders:
    """Sums of many orders over one batch after another.

    Args:
        model: in evaluation mode.
        points: the layers of the model.
        orders: what to run, the baseline first.
        metrics: additional columns.
        depths: compare the states after every step, too.
        memory: bytes that states may take at one time.
        journal: keeps finished sums, and has those of an interrupted run.
        progress: the progress bar.

    ``layer_forwards`` counts the layer forwards of this process, ``sequences`` the sequences of all batches.
    """

    def __init__(
        self,
        model: nn.Module,
        points: ModelPoints,
        orders: Sequence[Order],
        metrics: Mapping[str, Metric],
        depths: bool,
        memory: int | None,
        journal: Journal,
        progress: OrderProgress,
    ):
        self._model, self._points, self._orders = model, points, orders
        self._metrics, self._depths, self._memory = metrics, depths, memory
        self._journal, self._progress = journal, progress
        self._device = device_of(model)
        self._make_stack: MakeStack | None = None
        self._targets = LabelTargets(model)
        self.layer_forwards = self.sequences = 0
        self.runner = "none"

    def rounds(self, shares: Shares, ranks: Ranks) -> Iterator[list[Sums]]:
        """Yield the sums of every order over one batch after another, in the order of batches.

        Args:
            shares: batches with ``input_ids``, ``attention_mask`` and perhaps ``labels``.
            ranks: the processes.
        """
        self._head = shares.head
        for share in shares.rounds():
            found = [(share.number, _digest(batch), self._sums(share, batch)) for batch in share.batches]
            for rank, of_process in enumerate(ranks.gather(found)):
                for number, digest, sums in of_process:
                    if rank != ranks.rank:
                        for index, one in enumerate(sums):
                            self._journal.add(number, index, one, digest)
                    yield sums
            self.sequences = share.sequences

    def _sums(self, share: Share, batch: Mapping[str, Any]) -> list[Sums]:
        """Return the sums of every order over the batch of a share."""
        number, digest = share.number, _digest(batch)
        batch = to_device(batch, self._device)
        mask = counted_mask(batch)
        found: dict[int, Sums] = dict(self._journal.finished(number, digest))
        missing = [index for index in range(len(self._orders)) if index not in found]
        if missing:
            runs = self._runs(share, batch, mask, missing)
            self._progress.batch(share.tokens, len(found), runs.layer_forwards)
            for index, sums in runs:
                if index == 0:
                    check_baseline(sums, number, self._dtype)
                found[index] = sums
                self._journal.add(number, index, sums, digest)
                self._progress.finished()
        else:
            self._progress.batch(share.tokens, len(found), 0)
        return [found[index] for index in range(len(self._orders))]

    def _runs(self, share: Share, batch: dict[str, Any], mask: Tensor, missing: Sequence[int]) -> BatchOrders:
        """Return the runs of the missing orders on a batch. The first call checks the layers of the model."""
        labels = _take_labels(batch, self._model)
        if self._make_stack is None:
            edits = list(dict.fromkeys(step for order in self._orders for step in order.edits))
            head = to_device(self._head, self._device)
            self._make_stack, self.runner = check_stack(self._model, self._points, head, edits=edits)
        stack = self._make_stack(self._model, self._points, batch, share.first)
        stack.step = share.step
        self._dtype = stack.stem.dtype
        targets = None if labels is None else self._targets(stack.batch, labels)
        metrics, depths, memory = self._metrics, self._depths, self._memory
        return BatchOrders(stack, mask, targets, self._orders, missing, metrics, depths, memory, self._ran)

    def _ran(self, layer_forwards: int) -> None:
        """Count layer forwards and show them."""
        self.layer_forwards += layer_forwards
        self._progress.ran(layer_forwards)


def _digest(batch: Mapping[str, Any]) -> str:
    """Return a hash of the tokens and labels of a batch."""
    return digest_of(batch, ("input_ids", "attention_mask", TOKEN_MASK, "labels")).hex()


def _take_labels(batch: dict[str, Any], model: nn.Module) -> Tensor | None:
    """Remove the labels from a batch and return them."""
    labels = batch.pop("labels", None)
    if labels is not None and not has_language_head(model):
        raise InputError(
            f"batches: {type(model).__name__} has no language-model head to predict their labels with; "
            "load it by a class that has one, or leave the labels out"
        )
    return labels
