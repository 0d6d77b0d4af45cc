"""Meaning and unit of the columns of a training."""

from __future__ import annotations

from fastprobe.results.legend import Meaning, place

COLUMNS = {
    "step": place("steps of the optimiser so far", "steps"),
    "tokens": place("training tokens so far", "tokens"),
    "loss": Meaning("mean training loss since the row before", "nats"),
    "held_out_loss": Meaning("loss of masked tokens in sequences that are not trained on", "nats"),
    "held_out_loss_se": place("standard error of held_out_loss over sequences", "nats"),
}
