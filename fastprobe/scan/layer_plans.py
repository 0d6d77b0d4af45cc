"""Plans of a scan layer by layer: groups of elements of each layer, then groups of spans of each source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastprobe.models.points import Element
from fastprobe.scan.memory_needs import PlanOf, groups_that_fit
from fastprobe.scan.plan import ScanPlan


@dataclass(frozen=True)
class LayerPlans:
    """Groups of elements whose sums are held at one time.

    All groups of a layer are done before the next layer. Spans follow, source by source: they read stored states and
    run no layer.
    """

    layers: Mapping[int, Sequence[ScanPlan]]
    sources: Mapping[int, Sequence[ScanPlan]]
    needs: int  # bytes of the largest group
    depth: int  # layers to run
    kept: frozenset[int]  # depths whose states the spans read

    @classmethod
    def of(
        cls, elements: Sequence[Element], plan_of: PlanOf, needs: Callable[[ScanPlan], int], budget: int
    ) -> LayerPlans:
        """Make the plans of some elements.

        Args:
            elements: the elements to score.
            plan_of: makes the plan of some of them.
            needs: bytes that a plan takes.
            budget: bytes that one plan may take.

        Raises:
            InputError: an element alone does not fit.
        """
        spans = [element for element in elements if element.is_span]
        plain = [element for element in elements if not element.is_span]
        layers, sources = (
            {
                start: groups_that_fit([e for e in some if e.start == start], plan_of, needs, budget)
                for start in sorted({element.start for element in some})
            }
            for some in (plain, spans)
        )
        return cls(
            layers,
            sources,
            max((needs(plan) for some in (layers, sources) for plans in some.values() for plan in plans), default=0),
            max((element.stop for element in elements), default=0),
            frozenset(end for span in spans for end in (span.start, span.stop)),
        )

    @property
    def first(self) -> int:
        """The least depth whose states are needed."""
        return min([*self.layers, *self.kept], default=0)

    @property
    def runs(self) -> int:
        """The largest number of groups of a layer, each of which runs the layer once on all tokens."""
        return max(map(len, self.layers.values()), default=1)

    @property
    def sums(self) -> int:
        """Bytes of the largest sums that are held at one time."""
        plans = [plan for some in (self.layers, self.sources) for plans in some.values() for plan in plans]
        return max((plan.moments.nbytes for plan in plans), default=0)
