"""Options that commands share one by one, and how their values are read."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models.skip_scale import PARTS

BOTH_PARTS = ",".join(PARTS)

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results that --out holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress and no notes.")]
Alpha = Annotated[float, typer.Option(help="Ridge penalty.")]
Full = Annotated[bool, typer.Option("--full", help="After the summary, print a row for each element and layer.")]
DrawnMetric = Annotated[
    str, typer.Option(help="Column to draw; auto: delta_loss, or relative_l2 for a model without a head.")
]
StackName = Annotated[
    str | None, typer.Option("--stack", help="Stack of layers, as encoder or decoder; by default the longest.")
]
SkipScale = Annotated[
    str | None, typer.Option(help="Scale skip connections: 0 cuts all; 3=0,4=0.5 scales those of layers 3 and 4.")
]
SkipParts = Annotated[str, typer.Option(help="Skip connections to scale in a layer: attention, ffn or both.")]
TrainedLayers = Annotated[int, typer.Option("--layers", help="Layers of BERT.")]
HiddenSize = Annotated[int, typer.Option(help="Width of the hidden states.")]
VocabSize = Annotated[int, typer.Option(help="Tokens of the tokenizer that is trained.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Peak, before linear decay to zero. By default 1e-3; for attention-for-ffn 3e-4; for linear-attention and "
        "no-skip 1e-4."
    ),
]
TrainingSeed = Annotated[int, typer.Option("--seed", help="Seed of weights, order, masks and dropout.")]
Trainer = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, a field of transformers.TrainingArguments, like bf16=true.")
]


def scaled_skips(model: Any, scale: str | None, parts: str) -> AbstractContextManager[Any]:
    """Scale the skip connections of a model within a block, as ``--skip-scale`` and ``--skip-parts`` say."""
    if scale is None:
        return nullcontext(model)
    return fp.skip_scale(model, _scales(scale), parts=parts.split(","))


def trainer_fields(trainer: list[str] | None) -> dict[str, Any]:
    """Read the values of ``--trainer``: JSON where it is valid JSON, else text.

    Raises:
        InputError: one is not ``NAME=VALUE``.
    """
    fields: dict[str, Any] = {}
    for text in trainer or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--trainer: must be NAME=VALUE, like bf16=true, got {text!r}")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def number(option: str, text: str) -> float:
    """Read the value of an option as a number."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: must be a number, got {text!r}") from None


def integer(option: str, text: str) -> int:
    """Read the value of an option as an integer."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: must be an integer, got {text!r}") from None


def scored_sequences(text: str) -> int | str:
    """Read the value of ``--score-sequences``: an integer or ``"all"``."""
    return text if text == "all" else integer("--score-sequences", text)


def _scales(text: str) -> float | dict[int, float]:
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        return {int(layer): float(scale) for layer, scale in pairs}
    except ValueError:
        raise InputError(f"--skip-scale: must be a number or LAYER=NUMBER,..., got {text!r}") from None
