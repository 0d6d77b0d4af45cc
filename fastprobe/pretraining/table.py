"""Tables of a training: what the model costs, and how its losses fell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.results.table import cell, empty_table, number_columns, text_columns


def costs_table(config: dict[str, Any]) -> Table:
    """Return a table of parameters, operations and steps of a trained model, beside BERT of the requested size."""
    table = empty_table()
    text_columns(table, "")
    number_columns(table, "parameters", "in layers", "FLOP/token", "steps")
    ours, theirs = config["costs"], config["costs_of_bert"]
    keys = ("parameters", "layer_parameters", "flops_per_token")
    table.add_row(config["variant"], *(f"{ours[key]:,}" for key in keys), f"{config['steps']:,}")
    table.add_row("bert", *(f"{theirs[key]:,}" for key in keys), f"{config['steps_asked']:,}")
    ratio = config["steps"] / config["steps_asked"]
    table.add_row("ratio", *(f"{ours[key] / theirs[key]:.4f}" for key in keys), f"{ratio:.4f}")
    return table


def losses_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line a record of a training."""
    table = empty_table()
    number_columns(table, "step", "tokens", "loss", "held-out", "± se")
    for row in rows:
        losses = (row[key] for key in ("loss", "held_out_loss", "held_out_loss_se"))
        table.add_row(f"{row['step']:,}", f"{row['tokens']:,}", *(cell(loss, 3) for loss in losses))
    return table
