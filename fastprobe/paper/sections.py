"""The sections of the page, in order."""

from __future__ import annotations

from fastprobe.paper import features, ffns, nonlinearity, reordering, skipless
from fastprobe.paper.section import Section

SECTIONS: tuple[Section, ...] = (
    nonlinearity.SECTION,
    reordering.SWAPS,
    reordering.SHUFFLED,
    reordering.REPETITION,
    ffns.SECTION,
    skipless.SECTION,
    features.SECTION,
)
