"""Small inputs of a model, for an observation of its modules: token ids, images, sound or spectrograms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fastprobe.data.checks import INPUTS
from fastprobe.models.calling import arguments_of, device_of

SHAPE = (2, 16)
"""Sequences and tokens of an observation."""

FRAMES = 64
"""Frames of a spectrogram where the configuration names no number."""


def input_of(module: nn.Module) -> str:
    """Return the key of the batch that a model, or a part of one, reads: ``input_ids``, ``pixel_values``, ..."""
    (names, takes_all), main = arguments_of(module), getattr(module, "main_input_name", INPUTS[0])
    taken = [name for name in (main, *INPUTS) if name in INPUTS and name in names]
    return taken[0] if taken else main if takes_all and main in INPUTS else INPUTS[0]


def reads_inputs(module: nn.Module) -> bool:
    """Return whether a part of a model takes inputs of a batch by itself."""
    return getattr(module, "config", None) is not None and not arguments_of(module)[0].isdisjoint(INPUTS)


def example_batches(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield batches that a model may run, the likeliest first. Nothing is yielded for inputs of unknown shape."""
    key = input_of(module)
    if key == INPUTS[0]:
        yield text_batch(module)
        return
    generator = torch.Generator().manual_seed(0)
    device, dtype = device_of(module), _dtype_of(module)
    for shape in _shapes(key, module.config):
        yield {key: torch.randn(SHAPE[0], *shape, generator=generator).to(device, dtype)}


def text_batch(model: nn.Module) -> dict[str, Any]:
    """Return sequences of token ids without special ones, for an observation."""
    config: Any = model.config
    try:
        rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        rows = getattr(config, "vocab_size", None) or 100
    special = set()
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        special |= {
            value for key, value in vars(part).items() if key.endswith(("_id", "_index")) and type(value) is int
        }
    plain = [token for token in range(min(rows, 128 + len(special))) if token not in special] or [0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(plain)[torch.randint(len(plain), SHAPE, generator=generator)]
    device = device_of(model)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def _shapes(key: str, config: Any) -> Iterator[Sequence[int]]:
    """Yield shapes of one input that a configuration suggests."""
    size, bins = getattr(config, "image_size", None), getattr(config, "num_mel_bins", None)
    if key == "pixel_values" and size:
        height, width = (size, size) if isinstance(size, int) else size
        image = (getattr(config, "num_channels", 3), height, width)
        yield (config.num_frames, *image) if getattr(config, "num_frames", None) else image
    if key == "input_values" and hasattr(config, "conv_stride"):
        yield (math.prod(config.conv_stride) * (SHAPE[1] + 4),)
    if bins and getattr(config, "max_source_positions", None):
        yield bins, 2 * config.max_source_positions
    widths = [getattr(config, name, None) for name in ("feature_projection_input_dim", "input_feat_per_channel")]
    for width in (*widths, bins):
        if key != "pixel_values" and isinstance(width, int):
            yield getattr(config, "max_length", None) or FRAMES, width


def _dtype_of(module: nn.Module) -> torch.dtype:
    kinds = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    return next(kinds, torch.float32)
