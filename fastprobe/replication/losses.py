"""The held-out losses of models that were trained side by side, as one result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastprobe.pretraining import Trained
from fastprobe.replication.section import Subject, decided
from fastprobe.results import figure
from fastprobe.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNIGRAM = "unigram"


@dataclass(frozen=True, repr=False)
class VariantLosses(Result):
    """One row a variant: where its held-out loss ended, its costs and its seed; ``failure`` says why there are none."""

    kind: ClassVar[str] = "variants"
    metric: ClassVar[str] = "held_out_loss"

    def plot(self, path: str | Path | None = None, metric: str = "held_out_loss") -> Figure:
        """A dot a variant, and the unigram loss as a line."""
        rows = self.rows_with(metric)[::-1]
        drawing, (axes,) = figure.panels(self.title)
        figure.dots(
            axes,
            [row[metric] for row in rows],
            [2 * (row.get(f"{metric}_se") or 0.0) for row in rows],
            x_label=metric,
            names=[row["variant"] for row in rows],
            level=figure.Level(self.unigram, UNIGRAM),
            marker_size=5.0,
        )
        return figure.saved(drawing, path)

    def row(self, variant: str) -> dict[str, Any] | None:
        """The row of a variant, if it was trained."""
        return next((row for row in self.rows if row["variant"] == variant), None)

    def unfit(self, *variants: str) -> str:
        """Why these cannot be compared: one was not trained, or learnt nothing beyond frequencies. Else nothing."""
        for variant in variants:
            row = self.row(variant)
            if row is None:
                return f"{variant} was not trained."
            if row["failure"]:
                return f"{variant} was not trained to its end: {row['failure']}."
            if not self.learnt(variant):
                losses = f"{self.written(variant)}, {UNIGRAM} {self.unigram:.3f}"
                return f"{variant} has learnt too little to be compared: {losses}."
        return ""

    def learnt(self, variant: str) -> bool | None:
        """Whether the loss of a variant is below the unigram loss; ``None`` where that cannot be told from noise."""
        return decided(*self.contrast({UNIGRAM: 1, variant: -1}))

    @property
    def unigram(self) -> float:
        """The loss of predicting each held-out token by its frequency; every variant has the same tokens."""
        return next(row["unigram_loss"] for row in self.rows if not row["failure"])

    def contrast(self, weights: Mapping[str, float]) -> tuple[float, float]:
        """A weighted sum of losses and its standard error, as of losses that are independent.

        They are not: all are of the same tokens, so that the error of a difference is less. What is gained is kept in
        reserve for what another seed would give, which one training does not tell.
        """
        total, variance = 0.0, 0.0
        for name, weight in weights.items():
            row = self.row(name)
            loss, error = (self.unigram, 0.0) if row is None else (row["held_out_loss"], row["held_out_loss_se"])
            total, variance = total + weight * loss, variance + (weight * error) ** 2
        return total, math.sqrt(variance)

    def written(self, variant: str) -> str:
        """The loss of a variant as the page writes it."""
        row = self.row(variant)
        assert row is not None
        return f"{variant} {row['held_out_loss']:.3f} ± {row['held_out_loss_se']:.3f}"


def losses_of(subject: Subject) -> VariantLosses:
    """The losses of the variants of a subject."""
    return VariantLosses({}, [_row(trained) for trained in subject.variants])


def _row(trained: Trained) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": trained.variant, "failure": trained.failure}
    if trained.result is None:
        return row | dict.fromkeys(("held_out_loss", "held_out_loss_se"))
    config, last = trained.result.config, trained.result.rows[-1]
    row |= {key: last[key] for key in ("held_out_loss", "held_out_loss_se")}
    row |= {
        key: config[key]
        for key in ("unigram_loss", "layers", "steps", "learning_rate", "seed", "threads", "training_flops")
    }
    return row | config["costs"]
