"""The table of a probe."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from fastprobe.probes.probe import Probes
from fastprobe.regression.evidence import tokens_for_map
from fastprobe.results.table import cell, empty_table, number_columns, spread, text_columns

STATES = 13
"""States that fit, in whole percent."""

NAME = 20
"""Letters of an order's name that fit in the column of tasks."""


def probes_table(probes: Probes, metric: str = "r2_cv") -> Table:
    """Return a table with one line an order and task: the metric of each state in percent, and the expected state.

    Args:
        probes: the result.
        metric: the column to show. If not all states fit, those shown are evenly spaced. Tasks with too few tokens
            show no number.
    """
    matrices = [probes.matrix(metric, order) for order in probes.orders]
    shown = spread(max(matrix.shape[1] for matrix in matrices), STATES)
    names = {row["order"]: row["name"] for row in probes.rows}
    columns = probes.config.get("columns", 0)
    few = {row["task"] for row in probes.rows if columns and tokens_for_map(row["tokens"], columns)}
    table = empty_table()
    text_columns(table, f"{metric}, %")
    number_columns(table, *map(str, shown), "learnt at")
    for number, (order, matrix) in enumerate(zip(probes.orders, matrices, strict=True)):
        if len(matrices) > 1:
            if number:
                table.add_row()
            table.add_row(("the model itself" if not number else names[order] or order)[:NAME])
        expected = probes.expected_state(order)
        for task, values in zip(probes.tasks, matrix, strict=True):
            if task in few:
                values, centre = np.full_like(values, np.nan), None
            else:
                centre = expected[task]
            percent = [None if k >= len(values) or np.isnan(values[k]) else 100 * values[k] for k in shown]
            table.add_row(task, *(cell(value, 0) for value in percent), cell(centre, 2))
    return table
