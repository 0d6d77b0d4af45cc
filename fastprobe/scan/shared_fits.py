"""Fits of a scan, shared out among processes: each solves and scores the fits of its sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastprobe.runtime.distributed import Ranks
from fastprobe.scan.plan import ElementFit, ScanPlan


def shared_fits(plan: ScanPlan, ranks: Ranks) -> list[ElementFit]:
    """Return the fits of the sources that this process solves, in the order of the rows.

    The costliest source goes first, each to the process with the least to do. With widths d of the source and k_t of
    its targets, its cost is taken as d (d + Σ_t k_t) d.

    Args:
        plan: plan of the scan.
        ranks: the processes.
    """
    widths = plan.moments.widths
    costs: dict[str, int] = {}
    for f in plan.fits:
        costs.setdefault(f.x, widths[f.x] ** 3)
        costs[f.x] += widths[f.x] ** 2 * sum(widths[target] for target in f.targets)
    loads = [0] * ranks.size
    owners: dict[str, int] = {}
    for source in sorted(costs, key=lambda source: -costs[source]):
        owners[source] = loads.index(min(loads))
        loads[owners[source]] += costs[source]
    return [f for f in plan.fits if owners[f.x] == ranks.rank]


def gather_rows(
    plan: ScanPlan, fits: Sequence[ElementFit], rows: Sequence[dict[str, Any]], ranks: Ranks
) -> list[dict[str, Any]]:
    """Return the rows of all processes, in the order of the plan.

    Args:
        plan: plan of the scan.
        fits: the fits of this process.
        rows: their rows.
        ranks: the processes.
    """
    found = {f: row for of_process in ranks.gather([*zip(fits, rows, strict=True)]) for f, row in of_process}
    return [found[f] for f in plan.fits]
