"""Moments: the float64 sums from which every score of a scan follows.

For the blocks x and y of a plan, fold by fold, about the origin of each block:

    counts  = Σ 1,    sums = Σ x,    squares = Σ x^2 column by column,    grams = Σ x y^T
    units   = Σ x / |x| over rows with x != 0,    unit_counts = the number of these rows

Sums of several shards are added: moments are a commutative monoid under :meth:`Moments.merge_`, with
:meth:`Moments.zero` as the neutral element.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import InputError, NumericalError, ShapeError
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.gram.known_folds import remember_largest
from fastprobe.ops.unit_sum import UnitSum, unit_sum
from fastprobe.regression.moment_plan import MomentPlan, Stage
from fastprobe.regression.moments_file import reading_moments_file, write_moments_file
from fastprobe.runtime import memory
from fastprobe.runtime.distributed import Ranks


class Moments:
    """Sums of a plan over all rows added so far. Their size does not depend on the number of rows.

    Every sum is about ``origins[block]``, the mean of the block's first rows in columns where it is far from zero, and
    0 elsewhere. Neither float32 products nor float64 sums then lose digits to a large common mean. The origins do not
    change the meaning: :meth:`merge_` moves sums from one origin to another.

    Args:
        plan: the sums to keep.
        device: device of the sums.
    """

    def __init__(self, plan: MomentPlan, device: torch.device | str = "cpu"):
        zeros = functools.partial(memory.zeros, device=device)
        width, folds = plan.widths, plan.folds
        self.plan = plan
        self.counts = zeros(folds)
        self.grams = {(x, y): zeros(folds, width[x], width[y]) for x, y in plan.pairs}
        self.grams |= {(x, y): zeros(1, width[x], width[y]) for x, y in plan.pooled}
        self.sums = {block: zeros(folds, width[block]) for block in plan.blocks}
        self.squares = {block: zeros(folds, width[block]) for block in plan.blocks}
        self.units = {block: zeros(width[block]) for block in plan.units}
        self.unit_counts = {block: zeros(1) for block in plan.units}
        self.origins: dict[str, Tensor] = {}
        self.dtype = ""  # of the rows; the coarsest of several
        self.precision = ""  # of the sums: float64 if all rows were added exactly, else the dtype of the rows
        self.backend = ""
        self._whole: set[str] = set()  # blocks whose Gram matrices have both triangles filled in

    @classmethod
    def zero(cls, plan: MomentPlan, device: torch.device | str = "cpu") -> Moments:
        """Return the moments of no rows, the neutral element of :meth:`merge_`."""
        return cls(plan, device)

    @property
    def tokens(self) -> int:
        """Number of rows added."""
        return int(self.counts.sum())

    @torch.no_grad()
    def update_(
        self,
        rows: Mapping[str, Tensor],
        fold: Tensor,
        *,
        stage: Stage | None = None,
        backend: str = "auto",
        exact: bool = False,
    ) -> None:
        """Add rows, all of them or, where one is not finite, none.

        Args:
            rows: block -> ``(N, width)``, any floating dtype, for every block of the stage.
            fold: ``(N,)`` int64, the fold of each row; rows with a negative fold (padding) are left out.
            stage: the part of the plan to add to; all of it by default.
            backend: the backend of the operations.
            exact: widen the rows to float64 before anything is multiplied or summed.

        Raises:
            NumericalError: a row that is not left out has a NaN or an infinity; the message names the block.
            ShapeError: a block has another width than the plan says.
        """
        stage = stage or self.plan.whole()
        for block in stage.blocks:
            if rows[block].shape != (len(fold), self.plan.widths[block]):
                raise ShapeError(
                    f"{block}: rows must be {(len(fold), self.plan.widths[block])}, got {tuple(rows[block].shape)}"
                )
            if not rows[block].dtype.is_floating_point:
                raise ShapeError(f"{block}: rows must be floating, got {rows[block].dtype}")
        if not len(fold):
            return
        valid = fold >= 0
        fresh = {block: rows[block] for block in stage.fresh}
        # One read of the device for everything that the host has to know of a batch.
        units, (largest,) = unit_sums(fresh, valid, backend, exact=exact, beside=[fold.max()])
        if largest < 0:
            return
        if largest >= self.plan.folds:
            raise ShapeError(f"fold: must be below {self.plan.folds}, the folds of the plan, got {largest}")
        remember_largest(fold, largest)
        blocks = [b for b in self.plan.widths if b in stage.blocks and b not in self.plan.parts]
        with torch.autocast(fold.device.type, enabled=False):
            for block in blocks:
                if block not in self.origins:
                    self.origins[block] = _origin(rows[block], valid)
            self.backend, _ = gram_.on(backend).run(
                [
                    Block(rows[b], self.origins[b], self.sums[b], self.squares[b])
                    if b in stage.fresh
                    else Block(rows[b], self.origins[b])
                    for b in blocks
                ],
                [Pair(blocks.index(x), blocks.index(y), self.grams[x, y]) for x, y in stage.pairs],
                fold,
                exact=exact,
            )
        for block in self.units.keys() & units.keys():
            self.units[block].add_(units[block].total)
            self.unit_counts[block].add_(units[block].counted)
        self._whole.difference_update(x for x, y in stage.pairs if x == y)
        dtype = _coarsest("", *(str(rows[block].dtype).removeprefix("torch.") for block in blocks))
        self.dtype = _coarsest(self.dtype, dtype)
        self.precision = _coarsest(self.precision, "float64" if exact else dtype)
        if stage.first:
            self.counts.index_add_(0, fold.clamp(min=0), valid.double())

    @torch.no_grad()
    def update_classes_(self, x: str, y: str, rows: Tensor, label: Tensor, fold: Tensor) -> None:
        """Add the products of rows of x with one-hot rows y, without making the one-hot rows.

            cross(x, y)[f, :, c] += Σ x over the rows of fold f and class c
            sum(y)[f, c] and square(y)[f, c] += the number of these rows

        :meth:`update_` must add the same rows of x.

        Args:
            x: name of the block of the rows.
            y: name of a block with one column a class; the pair (x, y) must be in the plan.
            rows: ``(N, width)`` of x.
            label: ``(N,)`` int64, class of each row.
            fold: ``(N,)`` int64, as in :meth:`update_`.
        """
        folds, classes = self.plan.folds, self.plan.widths[y]
        kept = fold >= 0
        where = (fold * classes + label)[kept]
        counts = torch.bincount(where, minlength=folds * classes).view(folds, classes)
        self.sums[y] += counts
        self.squares[y] += counts
        sums = torch.zeros(folds * classes, rows.shape[1], dtype=torch.float64, device=rows.device)
        sums.index_add_(0, where, rows[kept].double() - self.origin(x))
        self.grams[x, y] += sums.view(folds, classes, -1).mT

    def origin(self, block: str) -> Tensor:
        """Return the origin of the sums of a block, ``(width,)``."""
        if block in self.plan.parts:
            first, second = self.plan.parts[block]
            return self.origin(first) + self.origin(second)
        return self.origins.get(block, self.sums[block].new_zeros(self.plan.widths[block]))

    def sum(self, block: str) -> Tensor:
        """Return Σ x about the origin, ``(folds, width)``."""
        if block in self.plan.parts:
            first, second = self.plan.parts[block]
            return self.sum(first) + self.sum(second)
        return self.sums[block]

    def square(self, block: str) -> Tensor:
        """Return Σ x^2 about the origin, column by column, ``(folds, width)``."""
        if block in self.plan.parts:
            first, second = self.plan.parts[block]
            cross = self.cross(first, second).diagonal(dim1=1, dim2=2)
            return self.square(first) + self.square(second) + 2 * cross
        return self.squares[block]

    def cross(self, x: str, y: str) -> Tensor:
        """Return Σ x y^T about the origins, ``(folds, width of x, width of y)``; ``(1, ...)`` for a pooled pair."""
        if y in self.plan.parts:
            first, second = self.plan.parts[y]
            one, other = self.cross(x, first), self.cross(x, second)
            if len(one) != len(other):  # one of them is pooled
                one, other = one.sum(0, keepdim=True), other.sum(0, keepdim=True)
            return one + other
        if x in self.plan.parts:
            return self.cross(y, x).mT
        if x == y:
            return self._mirrored(x)
        return self.grams[x, y] if (x, y) in self.grams else self.grams[y, x].mT

    def has(self, x: str, y: str) -> bool:
        """Return True if :meth:`cross` of x and y is kept, or follows from the products of their parts."""
        if y in self.plan.parts:
            return all(self.has(x, part) for part in self.plan.parts[y])
        if x in self.plan.parts:
            return self.has(y, x)
        return (x, y) in self.grams or (y, x) in self.grams

    def _mirrored(self, x: str) -> Tensor:
        """Return the Gram matrices of a block. Updates define only their upper triangles."""
        gram = self.grams[x, x]
        if x not in self._whole:
            gram.copy_(gram.triu() + gram.triu(1).mT)
            self._whole.add(x)
        return gram

    def merge_(self, other: Moments) -> Moments:
        """Add the rows of ``other``: move its sums to the origins of these moments, then add. ``other`` is unchanged.

        Raises:
            InputError: the plans differ.
        """
        if asdict(self.plan) != asdict(other.plan):
            raise InputError(
                "merge: must be moments of one plan, got different scans (elements, layers, folds or widths differ)"
            )
        for block, origin in other.origins.items():
            self.origins.setdefault(block, origin.clone())
        for mine, theirs in zip(self._sums(), other._sums_about(self.origins), strict=True):
            mine += theirs.to(mine.device)
        self._whole.clear()
        self.dtype, self.backend = _coarsest(self.dtype, other.dtype), self.backend or other.backend
        self.precision = _coarsest(self.precision, other.precision)
        return self

    def negate_(self) -> Moments:
        """Negate every sum, so that rows added before a second call are subtracted."""
        for tensor in self._sums():
            tensor.neg_()
        return self

    def all_reduce_(self) -> Moments:
        """Replace these moments by their sum over all processes of ``torch.distributed``."""
        ranks = Ranks.here()
        if ranks.size == 1:
            return self
        self.share_origins_()
        dtypes, precisions, backends = zip(*ranks.gather((self.dtype, self.precision, self.backend)), strict=True)
        self.dtype, self.precision = _coarsest(*dtypes), _coarsest(*precisions)
        self.backend = next(filter(None, backends), "")
        ranks.sum_(self._sums())
        self._whole.clear()
        return self

    def collect_(self) -> Moments:
        """Move the rows of all processes to the first one. The others keep moments of no rows, with its origins."""
        return self.all_reduce_().leave_to_first_()

    def leave_to_first_(self) -> Moments:
        """Drop the rows of all processes but the first one, after :meth:`all_reduce_` gave each the rows of all."""
        if not Ranks.here().is_first:
            for mine in self._sums():
                mine.zero_()
        return self

    def share_origins_(self) -> None:
        """Move the sums of all processes to the origins of the first one that has some. A collective call."""
        ranks = Ranks.here()
        if ranks.size == 1:
            return
        origins: dict[str, Tensor] = {}
        for of_process in ranks.gather({block: origin.cpu() for block, origin in self.origins.items()}):
            origins = {block: origin.to(self.counts.device) for block, origin in of_process.items()} | origins
        moved = any(not torch.equal(self.origin(block), origin) for block, origin in origins.items())
        if moved and self.tokens:  # sums of no rows need no copy
            for mine, theirs in zip(self._sums(), list(self._sums_about(origins)), strict=True):
                mine.copy_(theirs)
        self.origins = origins

    def _sums(self) -> list[Tensor]:
        """Return every tensor of sums, in the order of :meth:`_sums_about`."""
        kinds = (self.grams, self.sums, self.squares, self.units, self.unit_counts)
        return [self.counts, *(tensor for kind in kinds for tensor in kind.values())]

    def _sums_about(self, origins: Mapping[str, Tensor]) -> Iterable[Tensor]:
        """Yield the same sums about other origins.

        Rows move by δ = old origin - new origin. With s, q and G the sums about the old origins:

            Σ (x + δ_x) = s_x + n δ_x
            Σ (x + δ_x)^2 = q_x + 2 δ_x s_x + n δ_x^2
            Σ (x + δ_x)(y + δ_y)^T = G + δ_x s_y^T + s_x δ_y^T + n δ_x δ_y^T
        """
        if all(torch.equal(self.origin(block), origins.get(block, self.origin(block))) for block in self.sums):
            yield from self._sums()
            return
        n = self.counts[:, None]
        move = {b: self.origin(b) - origins.get(b, self.origin(b)).to(self.counts.device) for b in self.sums}
        yield self.counts
        for (x, y), gram in self.grams.items():
            sx, sy, count = self.sums[x], self.sums[y], n
            if len(gram) == 1:
                sx, sy, count = sx.sum(0, True), sy.sum(0, True), n.sum(0, True)
            dx, dy = move[x], move[y]
            yield gram + dx[:, None] * sy[:, None] + (sx + count * dx)[:, :, None] * dy
        for block, total in self.sums.items():
            yield total + n * move[block]
        for block, square in self.squares.items():
            yield square + 2 * move[block] * self.sums[block] + n * move[block].square()
        yield from self.units.values()
        yield from self.unit_counts.values()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name in a file."""
        named = {"counts": self.counts}
        named |= {f"gram/{x}|{y}": gram for (x, y), gram in self.grams.items()}
        for kind in ("sums", "squares", "units", "unit_counts", "origins"):
            named |= {f"{kind}/{block}": tensor for block, tensor in getattr(self, kind).items()}
        return named

    def save(self, path: str | Path, config: Mapping[str, Any] | None = None) -> None:
        """Write plan, sums and ``config`` to one safetensors file. An existing file is replaced whole or not at all.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        labels = {"dtype": self.dtype, "precision": self.precision, "backend": self.backend}
        write_moments_file(path, self.plan, self.tensors(), config or {}, **labels)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple[Moments, dict[str, Any]]:
        """Read moments and the ``config`` saved with them.

        Raises:
            InputError: the file does not exist, or does not hold moments.
        """
        with reading_moments_file(path, str(device)) as file:
            moments = cls(file.plan, device)
            moments.dtype, moments.precision, moments.backend = file.dtype, file.precision, file.backend
            for name, tensor in moments.tensors().items():
                saved = file.tensor(name)
                if saved.shape != tensor.shape:
                    raise ValueError(f"{name} is {tuple(saved.shape)}, not {tuple(tensor.shape)}")
                tensor.copy_(saved)
            for name in file.names:
                if name.startswith("origins/"):
                    moments.origins[name.removeprefix("origins/")] = file.tensor(name)
        return moments, file.config


def _coarsest(*dtypes: str) -> str:
    """Return the dtype with the fewest digits; ``""`` for none."""
    return max(dtypes, key=("", "float64", "float32", "float16", "bfloat16").index)


def unit_sums(
    rows: Mapping[str, Tensor], valid: Tensor, backend: str, *, exact: bool = False, beside: Sequence[Tensor] = ()
) -> tuple[dict[str, UnitSum], list[int]]:
    """Return the sum of unit rows of every block, over the rows that count, and some integers read with their flags.

    Args:
        rows: block -> ``(N, width)``.
        valid: ``(N,)`` bool: the rows that count.
        backend: the backend of the operation.
        exact: widen the rows to float64 first.
        beside: () integers to read from the device at the same time.

    Raises:
        NumericalError: a row that counts is not finite; the message names the block.
    """
    operation = unit_sum.on_if_implemented("auto" if exact else backend)
    found = {block: operation(part.double() if exact else part, valid) for block, part in rows.items()}
    flags = [number.long().to(valid.device) for number in (*beside, *(units.finite for units in found.values()))]
    numbers = torch.stack(flags).tolist() if flags else []
    for block, finite in zip(found, numbers[len(beside) :], strict=True):
        if not finite:
            wide = torch.float64 if exact or rows[block].dtype == torch.float64 else torch.float32
            raise NumericalError(f"{block}: a token's activation is NaN, infinite or too large for {wide}")
    return found, numbers[: len(beside)]


def _origin(rows: Tensor, valid: Tensor) -> Tensor:
    """The mean of every column that lies over four of its standard deviations from zero, and zero for the others.

    The mean is rounded to the dtype of the rows: near it 16-bit numbers are multiples of its last digit, so subtracting
    it is exact in float32 and leaves few digits. Around zero it would do harm: 16-bit numbers less one with a finer
    last digit are odd multiples of that digit, squares of odd numbers are 1 modulo 8, and float32 sums of those are
    rounded down every time (benchmarks/NOTES.md).
    """
    kept = rows[valid.nonzero()[:1024, 0]].double()  # enough to tell a mean of four standard deviations
    mean = kept.mean(0)
    if rows.dtype == torch.float64:  # the mean of equal numbers has a rounding error
        mean = torch.where((kept == kept[0]).all(0), kept[0], mean)
    squares = kept.sub_(mean).square_()  # where they are: fresh memory would take longer than the arithmetic
    far = mean.abs() > 4 * squares.mean(0).sqrt()  # std() of a dimension that is not the last is slow
    return torch.where(far, mean.to(rows.dtype).double(), torch.zeros_like(mean))
