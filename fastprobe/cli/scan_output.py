"""Picture, tables and notes of a linearity scan."""

from __future__ import annotations

from pathlib import Path

import typer

import fastprobe as fp
from fastprobe.cli.app import note, stdout
from fastprobe.cli.output import note_few_tokens
from fastprobe.scan.checkpoint import FILE
from fastprobe.scan.table import linearity_table

PICTURE = "linearity.png"


def show_scan(scan: fp.LinearityScan, out: Path, *, full: bool, json: bool, quiet: bool) -> None:
    """Draw and print a scan that is saved in a folder.

    Args:
        scan: the scan.
        out: its folder.
        full: print the table of all rows after the summary.
        json: print the JSON document instead of tables.
        quiet: print no notes.
    """
    scan.plot(out / PICTURE, "nonlinearity" if scan.rows[0]["nonlinearity"] is not None else "r2")
    if json:
        typer.echo(scan.to_json())
    else:
        stdout.print(linearity_table(scan.rows))
    if quiet:
        return
    for remark in dict.fromkeys(row["note"] for row in scan.rows if row["note"]):
        note(f"* {remark}")
    if scan.moments is not None:
        plan = scan.moments.plan
        note_few_tokens(scan.moments.tokens, max(plan.widths[x] for x, y in plan.pairs if x == y))
    note(f"{out}: scores.json, scores.csv, {FILE}, {PICTURE}")
