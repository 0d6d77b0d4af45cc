"""Picture, tables and notes of a linearity scan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

import fastprobe as fp
from fastprobe.cli.app import note, stdout
from fastprobe.cli.output import note_few_tokens
from fastprobe.scan.checkpoint import FILE
from fastprobe.scan.summary import headline, summary_table
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
    scan.plot(out / PICTURE, headline(scan.rows))
    if json:
        typer.echo(scan.to_json())
    else:
        stdout.print(summary_table(scan.rows))
        if full:
            stdout.print()
            stdout.print(linearity_table(scan.rows))
    if quiet:
        return
    noted = Counter(row["note"] for row in scan.rows if row["note"])
    for remark, count in noted.items():
        note(f"* {count} of {len(scan.rows)} rows: {remark}")
    for name, layers in scan.config.get("missing", {}).items():
        note(f"no {name} in layers {layers}: it is no tensor of one module there (fastprobe points)")
    if not full and not json:
        note("--full prints every row" + (", marked * if one of these notes applies" if noted else ""))
    if scan.moments is not None and not scan.remark:
        plan = scan.moments.plan
        note_few_tokens(scan.moments.tokens, max(plan.widths[x] for x, y in plan.pairs if x == y))
    files = ["scores.json", "scores.csv", *([FILE] if (out / FILE).exists() else []), PICTURE]
    note(f"{out}: {', '.join(files)}")
