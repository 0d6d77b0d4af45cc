"""What a training run gives."""

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
    """How the losses of a model fell while it was trained.

    Rows: ``step``; ``tokens`` trained on; ``loss``, the mean of the training loss since the row before;
    ``held_out_loss`` of tokens hidden in text that was not trained on, and ``held_out_loss_se`` over its sequences; in
    nats. The configuration has ``unigram_loss``, what predicting each held-out token by its frequency would give.
    """

    kind: ClassVar[str] = "pretraining"
    metric: ClassVar[str] = "held_out_loss"

    def plot(self, path: str | Path | None = None, metric: str = "held_out_loss") -> Figure:
        """The losses over steps, and the unigram loss as a line."""
        rows = self.rows_with(metric)
        drawing, (axes,) = figure.panels(self.title)
        loss = figure.Line([row[metric] for row in rows], x=[row["step"] for row in rows])
        unigram = figure.Level(self.config["unigram_loss"], "unigram")
        figure.lines(axes, [loss], x_label="step", y_label=metric, level=unigram, legend_beside=False)
        return figure.saved(drawing, path)
