"""Outputs of elements over a stream: their means over all tokens, and those of a few sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.points import Element, Point
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints

SEQUENCES = 32
"""Sequences whose outputs are kept to draw from."""


def mean_outputs(
    model: nn.Module, points: ModelPoints, batches: Iterable[Mapping[str, Any]], elements: Sequence[Element]
) -> dict[Element, Tensor]:
    """The mean output (width,) float64 of every element over the tokens that are no padding."""
    sums: dict[Point, Tensor] = {}
    tokens = 0
    for outputs in _outputs(model, points, batches, elements):
        tokens += len(next(iter(outputs.values())))
        for point, rows in outputs.items():
            total = rows.double().sum(0)
            sums[point] = sums[point] + total if point in sums else total
    return {element: sums[points.canonical(element.y)] / tokens for element in elements}


def sampled_outputs(
    model: nn.Module,
    points: ModelPoints,
    batches: Iterable[Mapping[str, Any]],
    elements: Sequence[Element],
    *,
    seed: int = 0,
    size: int = SEQUENCES,
) -> tuple[dict[Element, Tensor], Tensor]:
    """Outputs of every element at the tokens of a sample of sequences, padding left out.

    Args:
        model: a Hugging Face model.
        points: where its points are.
        batches: gone through once; the model runs on the sample only.
        elements: whose outputs.
        seed: of the sample, which depends on what the sequences are and not on their batches.
        size: sequences in it.

    Returns:
        ``(entries, width)`` for every element, and ``(entries,)`` int64: the number of the sequence that each is of.

    Raises:
        InputError: the stream has fewer than two sequences.
    """
    sample = SequenceSample(size, seed)
    sequences = largest = 0
    for batch in batches:
        count = len(batch["input_ids"])
        sample.add(batch, torch.arange(sequences, sequences + count))
        sequences, largest = sequences + count, max(largest, count)
    if len(sample) < 2:
        raise InputError(f"mode: resample takes outputs from other sequences, and of those there are {len(sample)}")
    picked = list(sample.batches(largest))
    kept: dict[Point, list[Tensor]] = {}
    for outputs in _outputs(model, points, [batch for batch, _ in picked], elements):
        for point, rows in outputs.items():
            kept.setdefault(point, []).append(rows)
    numbers = [number.repeat_interleave(batch["attention_mask"].sum(1)) for batch, number in picked]
    return {element: torch.cat(kept[points.canonical(element.y)]) for element in elements}, torch.cat(numbers)


@torch.no_grad()
def _outputs(
    model: nn.Module, points: ModelPoints, batches: Iterable[Mapping[str, Any]], elements: Sequence[Element]
) -> Iterator[dict[Point, Tensor]]:
    """Batch by batch the output (tokens, width) at the point of every element, padding left out."""
    wanted = {points.canonical(element.y): element.start for element in elements}
    found: dict[Point, Tensor] = {}
    mask = torch.zeros(0)

    def on_layer(layer: int, held: Mapping[Point, Tensor]) -> None:
        found.update({point: held[point][mask] for point, at in wanted.items() if at == layer})

    with ModuleRecorder(model, points, points.needed_until(wanted.items()), on_layer) as recorder:
        for batch in batches:
            batch = to_device(batch, device_of(model))
            mask = batch["attention_mask"].bool()
            recorder.run(batch)
            yield found
            found.clear()
