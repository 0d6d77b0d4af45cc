"""Which sums a scan needs: block pairs of one wide virtual matrix, each once. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Pair = tuple[str, str]


@dataclass(frozen=True)
class MomentPlan:
    """Which sums a set of fits x -> y needs, each once. Blocks are named by strings.

    A block in ``parts`` is the sum of two others and is never multiplied itself: what is asked of it follows from
    its parts, C(h, h + o) = G(h) + C(h, o).
    """

    widths: Mapping[str, int]
    pairs: tuple[Pair, ...]  # kept fold by fold
    pooled: tuple[Pair, ...] = ()  # kept for all folds together
    cones: tuple[str, ...] = ()  # blocks whose unit-norm rows are summed
    parts: Mapping[str, Pair] = field(default_factory=dict)
    folds: int = 1

    @classmethod
    def of(
        cls,
        fits: Iterable[Pair],
        widths: Mapping[str, int],
        *,
        folds: int = 1,
        parts: Mapping[str, Pair] | None = None,
        cka: Iterable[Pair] = (),
    ) -> MomentPlan:
        """The plan for these fits (x, y); ``cka`` lists those whose y needs a Gram matrix of its own."""
        parts = dict(parts or {})
        pairs: dict[Pair, None] = {}
        pooled: dict[Pair, None] = {}
        cones: dict[str, None] = {}

        def need(x: str, y: str, where: dict[Pair, None]) -> None:
            if y in parts:
                need(x, parts[y][0], where)
                need(x, parts[y][1], where)
            elif x in parts:
                need(y, x, where)
            elif (x, y) not in pairs and (y, x) not in pairs and (y, x) not in where:
                where.setdefault((x, y))

        fits = list(fits)
        for x, y in fits:
            need(x, x, pairs)
            need(x, y, pairs)
            cones.setdefault(y)
        for y in dict.fromkeys(y for _, y in fits if y in parts):
            need(parts[y][0], parts[y][1], pairs)  # its squares
        for _, y in cka:
            need(y, y, pooled)
        used = {block for pair in (*pairs, *pooled) for block in pair} | set(cones)
        order = [block for block in widths if block in used]
        return cls({b: widths[b] for b in order}, tuple(pairs), tuple(pooled), tuple(cones), parts, max(folds, 1))

    @property
    def blocks(self) -> list[str]:
        """The blocks that are multiplied, in order; those in ``parts`` are not among them."""
        return [block for block in self.widths if block not in self.parts]

    def has(self, x: str, y: str) -> bool:
        """Return True if the products of the blocks x and y are kept, or follow from those of their parts."""
        if y in self.parts:
            return all(self.has(x, part) for part in self.parts[y])
        if x in self.parts:
            return self.has(y, x)
        kept = {*self.pairs, *self.pooled}
        return (x, y) in kept or (y, x) in kept

    @property
    def nbytes(self) -> int:
        """Bytes of the moments of this plan, whatever the number of tokens."""
        w = self.widths
        grams = self.folds * sum(w[x] * w[y] for x, y in self.pairs) + sum(w[x] * w[y] for x, y in self.pooled)
        vectors = (2 * self.folds + 1) * sum(w[block] for block in self.blocks)  # sums, squares, origins
        units = sum(w[block] + 1 for block in self.cones)
        return 8 * (self.folds + grams + vectors + units)

    def stages(self, last: Mapping[str, int]) -> list[tuple[int, Stage]]:
        """The plan cut by when its blocks become available: (time, what can be done then), in order of time.

        Args:
            last: block -> the time at which it can be read.
        """
        times = sorted({last[b] for b in self.widths})
        ready = {pair: max(last[pair[0]], last[pair[1]]) for pair in (*self.pairs, *self.pooled)}
        return [
            (
                time,
                Stage(
                    first=i == 0,
                    fresh=tuple(b for b in self.widths if last[b] == time),
                    pairs=tuple(p for p in (*self.pairs, *self.pooled) if ready[p] == time),
                ),
            )
            for i, time in enumerate(times)
        ]

    def whole(self) -> Stage:
        """Everything at once, for rows that arrive together."""
        return self.stages(dict.fromkeys(self.widths, 0))[0][1]


@dataclass(frozen=True)
class Stage:
    """A part of a plan that is done at one time: pairs, and blocks that are seen for the first time."""

    first: bool  # rows are counted in the first stage
    fresh: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def blocks(self) -> list[str]:
        return list(dict.fromkeys((*self.fresh, *(block for pair in self.pairs for block in pair))))
