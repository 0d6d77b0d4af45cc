"""Make the replacement of every element, by mode, from the unedited model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastprobe.ablations.element_outputs import mean_outputs, sampled_outputs
from fastprobe.ablations.replacements import AffineMaps, Constant, Resampled, same
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of
from fastprobe.models.element_weights import initial_weights
from fastprobe.models.points import Element, Point
from fastprobe.models.resolve import ModelPoints


@dataclass(frozen=True)
class Unedited:
    """The unedited model and its data, which replacements are made from.

    Args:
        model: the unedited model.
        points: its points.
        batches: read more than once.
        elements: what is replaced.
        widths: width of every point.
        maps: linear maps of the elements, for ``mode="linear"``.
        seed: of ``resample`` and ``random_init``.
    """

    model: nn.Module
    points: ModelPoints
    batches: Iterable[Mapping[str, Any]]
    elements: Sequence[Element]
    widths: Mapping[Point, int]
    maps: Mapping[Element, AffineMaps]
    seed: int

    def replacements(self, mode: str) -> dict[Element, Any]:
        """Return the replacement of every element: a function, or initial weights for ``random_init``.

        Raises:
            InputError: ``identity`` of an element whose input and output differ in width.
        """
        replacements = {
            "zero": self._zeros,
            "mean": self._means,
            "resample": self._samples,
            "random_init": self._initial_weights,
            "linear": self._linear_maps,
            "identity": self._identities,
        }
        return replacements[mode]()

    def _zeros(self) -> dict[Element, Any]:
        device = device_of(self.model)
        return {e: Constant(torch.zeros(self._width(e.y), device=device)) for e in self.elements}

    def _means(self) -> dict[Element, Any]:
        means = mean_outputs(self.model, self.points, self.batches, self.elements)
        return {e: Constant(mean) for e, mean in means.items()}

    def _samples(self) -> dict[Element, Any]:
        outputs, sequence = sampled_outputs(self.model, self.points, self.batches, self.elements, seed=self.seed)
        return {e: Resampled(rows, sequence, self.seed) for e, rows in outputs.items()}

    def _initial_weights(self) -> dict[Element, Any]:
        layers, layouts = self.points.layers, self.points.layouts
        return {
            e: initial_weights(layers[e.start], layouts[e.start], e.name, (self.seed, e.start)) for e in self.elements
        }

    def _linear_maps(self) -> dict[Element, Any]:
        dtype = torch.float64 if next(self.model.parameters()).dtype == torch.float64 else torch.float32
        return {e: maps.to(dtype) for e, maps in self.maps.items()}

    def _identities(self) -> dict[Element, Any]:
        for e in self.elements:
            x, y = self._width(e.x), self._width(e.y)
            if x != y:
                raise InputError(f"mode: identity needs an output as wide as its input; {e} goes from {x} to {y}")
        return dict.fromkeys(self.elements, same)

    def _width(self, point: Point) -> int:
        return self.widths[self.points.canonical(point)]
