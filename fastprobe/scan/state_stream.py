"""The states of a stream of batches at one depth, from which a layer makes those of the next depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import InputError, NumericalError
from fastprobe.models.calling import to_device
from fastprobe.models.layer_reader import Arguments, LayerReader, RunLayer
from fastprobe.models.points import Point
from fastprobe.runtime.clock import Clock
from fastprobe.scan.state_store import StateStore


@dataclass(frozen=True)
class StoredBatch:
    """A batch whose states are in the store."""

    name: str
    fold: Tensor  # (rows,) fold of each row, -1 for padding
    number: Tensor  # (rows,) number of each row's batch in the stream of the user, -1 for padding
    tokens: int
    rest: Any  # arguments of the layers that are not in the store
    opens: bool = False  # one of the first batches of all processes, until some tokens count

    def failure(self, held: Mapping[Point, Tensor], error: NumericalError) -> NumericalError:
        """Return an error that names the batch of the user with the first row that is not finite."""
        finite = torch.ones_like(self.fold, dtype=torch.bool)
        for tensor in held.values():
            finite &= tensor.flatten(0, -2).isfinite().all(1).to(finite.device)
        bad = self.number[~finite & (self.fold >= 0)]
        numbers = bad[:1] if len(bad) else self.number[self.number >= 0]
        first, last = int(numbers.min()), int(numbers.max())
        return NumericalError(f"batch {first}: {error}" if first == last else f"batches {first} to {last}: {error}")


OnBatch = Callable[[StoredBatch, Mapping[Point, Tensor]], None]
"""Receiver of the points of one batch."""


class StateStream:
    """Batches whose states move from depth to depth. The state of depth d is the input of layer d.

    Args:
        name: name of the stream in the store.
        reader: runner of single layers.
        store: holds the states and the arguments of the layers.
        clock: counts the time of layers and of the store.
        part: part of the clock that the layers count for.
        kept: depths whose states stay in the store.
    """

    def __init__(
        self,
        name: str,
        reader: LayerReader,
        store: StateStore,
        clock: Clock,
        part: str = "forward",
        kept: Collection[int] = (),
    ):
        self.name, self.reader, self.store, self.clock, self.part, self.kept = name, reader, store, clock, part, kept
        self.batches: list[StoredBatch] = []
        self.depth = 0

    @property
    def tokens(self) -> int:
        """Number of tokens of all batches."""
        return sum(batch.tokens for batch in self.batches)

    @property
    def largest(self) -> int:
        """Rows of the largest batch."""
        return max(len(batch.fold) for batch in self.batches)

    def append(self, batch: Mapping[str, Any], fold: Tensor, number: Tensor, *, opens: bool = False) -> None:
        """Run the embeddings on a batch and store its state.

        Args:
            batch: arguments of the model.
            fold: ``(batch,)`` fold of each sequence.
            number: ``(batch,)`` number of each sequence's batch in the stream of the user.
            opens: the other processes wait for what the first rows of this batch decide.
        """
        device = self.store.device
        with self.clock(self.part):
            state, arguments = self.reader.stem(to_device(batch, device))
        rows = [self.reader.rows_of(batch, values).cpu() for values in (fold, number)]
        name = f"{self.name}-{len(self.batches):06d}"
        with self.clock("states"):
            self.store.put(f"{name}-arguments", arguments.tensors)
            self.store.put(f"{name}-0000", [state])
        tokens = int((rows[0] >= 0).sum())
        self.batches.append(StoredBatch(name, rows[0].to(device), rows[1], tokens, arguments.rest, opens))

    def run(
        self, layer: RunLayer, wanted: Collection[Point] = (), on_batch: OnBatch | None = None, *, advance: bool
    ) -> None:
        """Run the layer at this depth on every batch.

        Args:
            layer: the run of the layer.
            wanted: canonical points to read.
            on_batch: gets the points of each batch.
            advance: replace the states by those of the next depth.
        """
        keys = [key for batch in self.batches for key in (f"{batch.name}-arguments", self._key(batch, self.depth))]
        for position, batch in enumerate(self.batches):
            for key in keys[2 * position + 2 : 2 * position + 4]:
                self.store.ahead(key)
            with self.clock("states"):
                tensors, (state,) = (self.store.get(key) for key in keys[2 * position : 2 * position + 2])
            with self.clock(self.part):
                out, held = layer(state, Arguments(tensors, batch.rest), wanted)
            if on_batch is not None:
                on_batch(batch, held)
            if advance:
                with self.clock("states"):
                    self._replace(batch, out)
            del state, out, held
        self.depth += advance

    def read(self, points: Mapping[int, Point], on_batch: OnBatch) -> None:
        """Read kept states of several depths, without running a layer.

        Args:
            points: depth -> the point that its states are.
            on_batch: gets the points of each batch.
        """
        for batch, following in itertools.zip_longest(self.batches, self.batches[1:]):
            with self.clock("states"):
                held = {point: self.store.get(self._key(batch, depth))[0] for depth, point in points.items()}
            for depth in points if following else ():
                self.store.ahead(self._key(following, depth))
            on_batch(batch, held)

    def keys(self) -> Sequence[str]:
        """Return the keys of the states at this depth."""
        return [self._key(batch, self.depth) for batch in self.batches]

    def restore(self, depth: int, folder: Path) -> None:
        """Replace the states by those of a greater depth that the store saved in a folder.

        Raises:
            InputError: the folder holds the states of other batches.
        """
        shapes = [self.store.get(key)[0].shape for key in self.keys()]
        for key in self.keys():
            self.store.drop(key)
        self.depth = depth
        for key, shape in zip(self.keys(), shapes, strict=True):
            if not self.store.load(key, folder) or self.store.get(key)[0].shape != shape:
                raise InputError(f"--resume: {folder} holds the states of other batches; start anew with --overwrite")

    def _replace(self, batch: StoredBatch, out: Tensor) -> None:
        if self.depth not in self.kept:
            self.store.drop(self._key(batch, self.depth))
        self.store.put(self._key(batch, self.depth + 1), [out])

    def _key(self, batch: StoredBatch, depth: int) -> str:
        return f"{batch.name}-{depth:04d}"
