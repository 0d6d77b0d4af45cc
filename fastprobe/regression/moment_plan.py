"""Plan of the sums that a scan needs. Pure data, no torch.

All points of a scan are column blocks Z_i of one wide virtual matrix Z. A plan lists the products Z_i^T Z_j that the
fits need, each once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Pair = tuple[str, str]


@dataclass(frozen=True)
class MomentPlan:
    """Sums that a set of fits x -> y needs, each once. Strings name the blocks.

    A block in ``parts`` is the sum of two other blocks. Its products follow from theirs, C(h, h + o) = G(h) + C(h, o),
    so it is never multiplied itself.
    """

    widths: Mapping[str, int]
    pairs: tuple[Pair, ...]  # products kept fold by fold
    pooled: tuple[Pair, ...] = ()  # products kept for all folds together
    units: tuple[str, ...] = ()  # blocks with a sum of their unit-norm rows, for the anisotropy
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
        """Return the plan for some fits.

        Args:
            fits: pairs (x, y).
            widths: block -> number of columns, also of blocks that no fit uses.
            folds: number of folds; 0 or 1 for no cross-validation.
            parts: block -> the two blocks whose sum it is.
            cka: pairs (x, y) whose CKA is asked, which needs the Gram matrix of y.
        """
        parts = dict(parts or {})
        pairs: dict[Pair, None] = {}
        pooled: dict[Pair, None] = {}
        units: dict[str, None] = {}

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
            units.setdefault(y)
        for y in dict.fromkeys(y for _, y in fits if y in parts):
            need(parts[y][0], parts[y][1], pairs)  # for the squares of y
        for _, y in cka:
            need(y, y, pooled)
        used = {block for pair in (*pairs, *pooled) for block in pair} | set(units)
        order = [block for block in widths if block in used]
        return cls({b: widths[b] for b in order}, tuple(pairs), tuple(pooled), tuple(units), parts, max(folds, 1))

    @property
    def blocks(self) -> list[str]:
        """Blocks that are multiplied, in order. Blocks in ``parts`` are not."""
        return [block for block in self.widths if block not in self.parts]

    @property
    def nbytes(self) -> int:
        """Bytes of the moments of this plan. They do not depend on the number of tokens."""
        w = self.widths
        grams = self.folds * sum(w[x] * w[y] for x, y in self.pairs) + sum(w[x] * w[y] for x, y in self.pooled)
        vectors = (2 * self.folds + 1) * sum(w[block] for block in self.blocks)  # sums, squares, origins
        units = sum(w[block] + 1 for block in self.units)
        return 8 * (self.folds + grams + vectors + units)

    def stages(self, last: Mapping[str, int]) -> list[tuple[int, Stage]]:
        """Divide the plan by the time at which its blocks become available.

        Args:
            last: block -> first time at which its rows can be read.

        Returns:
            (time, stage) in order of time. A stage has every product whose later block becomes available then.
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
        """Return the plan as one stage, for rows of all blocks at once."""
        return self.stages(dict.fromkeys(self.widths, 0))[0][1]


@dataclass(frozen=True)
class Stage:
    """Part of a plan for one time: the products to add, and the blocks that are available for the first time."""

    first: bool  # the first stage counts the rows
    fresh: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def blocks(self) -> list[str]:
        """Blocks whose rows the stage reads."""
        return list(dict.fromkeys((*self.fresh, *(block for pair in self.pairs for block in pair))))
