"""The result of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastprobe.pretraining.legend import COLUMNS
from fastprobe.results.result import Result
from fastprobe.results.views import Line, Profiles, ReferenceLine, View


@dataclass(frozen=True, repr=False)
class Pretraining(Result):
    """Training and held-out losses of a model over the steps of its training.

    Columns of a row; losses are in nats:

    * ``step``: steps of the optimiser so far.
    * ``tokens``: training tokens so far.
    * ``loss``: mean training loss since the row before.
    * ``held_out_loss``: loss of masked tokens in sequences that are not trained on.
    * ``held_out_loss_se``: its standard error over sequences.

    The configuration holds ``unigram_loss``, the held-out loss of predicting each token by its frequency.
    """

    kind: ClassVar[str] = "pretraining"
    metric: ClassVar[str] = "held_out_loss"
    columns = COLUMNS

    def views(self, metric: str) -> list[View]:
        """Return the losses over steps, and the unigram loss as a line."""
        rows = self.rows_with(metric)
        losses = Line([row[metric] for row in rows], metric, x=[row["step"] for row in rows])
        return [Profiles([losses], "step", metric, reference=ReferenceLine(self.config["unigram_loss"], "unigram"))]
