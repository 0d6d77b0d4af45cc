"""Run one layer at a time on stored states, and read its points.

A :class:`~fastprobe.models.protocols.Recorder` runs all layers on one batch. A :class:`LayerReader` runs one layer on
one batch after another: the state of each batch is kept between layers, outside the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from fastprobe.data.checks import by_sequence
from fastprobe.models.calling import body_of, evaluating, first_tensor
from fastprobe.models.offloaded import weights_present
from fastprobe.models.packed_calls import packed, unpacked
from fastprobe.models.points import Point
from fastprobe.models.recorder import by_token, check_shapes
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.stack import LayerStack
from fastprobe.ops.products import FastLinear


class Arguments(NamedTuple):
    """What the layers need on one batch besides the state."""

    tensors: list[Tensor]
    rest: Any
    """Everything else; it holds no large tensor."""


RunLayer = Callable[[Tensor, Arguments, Collection[Point]], tuple[Tensor, dict[Point, Tensor]]]
"""Run of one layer: from its state, the arguments of the batch and the canonical points to read to its output and these
points. Points are the input of the layer and points inside it."""


class LayerReader(Protocol):
    """Runner of single layers, inside a ``with`` block. States have the shape that the runner chooses."""

    def __init__(self, model: nn.Module, points: ModelPoints):
        """Prepare to run layers of a Hugging Face model with resolved points."""

    def __enter__(self) -> Self:
        """Put the model in evaluation mode."""

    def __exit__(self, *exc: object) -> None:
        """Restore the mode of the model."""

    def rows_of(self, batch: Mapping[str, Any], values: Tensor) -> Tensor:
        """Return, for each row of a state, the value of its sequence; see ``Recorder.rows_of``."""

    def embedding(self) -> AbstractContextManager[Any]:
        """Bring in the weights that :meth:`stem` needs, for the time of a block."""

    def stem(self, batch: Mapping[str, Any]) -> tuple[Tensor, Arguments]:
        """Return the state that the first layer receives, and the arguments of all layers on this batch."""

    def layer(self, index: int) -> AbstractContextManager[RunLayer]:
        """Bring in the weights of a layer and give its run, for the time of a block."""


class ModuleLayerReader:
    """Reader that runs the modules of any supported model; states are ``(batch, length, width)``.

    The contract is :class:`LayerReader`.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
    """

    def __init__(self, model: nn.Module, points: ModelPoints):
        self.model, self.points = model, points
        self._fast = FastLinear()

    def __enter__(self) -> ModuleLayerReader:
        self._on_exit = ExitStack()
        self._on_exit.enter_context(evaluating(self.model))
        return self

    def __exit__(self, *exc: object) -> None:
        self._on_exit.close()

    def rows_of(self, batch: Mapping[str, Any], values: Tensor) -> Tensor:
        """Return the value of each row's sequence, -1 for rows that do not count; see ``Recorder.rows_of``."""
        return by_sequence(batch, values).flatten()

    def embedding(self) -> AbstractContextManager[Any]:
        """Bring in all weights of the model's body that are outside its layers; see ``LayerReader.embedding``."""
        inside = {module for layer in self.points.layers for module in layer.modules()}
        parts = body_of(self.model).modules()
        outside = [module for module in parts if inside.isdisjoint(module.modules())]
        return weights_present(*outside)

    @torch.no_grad()
    def stem(self, batch: Mapping[str, Any]) -> tuple[Tensor, Arguments]:
        """Run the model with layers that return their input; see ``LayerReader.stem``."""
        with self._fast:
            stack = LayerStack.record(self.model, self.points, batch)
        tensors: list[Tensor] = []
        rest = packed(stack.calls, tensors)
        return stack.stem, Arguments(tensors, rest)

    @contextmanager
    def layer(self, index: int) -> Iterator[RunLayer]:
        """Run a layer's module, with hooks at its points; see ``LayerReader.layer``."""
        layer, before = self.points.layers[index], self.points.canonical(Point("resid_pre", index))
        held: dict[Point, Tensor] = {}
        asked: set[Point] = set()
        shape: list[torch.Size] = []  # (batch, length)

        def hold(point: Point, tensor: Tensor) -> None:
            if point in asked:
                held[point] = by_token(tensor, shape[0])

        @torch.no_grad()
        def run(state: Tensor, arguments: Arguments, wanted: Collection[Point]) -> tuple[Tensor, dict[Point, Tensor]]:
            args, kwargs = unpacked(arguments.rest[index], arguments.tensors)
            asked.update(wanted)
            shape[:] = [state.shape[:-1]]
            with self._fast:
                out = first_tensor(layer(state, *args, **kwargs))
            check_shapes(self.model, held, shape[0])
            found = {before: state, **held} if before in wanted else dict(held)
            asked.clear()
            held.clear()
            return out, found

        with ExitStack() as on_exit:
            on_exit.enter_context(weights_present(layer))
            for name, place in self.points.found[index].places.items():
                point = self.points.canonical(Point(name, index))
                if point != before and point.layer == index:
                    on_exit.enter_context(place.read(layer, partial(hold, point)))
            yield run
