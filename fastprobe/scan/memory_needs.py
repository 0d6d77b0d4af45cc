"""Memory that a part of a scan takes beyond the weights, and groups of elements that fit in a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastprobe.errors import InputError
from fastprobe.models.points import Element
from fastprobe.runtime.memory import human
from fastprobe.scan.plan import ScanPlan

PlanOf = Callable[[Sequence[Element]], ScanPlan]
"""From some elements to their plan."""


def solve_bytes(plan: ScanPlan) -> int:
    """Return the bytes that the solve of one source takes, at most: its folds, and one target with its fold maps.

    A source of width d has 4 F + 6 matrices d × d, a target of width k has 2 F + 4 matrices d × k, in float64.
    """
    w, F = plan.moments.widths, plan.moments.folds
    return max(8 * w[f.x] * ((4 * F + 6) * w[f.x] + (2 * F + 4) * w[y]) for f in plan.fits for y in f.targets)


def map_bytes(plan: ScanPlan) -> int:
    """Return the bytes of all fitted maps that the score pass holds, in float32, or float64 if the plan is exact."""
    w, F = plan.moments.widths, plan.moments.folds
    maps = sum(
        w[f.x] * (w[f.y] * (1 + (F if F > 1 else 0)) + (w[f.unit] if f.unit else 0)) for f in plan.different_fits
    )
    return (8 if plan.options.exact else 4) * (maps + sum(w[x] ** 2 for x in {f.x for f in plan.fits}))


def row_bytes(plan: ScanPlan, rows: int) -> int:
    """Return the bytes of the points of one batch of some rows, and of as many copies inside operations."""
    w = plan.moments.widths
    return 2 * (8 if plan.options.exact else 4) * rows * sum(w[block] for block in plan.moments.blocks)


def working_bytes(plan: ScanPlan, rows: int, scored: bool) -> int:
    """Return the bytes of sums, solve, maps and rows of a plan together.

    Args:
        plan: the plan.
        rows: rows of the largest batch.
        scored: tokens are scored.
    """
    maps = map_bytes(plan) if scored else 0
    return plan.moments.nbytes + maps + max(solve_bytes(plan), row_bytes(plan, rows))


def groups_that_fit(
    elements: Sequence[Element], plan_of: PlanOf, needs: Callable[[ScanPlan], int], budget: int
) -> list[ScanPlan]:
    """Divide elements into as few plans as fit in a budget, in their order.

    Args:
        elements: of one layer, or spans from one layer.
        plan_of: makes the plan of some elements.
        needs: bytes that a plan takes.
        budget: bytes that may be taken.

    Raises:
        InputError: an element alone does not fit.
    """
    plans: list[ScanPlan] = []
    group: list[Element] = []
    for element in elements:
        plan = plan_of([*group, element])
        if group and needs(plan) > budget:
            group, plan = [], plan_of([element])
            plans.append(plan)
        elif not group:
            plans.append(plan)
        else:
            plans[-1] = plan
        if not group and needs(plan) > budget:
            fewer = "" if plan.moments.folds == 1 else "; folds=0 takes less"
            raise InputError(
                f"memory: {element} alone takes {human(needs(plan))}, and the budget has {human(budget)}; raise the "
                f"budget to {human(needs(plan))} or more{fewer}"
            )
        group.append(element)
    return plans
