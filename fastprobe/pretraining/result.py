"""The result of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fastprobe.results import figure
from fastprobe.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def plot(self, path: str | Path | None = None, metric: str = "held_out_loss") -> Figure:
        """The losses over steps, and the unigram loss as a line."""
        rows = self.rows_with(metric)
        drawing, (axes,) = figure.panels(self.title)
        loss = figure.Line([row[metric] for row in rows], x=[row["step"] for row in rows])
        unigram = figure.ReferenceLine(self.config["unigram_loss"], "unigram")
        figure.lines(axes, [loss], x_label="step", y_label=metric, reference=unigram, legend_beside=False)
        return figure.save_figure(drawing, path)
