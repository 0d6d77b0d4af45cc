"""Select the reader of single layers for a model, and refuse models whose layers need more than one state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask, content_of
from fastprobe.errors import FastprobeError, UnsupportedModelError
from fastprobe.models.calling import body_of, evaluating, first_tensor, without_cache
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.layer_reader import LayerReader, ModuleLayerReader
from fastprobe.models.protocols import Recorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.layer_reader import UnpaddedLayerReader
from fastprobe.models.unpadded.recorder import UnpaddedRecorder


def layer_reader_for(recorder: type[Recorder]) -> type[LayerReader]:
    """Return the reader of single layers that runs a model as a recorder does."""
    return UnpaddedLayerReader if recorder is UnpaddedRecorder else ModuleLayerReader


@torch.no_grad()
def one_by_one_refusal(
    model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], kind: type[LayerReader]
) -> str | None:
    """Return why the layers of a model cannot run one at a time on stored states, else ``None``.

    Two small batches go through the model layer by layer, each layer on both before the next. The outputs of the first
    are compared with those of the model's own forward pass.

    Args:
        model: the Hugging Face model.
        points: its resolved points.
        batch: the first sequences of those to run, on the model's device.
        kind: the reader that is to run the layers.
    """
    if kind is UnpaddedLayerReader:  # it knows every module of the model
        return None
    content = content_of(batch)
    other = {key: value.flip(1) if value is content else value for key, value in batch.items()}
    try:
        outputs, handed_on = _outputs(model, points, batch)
        if handed_on is not None:
            return f"layer {handed_on} passes more than one state on, and one is stored"
        found = _one_by_one(kind, model, points, batch, other, outputs)
        for layer, (state, expected) in enumerate(zip(found, outputs, strict=True)):
            mask = attended_mask(batch)
            error = (state - expected)[mask].double().norm() / expected[mask].double().norm().clamp(min=1e-30)
            if not float(error) <= TOLERANCE.get(expected.dtype, 1e-5):
                return (
                    f"layer {layer} run on its input alone gives another output (relative error {float(error):.1e}): "
                    "it looks back at other layers"
                )
    except FastprobeError as error:
        return str(error)
    except Exception as error:  # of the model's code, which may raise anything for arguments it does not expect
        said = str(error).partition("\n")[0]
        return f"its layers cannot run one at a time ({type(error).__name__}: {said})"
    return None


def _one_by_one(
    kind: type[LayerReader],
    model: nn.Module,
    points: ModelPoints,
    batch: Mapping[str, Any],
    other: Mapping[str, Any],
    outputs: list[Tensor],
) -> Iterator[Tensor]:
    """Yield the output of each layer on a batch, after which the layer runs on another batch too."""
    with kind(model, points) as reader:
        (state, arguments), (other_state, other_arguments) = reader.stem(batch), reader.stem(other)
        for layer, expected in enumerate(outputs):
            with reader.layer(layer) as run:
                before = state.clone()
                yield run(state, arguments, ())[0]
                if not torch.equal(before, state):  # the state may be read again, for another group of elements
                    raise UnsupportedModelError(f"layer {layer} writes into its input")
                other_state = run(other_state, other_arguments, ())[0]
            state = expected


def _outputs(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> tuple[list[Tensor], int | None]:
    """Return the output of every layer, and the first layer that hands the next one more than that; ``None`` if none.

    They come from one forward pass of the model.
    """
    outputs: list[Tensor] = []
    others: list[Tensor] = []  # of the last layer
    handed_on: list[int] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(one is tensor for one in _tensors((args, kwargs)) for tensor in others):
            handed_on.append(len(outputs) - 1)

    def after(_: nn.Module, __: Any, result: Any) -> None:
        state = first_tensor(result)
        outputs.append(state.clone())  # the next layer may write into it
        others[:] = [tensor for tensor in _tensors(result) if tensor is not state]

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in points.layers]
    handles += [layer.register_forward_hook(after) for layer in points.layers]
    body = body_of(model)
    try:
        with evaluating(model):
            body(**batch, **without_cache(body))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, handed_on[0] if handed_on else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
