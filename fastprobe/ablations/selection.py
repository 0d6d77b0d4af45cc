"""Check and expand what a user asks to ablate: elements, modes and sets of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastprobe.errors import InputError
from fastprobe.models.edits import EDITABLE
from fastprobe.models.points import ELEMENTS, select_elements, select_layers
from fastprobe.orders.arguments import iterable

MODES = ("zero", "mean", "resample", "random_init", "linear", "identity")
SWEEPS = ("each", "forward", "backward")


def select_editable(elements: str | Sequence[str], available: Sequence[str]) -> list[str]:
    """Return the requested elements.

    Args:
        elements: one name or several.
        available: elements of the model.

    Raises:
        InputError: an element cannot be replaced, the model does not have it, or none is named.
    """
    names = [elements] if isinstance(elements, str) else elements
    editable = ", ".join(EDITABLE)
    for name in names:
        if isinstance(name, str) and name in ELEMENTS and name not in EDITABLE:
            raise InputError(f"elements: {name!r} has no output of its own to replace; those that have are {editable}")
    if not names:
        raise InputError(f"elements: there is nothing to ablate; name some of {editable}")
    return select_elements(names, [name for name in available if name in EDITABLE])


def select_modes(mode: str | Sequence[str]) -> list[str]:
    """Return the requested modes, each once.

    Raises:
        InputError: a mode is unknown, or none is named.
    """
    modes = [mode] if isinstance(mode, str) else list(dict.fromkeys(mode))
    for name in modes:
        if name not in MODES:
            raise InputError(f"mode: {name!r} is not one of {', '.join(MODES)}")
    if not modes:
        raise InputError(f"mode: there is none; name some of {', '.join(MODES)}")
    return modes


def select_layer_sets(layers: str | Iterable[int] | Iterable[Iterable[int]], depth: int) -> list[list[int]]:
    """Return the sets of layers that are edited together, each sorted.

    Args:
        layers: a sweep, one set or several sets.
        depth: layers of the model.

    Raises:
        InputError: the sweep is unknown, a set is empty, or the model does not have a layer.
    """
    if isinstance(layers, str):
        sweeps = {
            "each": [[layer] for layer in range(depth)],
            "forward": [list(range(layer + 1)) for layer in range(depth)],
            "backward": [list(range(layer, depth)) for layer in range(depth)],
        }
        if layers not in sweeps:
            raise InputError(f"layers: {layers!r} is not one of {', '.join(SWEEPS)}, nor a set of layers")
        return sweeps[layers]
    asked: list[Any] = list(iterable(layers, "layers", "layers"))
    is_one_set = not any(isinstance(one, Iterable) and getattr(one, "ndim", 1) for one in asked)
    chosen = [select_layers(one, depth) for one in ([asked] if is_one_set else asked)]
    if not all(chosen):
        raise InputError("layers: a set of layers is empty; name at least one layer")
    return [list(one) for one in dict.fromkeys(map(tuple, chosen))]
