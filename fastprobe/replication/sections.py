"""The sections of the page, in order."""

from __future__ import annotations

from collections.abc import Sequence

from fastprobe.pretraining import TrainedVariant
from fastprobe.replication import features, ffns, nonlinearity, reordering, skipless, unskipped, variants
from fastprobe.replication.section import Section

SECTIONS: tuple[Section, ...] = (
    nonlinearity.SECTION,
    reordering.SWAPS,
    reordering.SHUFFLED,
    reordering.REPETITION,
    ffns.SECTION,
    skipless.SECTION,
    features.SECTION,
)
"""Those of one model."""


def comparisons(trained: Sequence[TrainedVariant]) -> tuple[Section, ...]:
    """Those that compare models trained from scratch."""
    if not trained:
        return ()
    return tuple(filter(None, (variants.section(list(trained)), unskipped.section(list(trained)))))
