"""The sections of the page, in sequence."""

from __future__ import annotations

from collections.abc import Sequence

from fastprobe.pretraining import TrainedVariant
from fastprobe.replication import features, ffns, nonlinearity, reordering, skips_cut, trained_without_skips, variants
from fastprobe.replication.section import Section

SECTIONS: tuple[Section, ...] = (
    nonlinearity.SECTION,
    reordering.SWAPS,
    reordering.SHUFFLED,
    reordering.REPETITION,
    ffns.SECTION,
    skips_cut.SECTION,
    features.SECTION,
)
"""Sections on one model."""


def comparisons(trained: Sequence[TrainedVariant]) -> tuple[Section, ...]:
    """Return the sections that compare variants trained from scratch. Empty without variants."""
    if not trained:
        return ()
    return tuple(filter(None, (variants.section(list(trained)), trained_without_skips.section(list(trained)))))
