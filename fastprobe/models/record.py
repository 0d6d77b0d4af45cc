"""Read points during a model's own forward pass, and stop it after the last layer that is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.points import Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.ops.products import FastLinear

OnLayer = Callable[[int, Mapping[Point, Tensor]], None]


class _Stop(BaseException):
    """Leaves the forward pass after the last layer that is needed; no handler of ``Exception`` may hold it up."""


class Recorder:
    """Reads canonical points of a model while it runs, layer by layer, keeping each only as long as it is needed.

    Used as a context manager: hooks are on the model inside it, and the model is in evaluation mode; both are put back
    on every exit.

    Args:
        model: the Hugging Face model.
        points: where its points are.
        wanted: canonical point -> the last layer at whose end it is still needed.
        on_layer: called at the end of every layer with (layer, the points held), each ``(batch, length, width)``.
    """

    def __init__(self, model: nn.Module, points: ModelPoints, wanted: Mapping[Point, int], on_layer: OnLayer):
        self.model = model
        self.points = points
        self.wanted = dict(wanted)
        self.on_layer = on_layer
        self.last_layer = max(wanted.values())
        self.held: dict[Point, Tensor] = {}
        body = getattr(model, "base_model", model)
        self._body = body
        self._fast = FastLinear()
        self._extra = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}

    def __enter__(self) -> Recorder:
        self._stack = ExitStack()
        self._stack.enter_context(evaluating(self.model))
        for index, layer in enumerate(self.points.layers[: self.last_layer + 1]):
            for name, place in self.points.places.items():
                point = self.points.canonical(Point(name, index))
                if point in self.wanted and point.layer == index:
                    self._hook(layer.get_submodule(place.module), place.output, point)
            handle = layer.register_forward_hook(self._end_of(index))
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *exc: object) -> None:
        self.held.clear()
        self._stack.close()

    def rows_of(self, mask: Tensor, values: Tensor) -> Tensor:
        """One number a sequence as one for each row of the points, -1 where the row is padding.

        Args:
            mask: ``(batch, length)`` bool, tokens that are no padding.
            values: ``(batch,)``.

        Returns:
            ``(rows,)``, for the points reshaped to ``(rows, width)``.
        """
        return torch.where(mask, values[:, None], -1).flatten()

    def run(self, batch: Mapping[str, Any]) -> None:
        """One forward pass of the model without its head, up to the last layer that is needed; labels are left out."""
        self.held.clear()
        batch = without_labels(batch)
        try:
            with torch.no_grad(), self._fast:
                self._body(**batch, **self._extra)
        except _Stop:
            pass
        finally:
            self.held.clear()

    def _hook(self, module: nn.Module, output: bool, point: Point) -> None:
        def on_output(_: nn.Module, __: Any, result: Any) -> None:
            self.held[point] = first_tensor(result)

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.held[point] = first_input(args, kwargs)

        handle = (
            module.register_forward_hook(on_output)
            if output
            else module.register_forward_pre_hook(on_input, with_kwargs=True)
        )
        self._stack.callback(handle.remove)

    def _end_of(self, layer: int) -> Callable[..., None]:
        def on_output(_: nn.Module, __: Any, result: Any) -> None:
            with self._fast.suspended():
                self.on_layer(layer, self.held)
            for point in [p for p in self.held if self.wanted[p] <= layer]:
                del self.held[point]
            if layer == self.last_layer:
                raise _Stop

        return on_output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; what was in training mode is put back on every exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one: what was in evaluation mode inside a training model stays so
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next(model.parameters()).device


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden state among a module's arguments."""
    return args[0] if args else kwargs["hidden_states"]


def first_tensor(result: Any) -> Tensor:
    """The hidden state in a module's result: the result itself or the first of a tuple (Transformers 4 and 5)."""
    return result if isinstance(result, Tensor) else result[0]


def without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as a model without its head takes it."""
    return {key: value for key, value in batch.items() if key != "labels"}


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def needed_until(points: ModelPoints, uses: Iterable[tuple[Point, int]]) -> dict[Point, int]:
    """For :class:`Recorder`: the points to read, with sums replaced by their parts, and how long each is needed."""
    until: dict[Point, int] = {}
    for point, layer in uses:
        for part in points.parts(point) or (point,):
            until[part] = max(until.get(part, -1), layer, part.layer)
    return until
