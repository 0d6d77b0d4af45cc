"""The held-out losses of trained variants as one result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fastprobe.pretraining import TrainedVariant
from fastprobe.replication.evidence import Estimate, decide
from fastprobe.replication.section import Finding, Subject, is_positive
from fastprobe.results.legend import Meaning, place
from fastprobe.results.result import Result
from fastprobe.results.views import Dots, ReferenceLine, View

UNIGRAM = "unigram"

COLUMNS = {
    "variant": place("name of the variant"),
    "held_out_loss": Meaning("loss of masked tokens in sequences that were not trained on", "nats"),
    "held_out_loss_se": place("standard error of held_out_loss over sequences", "nats"),
    "unigram_loss": place("held-out loss of predicting each token by its frequency", "nats"),
    "parameters": place("parameters of the model"),
    "layer_parameters": place("parameters of its layers"),
    "flops_per_token": place("operations of a forward pass", "FLOP per token"),
    "steps": place("steps of the optimiser"),
    "learning_rate": place("largest learning rate"),
    "seed": place("seed of the training"),
    "held_out_tokens": place("masked tokens that were scored", "tokens"),
    "failure": place("why the training failed; empty if it did not"),
}
"""Meaning and unit of the columns of a row."""


@dataclass(frozen=True, repr=False)
class VariantLosses(Result):
    """Held-out losses of trained variants, one row for each.

    A row holds ``variant``, the final ``held_out_loss`` and ``held_out_loss_se`` in nats, ``unigram_loss``, parameters,
    FLOPs, steps, learning rate and seed. ``failure`` is the reason if the training failed, else empty.
    """

    kind: ClassVar[str] = "variants"
    metric: ClassVar[str] = "held_out_loss"
    columns = COLUMNS

    def views(self, metric: str) -> list[View]:
        """Return a dot a variant, and the unigram loss as a line."""
        rows = self.rows_with(metric)
        values, errors = [row[metric] for row in rows], [2 * (row.get(f"{metric}_se") or 0.0) for row in rows]
        names = [row["variant"] for row in rows]
        return [Dots(values, errors, names, metric, reference=ReferenceLine(self.unigram, UNIGRAM))]

    def row(self, variant: str) -> dict[str, Any] | None:
        """Return the row of a variant, or ``None`` if it was not trained."""
        return next((row for row in self.rows if row["variant"] == variant), None)

    def not_comparable(self, *variants: str) -> str:
        """Return why variants cannot be compared: one failed or learnt no more than frequencies. Empty if they can."""
        for variant in variants:
            row = self.row(variant)
            if row is None:
                return f"{variant} was not trained."
            if row["failure"]:
                return f"The training of {variant} failed: {row['failure']}."
            if not self.learnt(variant):
                losses = f"{self.format_loss(variant)}, {UNIGRAM} {self.unigram:.3f}"
                return f"{variant} learnt too little for a comparison: {losses}."
        return ""

    def learnt(self, variant: str) -> bool | None:
        """Return True if the loss of a variant is below the unigram loss, or ``None`` if the difference is noise."""
        return is_positive(*self.contrast({UNIGRAM: 1, variant: -1}))

    @property
    def unigram(self) -> float:
        """Loss of predicting each masked token by its frequency. All variants have the same tokens."""
        return next(row["unigram_loss"] for row in self.rows if not row["failure"])

    def contrast(self, weights: Mapping[str, float]) -> tuple[float, float]:
        """Return a weighted sum of losses and its standard error.

            sum = Σ w_v loss_v,   se^2 = Σ (w_v se_v)^2

        The standard error treats the losses as independent. All losses are on the same tokens, so the true error of a
        difference is smaller. The margin covers part of the variance between seeds, which one training cannot measure.

        Args:
            weights: variant, or ``"unigram"`` -> its weight.
        """
        total, variance = 0.0, 0.0
        for name, weight in weights.items():
            row = self.row(name)
            loss, error = (self.unigram, 0.0) if row is None else (row["held_out_loss"], row["held_out_loss_se"])
            total, variance = total + weight * loss, variance + (weight * error) ** 2
        return total, math.sqrt(variance)

    def decide(self, difference: float, error: float, numbers: str) -> Finding:
        """Return the finding that a difference of losses is above zero; ``numbers`` is its sentence."""
        tokens = max(row.get("held_out_tokens") or 0 for row in self.rows)
        return decide(Estimate(difference, error), tokens, numbers)

    def format_loss(self, variant: str) -> str:
        """Format the loss of a variant for the page."""
        row = self.row(variant)
        assert row is not None
        return f"{variant} {row['held_out_loss']:.3f} ± {row['held_out_loss_se']:.3f}"


def losses_of(subject: Subject) -> VariantLosses:
    """Collect the losses of the variants of a subject."""
    return VariantLosses({}, [_row(trained) for trained in subject.variants])


def _row(trained: TrainedVariant) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": trained.variant, "failure": trained.failure}
    if trained.result is None:
        return row | dict.fromkeys(("held_out_loss", "held_out_loss_se"))
    config, last = trained.result.config, trained.result.rows[-1]
    row |= {key: last[key] for key in ("held_out_loss", "held_out_loss_se")}
    row |= {
        key: config[key]
        for key in (
            "unigram_loss",
            "held_out_tokens",
            "layers",
            "steps",
            "learning_rate",
            "seed",
            "threads",
            "training_flops",
        )
    }
    return row | config["costs"]
