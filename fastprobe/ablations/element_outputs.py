"""Outputs of elements over a stream: their means over all tokens, and a sample of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask, counted_mask
from fastprobe.data.sample import SequenceSample
from fastprobe.data.shares import Shares
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.points import Element, Point
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.runtime.distributed import Ranks

SEQUENCES = 32
"""Sequences in a sample of outputs."""


def mean_outputs(
    model: nn.Module, points: ModelPoints, batches: Iterable[Mapping[str, Any]], elements: Sequence[Element]
) -> dict[Element, Tensor]:
    """Return the mean output ``(width,)`` float64 of every element over the tokens that count."""
    ranks = Ranks.here()
    sums: dict[Point, Tensor] = {}
    tokens = 0
    shared = (batch for share in Shares(batches, ranks).rounds() for batch in share.batches)
    for outputs in _outputs(model, points, shared, elements):
        tokens += len(next(iter(outputs.values())))
        for point, rows in outputs.items():
            total = rows.double().sum(0)
            sums[point] = sums[point] + total if point in sums else total
    everyone = [found for found in ranks.gather({point: total.cpu() for point, total in sums.items()}) if found]
    tokens = sum(ranks.gather(tokens))
    device = device_of(model)

    def mean(point: Point) -> Tensor:
        return torch.stack([found[point] for found in everyone]).sum(0).to(device) / tokens

    return {element: mean(points.canonical(element.y)) for element in elements}


def sampled_outputs(
    model: nn.Module,
    points: ModelPoints,
    batches: Iterable[Mapping[str, Any]],
    elements: Sequence[Element],
    *,
    seed: int = 0,
    size: int = SEQUENCES,
) -> tuple[dict[Element, Tensor], Tensor]:
    """Return the outputs of every element at the tokens that count of a sample of sequences.

    Args:
        model: a Hugging Face model.
        points: its points.
        batches: read once. The model runs on the sample only.
        elements: what to read the output of.
        seed: of the sample, which depends on the content of the sequences and not on their batches.
        size: sequences in the sample.

    Returns:
        ``(entries, width)`` for every element, and the sequence number of each entry, ``(entries,)`` int64.

    Raises:
        InputError: the stream has fewer than two sequences.
    """
    ranks = Ranks.here()
    sample = SequenceSample(size, seed)
    largest = 0
    for share in Shares(batches, ranks).rounds():
        for batch in share.batches:
            count = len(attended_mask(batch))
            numbers = share.first + share.step * torch.arange(count)
            sample.add(batch, numbers, share.first, share.step)
            largest = max(largest, count)
    sample.gather_(ranks)
    largest = max(ranks.gather(largest))
    if len(sample) < 2:
        raise InputError(f"mode: resample needs 2 sequences or more, got {len(sample)}")
    sampled = list(sample.batches(largest))
    kept: dict[Point, list[Tensor]] = {}
    for outputs in _outputs(model, points, [batch for batch, _ in sampled], elements):
        for point, rows in outputs.items():
            kept.setdefault(point, []).append(rows)
    sequence = [number.repeat_interleave(counted_mask(batch).sum(1)) for batch, number in sampled]
    return {element: torch.cat(kept[points.canonical(element.y)]) for element in elements}, torch.cat(sequence)


@torch.no_grad()
def _outputs(
    model: nn.Module, points: ModelPoints, batches: Iterable[Mapping[str, Any]], elements: Sequence[Element]
) -> Iterator[dict[Point, Tensor]]:
    """Yield the outputs ``(tokens, width)`` of every element for each batch, at the tokens that count."""
    wanted = {points.canonical(element.y): element.start for element in elements}
    found: dict[Point, Tensor] = {}
    mask = torch.zeros(0)

    def on_layer(layer: int, held: Mapping[Point, Tensor]) -> None:
        found.update({point: held[point][mask] for point, at in wanted.items() if at == layer})

    with ModuleRecorder(model, points, points.needed_until(wanted.items()), on_layer) as recorder:
        for batch in batches:
            batch = to_device(batch, device_of(model))
            mask = counted_mask(batch)
            recorder.run(batch)
            yield found
            found.clear()
