"""The arguments of Transformers' ``Trainer``."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from fastprobe.errors import InputError

RECORDS = 10
"""Records of the losses, and checkpoints, in a run of up to ``RECORDS * INTERVAL`` steps."""
INTERVAL = 2000
"""Largest number of steps between two records or checkpoints."""


def training_arguments(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    seed: int,
    use_cpu: bool,
    more: Mapping[str, Any],
) -> TrainingArguments:
    """Build the ``TrainingArguments`` of a pretraining run.

    Args:
        folder: folder for checkpoints.
        steps: steps of the optimiser.
        batch_size: sequences in a step of one process.
        learning_rate: peak learning rate.
        warmup: share of the steps in which the learning rate rises.
        seed: seed of weights, data order, masking and dropout.
        use_cpu: train on the CPU even if there is a GPU.
        more: further fields. They override those above.

    Raises:
        InputError: a field is unknown, or a value is invalid.
    """
    interval = max(1, min(steps // RECORDS, INTERVAL))
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": math.ceil(warmup * steps),
        "weight_decay": 0.01,
        "seed": seed,
        "use_cpu": use_cpu,
        "logging_steps": interval,
        "eval_strategy": "steps",
        "eval_steps": interval,
        "eval_on_start": True,
        "save_steps": interval,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not use_cpu and torch.cuda.is_available(),
    }
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in more.keys() - known:
        like = ", ".join(difflib.get_close_matches(name, known)) or "bf16, gradient_accumulation_steps"
        raise InputError(f"trainer: {name!r} is no field of transformers.TrainingArguments; some are {like}")
    try:
        return TrainingArguments(**(fields | dict(more)))
    except (TypeError, ValueError) as error:
        raise InputError(f"trainer: {str(error).splitlines()[0]}") from None
