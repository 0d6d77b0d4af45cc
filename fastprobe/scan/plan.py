"""What a scan does: which fits, on which blocks, made of which products, done after which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastprobe.models.points import POINTS, Element, Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.regression.moment_plan import MomentPlan, Stage


@dataclass(frozen=True)
class ElementFit:
    """One row of a scan: an element and the blocks that its map goes between."""

    element: Element
    x: str
    y: str
    unit: str = ""  # block of unit-norm y, where the fit for the cosine is asked for

    @property
    def targets(self) -> list[str]:
        return [self.y, self.unit] if self.unit else [self.y]


@dataclass(frozen=True)
class ScanPlan:
    """Fits, sums and reads of a scan."""

    fits: tuple[ElementFit, ...]
    moments: MomentPlan
    stages: Mapping[int, Stage]  # layer -> what is done at its end
    until: Mapping[Point, int]  # point to read -> the last layer it is needed at
    points: Mapping[str, Point]  # block -> canonical point
    units: Mapping[str, str]  # unit-norm block -> the block it is made of

    @classmethod
    def of(
        cls,
        points: ModelPoints,
        widths: Mapping[Point, int],
        elements: Sequence[Element],
        *,
        folds: int,
        objective: str = "least-squares",
        cka: str = "auto",
    ) -> ScanPlan:
        """The plan for these elements of a model.

        Args:
            points: where the points of the model are.
            widths: width of every point that is read.
            elements: the elements to score, in the order of the rows.
            folds: number of folds.
            objective: ``"cosine"`` fits unit-norm targets as well.
            cka: for which y a Gram matrix is kept: ``"auto"`` those no wider than x, ``"all"`` or ``"none"``.
        """
        canonical: dict[str, Point] = {}
        parts: dict[str, tuple[str, str]] = {}
        wide: dict[str, int] = {}
        units: dict[str, str] = {}

        def block(point: Point) -> str:
            point = points.canonical(point)
            name = str(point)
            canonical[name] = point
            if pair := points.parts(point):
                parts[name] = (block(pair[0]), block(pair[1]))
                wide[name] = widths[pair[0]]
            else:
                wide[name] = widths[point]
            return name

        fits = []
        for element in elements:
            x, y = block(element.x), block(element.y)
            unit = f"unit({y})" if objective == "cosine" else ""
            if unit:
                units[unit], wide[unit], canonical[unit] = y, wide[y], canonical[y]
            fits.append(ElementFit(element, x, y, unit))
        kept = [(f.x, f.y) for f in fits if cka == "all" or (cka == "auto" and wide[f.y] <= wide[f.x])]
        in_order = {name: wide[name] for name in sorted(wide, key=lambda b: _depth(canonical[b]))}
        pairs = [(f.x, target) for f in fits for target in f.targets]
        plan = MomentPlan.of(pairs, in_order, folds=folds, parts=parts, cka=kept)
        stages = dict(plan.stages({name: canonical[name].layer for name in plan.widths}))
        uses = [(canonical[name], layer) for layer, stage in stages.items() for name in stage.blocks]
        uses += [(canonical[b], max(canonical[f.x].layer, canonical[f.y].layer)) for f in fits for b in (f.x, f.y)]
        return cls(tuple(fits), plan, stages, points.needed_until(uses), canonical, units)


def _depth(point: Point) -> tuple[int, int]:
    return point.layer, POINTS.index(point.name)
