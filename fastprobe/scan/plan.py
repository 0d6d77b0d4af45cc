"""Plan of a scan: its fits, the sums they need, and the points to read after each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastprobe.errors import InputError
from fastprobe.models.points import POINTS, Element, Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.regression.moment_plan import MomentPlan, Stage

OBJECTIVES = ("least-squares", "cosine")
CKA = ("auto", "all", "none")


@dataclass(frozen=True)
class ScanOptions:
    """Choices that the sums of a scan depend on.

    Raises:
        InputError: there is no element, or a value is not one of its choices.
    """

    elements: tuple[Element, ...]  # in the order of the rows
    folds: int
    objective: str  # "cosine" also fits unit-norm targets
    cka: str  # keep the Gram matrix of y for: "auto" the y no wider than their x, "all" or "none"
    exact: bool  # sum in float64

    def __post_init__(self) -> None:
        if self.folds < 0:
            raise InputError(f"folds: must be 0 or more, got {self.folds}")
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective: {self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        if self.cka not in CKA:
            raise InputError(f"cka: {self.cka!r} is not one of {', '.join(CKA)}")
        if not self.elements:
            raise InputError("elements: there is nothing to score; name elements, layers or spans")


@dataclass(frozen=True)
class ElementFit:
    """A row of a scan: an element, and the blocks that its linear map goes from and to."""

    element: Element
    x: str
    y: str
    unit: str = ""  # block of unit-norm y, if the cosine objective is asked for

    @property
    def targets(self) -> list[str]:
        return [self.y, self.unit] if self.unit else [self.y]


@dataclass(frozen=True)
class ScanPlan:
    """Fits, sums and reads of a scan."""

    options: ScanOptions
    fits: tuple[ElementFit, ...]
    moments: MomentPlan
    stages: Mapping[int, Stage]  # layer -> sums that are updated at its end
    until: Mapping[Point, int]  # point to read -> the last layer it is needed at
    points: Mapping[str, Point]  # block -> canonical point
    units: Mapping[str, str]  # block of unit-norm rows -> the block whose rows it normalises

    @classmethod
    def of(cls, points: ModelPoints, widths: Mapping[Point, int], options: ScanOptions) -> ScanPlan:
        """Make the plan of a scan.

        Args:
            points: places of the points in the model.
            widths: width of every point that is read.
            options: the elements to score, and how.
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
        for element in options.elements:
            x, y = block(element.x), block(element.y)
            unit = f"unit({y})" if options.objective == "cosine" else ""
            if unit:
                units[unit], wide[unit], canonical[unit] = y, wide[y], canonical[y]
            fits.append(ElementFit(element, x, y, unit))
        cka = options.cka
        kept = [(f.x, f.y) for f in fits if cka == "all" or (cka == "auto" and wide[f.y] <= wide[f.x])]
        in_order = {name: wide[name] for name in sorted(wide, key=lambda b: _depth(canonical[b]))}
        pairs = [(f.x, target) for f in fits for target in f.targets]
        plan = MomentPlan.of(pairs, in_order, folds=options.folds, parts=parts, cka=kept)
        stages = dict(plan.stages({name: canonical[name].layer for name in plan.widths}))
        uses = [(canonical[name], layer) for layer, stage in stages.items() for name in stage.blocks]
        uses += [(canonical[b], max(canonical[f.x].layer, canonical[f.y].layer)) for f in fits for b in (f.x, f.y)]
        return cls(options, tuple(fits), plan, stages, points.needed_until(uses), canonical, units)

    @property
    def different_fits(self) -> list[ElementFit]:
        """The fits without those whose blocks an earlier one has."""
        return list({(f.x, f.y, f.unit): f for f in reversed(self.fits)}.values())

    @property
    def config(self) -> dict[str, Any]:
        """Entries of a configuration that the sums depend on. A run can resume only from a checkpoint that agrees."""
        return {
            "elements": [str(element) for element in self.options.elements],
            "fits": [[f.element.name, f.element.start, f.element.stop, f.x, f.y, f.unit] for f in self.fits],
            "folds": self.options.folds,
            "objective": self.options.objective,
            "cka": self.options.cka,
            "exact": self.options.exact,
        }


def _depth(point: Point) -> tuple[int, int]:
    return point.layer, POINTS.index(point.name)
