"""Meaning and unit of the columns of an ablation."""

from __future__ import annotations

from fastprobe.reordering.legend import EFFECTS
from fastprobe.results.legend import place

COLUMNS = {
    "element": place("the part of the model that is edited; empty for the baseline"),
    "layers": place("the layers that are edited, as text"),
    "mode": place("what replaces the output of the part"),
    "edited_layers": place("the layers that are edited, as a list"),
} | EFFECTS
