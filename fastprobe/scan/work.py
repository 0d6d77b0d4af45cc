"""Work of the parts of a scan in multiply-additions, for the share that a progress bar shows."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fastprobe.scan.plan import ScanPlan


def layer_work(layers: Iterable[nn.Module]) -> int:
    """Return the work of one token in some layers: one for each weight."""
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def sums_work(plan: ScanPlan) -> int:
    """Return the work of one token in the sums of a plan."""
    w = plan.moments.widths
    return sum(w[x] * w[y] for x, y in (*plan.moments.pairs, *plan.moments.pooled))


def solve_work(plan: ScanPlan) -> dict[str, int]:
    """Return the work of each source and its targets in the solve.

    A source of width d takes about d^2 (10 d + 3 F d), a target of width k about d^2 k (2 F + 3).
    """
    w, F = plan.moments.widths, plan.moments.folds
    work: dict[str, int] = {}
    for f in plan.different_fits:
        work.setdefault(f.x, (10 + 3 * F) * w[f.x] ** 3)
        work[f.x] += sum((2 * F + 3) * w[f.x] ** 2 * w[y] for y in f.targets)
    return work


def score_work(plan: ScanPlan) -> int:
    """Return the work of one token in the scores of a plan: whitened coordinates, two maps a fit or three."""
    w, maps = plan.moments.widths, 2 if plan.moments.folds > 1 else 1
    whitening = sum(w[x] ** 2 for x in {f.x for f in plan.fits})
    return whitening + sum(w[f.x] * (maps * w[f.y] + (w[f.unit] if f.unit else 0)) for f in plan.different_fits)
