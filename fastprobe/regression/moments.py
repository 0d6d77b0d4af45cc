"""Moments: the float64 sums that every score of a scan is made of.

All the points of a scan are column blocks of one wide virtual matrix Z; a plan says which products Z_i^T Z_j are kept.
Moments are the values of those products, fold by fold: a commutative monoid under :meth:`Moments.merge_`, with
:meth:`Moments.zero` neutral.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastprobe.errors import InputError, NumericalError, ShapeError
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.unit_sum import UnitSum, unit_sum
from fastprobe.regression.moment_plan import MomentPlan, Stage
from fastprobe.runtime import memory
from fastprobe.runtime.files import replacing


class Moments:
    """The sums of a plan over all rows seen so far; their size does not depend on how many that were.

    Every sum is about ``origins[block]``: the mean of the block's first rows where that is far from zero, so that
    neither float32 products nor float64 sums lose digits to a large common mean. Origins are a matter of
    representation: moments about different origins are the same moments, and :meth:`merge_` brings them to one.
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
        self.units = {block: zeros(width[block]) for block in plan.cones}
        self.unit_counts = {block: zeros(1) for block in plan.cones}
        self.origins: dict[str, Tensor] = {}
        self.dtype = ""  # of the rows; the coarsest where there were several
        self.precision = ""  # that the sums have: float64 where all rows were added exactly, else the dtype of the rows
        self.backend = ""
        self._whole: set[str] = set()  # blocks whose Gram matrices have both triangles

    @classmethod
    def zero(cls, plan: MomentPlan, device: torch.device | str = "cpu") -> Moments:
        """The moments of no rows: the neutral element of :meth:`merge_`."""
        return cls(plan, device)

    @property
    def tokens(self) -> int:
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
        valid = fold >= 0
        if not valid.any():
            return
        if int(fold.max()) >= self.plan.folds:
            raise ShapeError(f"fold: must be below {self.plan.folds}, the folds of the plan, got {int(fold.max())}")
        units = unit_sums({block: rows[block] for block in stage.fresh}, valid, backend, exact=exact)
        blocks = [b for b in self.plan.widths if b in stage.blocks and b not in self.plan.parts]
        with torch.autocast(fold.device.type, enabled=False):
            for block in blocks:
                if block not in self.origins:
                    self.origins[block] = _origin(rows[block], valid)
            self.backend, _ = gram_.run(
                [
                    Block(rows[b], self.origins[b], self.sums[b], self.squares[b])
                    if b in stage.fresh
                    else Block(rows[b], self.origins[b])
                    for b in blocks
                ],
                [Pair(blocks.index(x), blocks.index(y), self.grams[x, y]) for x, y in stage.pairs],
                fold,
                exact=exact,
                backend=backend,
            )
        for block in self.units.keys() & units.keys():
            self.units[block].add_(units[block].total)
            self.unit_counts[block].add_(units[block].counted)
        self._whole.difference_update(x for x, y in stage.pairs if x == y)
        dtype = _coarsest("", *(str(rows[block].dtype).removeprefix("torch.") for block in blocks))
        self.dtype = _coarsest(self.dtype, dtype)
        self.precision = _coarsest(self.precision, "float64" if exact else dtype)
        if stage.first:
            self.counts += torch.bincount(fold[valid], minlength=self.plan.folds)

    @torch.no_grad()
    def update_classes_(self, x: str, y: str, rows: Tensor, label: Tensor, fold: Tensor) -> None:
        """Add what rows of x, which :meth:`update_` was given, have with classes y, whose rows are one-hot.

            cross(x, y)[f, :, c] = sum of the rows of fold f and class c,  sum(y)[f, c] = square(y)[f, c] = their number

        The one-hot rows are never made.

        Args:
            x: a block of rows.
            y: a block as wide as there are classes; the pair (x, y) is in the plan.
            rows: ``(N, width)`` of x.
            label: ``(N,)`` int64, the class of each row.
            fold: ``(N,)`` int64 as for :meth:`update_`.
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

    # -- reading ------------------------------------------------------------------------------------------------

    def origin(self, block: str) -> Tensor:
        """The point (width,) that this block's sums are about."""
        if block in self.plan.parts:
            first, second = self.plan.parts[block]
            return self.origin(first) + self.origin(second)
        return self.origins.get(block, self.sums[block].new_zeros(self.plan.widths[block]))

    def sum(self, block: str) -> Tensor:
        """Sum of the rows about the origin, (folds, width)."""
        if block in self.plan.parts:
            first, second = self.plan.parts[block]
            return self.sum(first) + self.sum(second)
        return self.sums[block]

    def square(self, block: str) -> Tensor:
        """Sum of squares about the origin, column by column, (folds, width)."""
        if block in self.plan.parts:
            first, second = self.plan.parts[block]
            cross = self.cross(first, second).diagonal(dim1=1, dim2=2)
            return self.square(first) + self.square(second) + 2 * cross
        return self.squares[block]

    def cross(self, x: str, y: str) -> Tensor:
        """Sum of x y^T about the origins, (folds, width x, width y); (1, ...) where only that was kept."""
        if y in self.plan.parts:
            first, second = self.plan.parts[y]
            one, other = self.cross(x, first), self.cross(x, second)
            if len(one) != len(other):  # one of them was kept for all folds together
                one, other = one.sum(0, keepdim=True), other.sum(0, keepdim=True)
            return one + other
        if x in self.plan.parts:
            return self.cross(y, x).mT
        if x == y:
            return self._mirrored(x)
        return self.grams[x, y] if (x, y) in self.grams else self.grams[y, x].mT

    def _mirrored(self, x: str) -> Tensor:
        """The Gram matrices of a block with their lower triangles, which updates leave open, filled in."""
        gram = self.grams[x, x]
        if x not in self._whole:
            gram.copy_(gram.triu() + gram.triu(1).mT)
            self._whole.add(x)
        return gram

    # -- the monoid ---------------------------------------------------------------------------------------------

    def merge_(self, other: Moments) -> Moments:
        """Add the rows of ``other``, which is left as it is. Plain addition, once both are about one origin.

        Raises:
            InputError: the two were made for different plans.
        """
        if asdict(self.plan) != asdict(other.plan):
            raise InputError("merge: the moments are of different scans (elements, layers, folds or widths differ)")
        for block, origin in other.origins.items():
            self.origins.setdefault(block, origin.clone())
        for mine, theirs in zip(self._sums(), other._sums_about(self.origins), strict=True):
            mine += theirs.to(mine.device)
        self._whole.clear()
        self.dtype, self.backend = _coarsest(self.dtype, other.dtype), self.backend or other.backend
        self.precision = _coarsest(self.precision, other.precision)
        return self

    def all_reduce_(self) -> Moments:
        """Make this process's moments the sum over all processes of ``torch.distributed``."""
        origins = {block: _agreed(self.origin(block), bool(self.origins)) for block in self.sums}
        for mine, shifted in zip(self._sums(), list(self._sums_about(origins)), strict=True):
            torch.distributed.all_reduce(shifted)
            mine.copy_(shifted)
        self._whole.clear()
        self.origins = origins
        return self

    def _sums(self) -> list[Tensor]:
        """Every tensor of sums, in one fixed order."""
        kinds = (self.grams, self.sums, self.squares, self.units, self.unit_counts)
        return [self.counts, *(tensor for kind in kinds for tensor in kind.values())]

    def _sums_about(self, origins: Mapping[str, Tensor]) -> Iterable[Tensor]:
        """The same sums about other origins.

        With z' = z + d: sum z'_x z'_y^T = G + d_x s_y^T + s_x d_y^T + n d_x d_y^T.
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

    # -- files --------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by the name it has in a file."""
        named = {"counts": self.counts}
        named |= {f"gram/{x}|{y}": gram for (x, y), gram in self.grams.items()}
        for kind in ("sums", "squares", "units", "unit_counts", "origins"):
            named |= {f"{kind}/{block}": tensor for block, tensor in getattr(self, kind).items()}
        return named

    def save(self, path: str | Path, config: Mapping[str, Any] | None = None) -> None:
        """Write plan, sums and ``config`` to one safetensors file; the file is replaced whole or not at all.

        Raises:
            OSError: it cannot be written, because the disk is full for instance.
        """
        plan = asdict(self.plan) | {"dtype": self.dtype, "precision": self.precision, "backend": self.backend}
        metadata = {"plan": json.dumps(plan), "config": json.dumps(dict(config or {}))}
        with replacing(path) as temporary:
            try:
                save_file({name: t.contiguous() for name, t in self.tensors().items()}, temporary, metadata)
            except SafetensorError as error:  # the system's error is in its text only
                if found := re.search(r"os error (\d+)", str(error)):
                    code = int(found[1])
                    raise OSError(code, os.strerror(code)) from None
                raise

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple[Moments, dict[str, Any]]:
        """The moments in a file and the ``config`` they were saved with.

        Raises:
            InputError: there is no such file, or it does not hold moments.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                plan = json.loads(metadata["plan"])
                dtype, backend = plan.pop("dtype"), plan.pop("backend")
                precision = plan.pop("precision", dtype)  # files from before it was a choice do not say
                moments = cls(_plan_from_json(plan), device)
                moments.dtype, moments.precision, moments.backend = dtype, precision, backend
                names = set(file.keys())
                for name, tensor in moments.tensors().items():
                    saved = file.get_tensor(name)
                    if saved.shape != tensor.shape:
                        raise ValueError(f"{name} is {tuple(saved.shape)}, not {tuple(tensor.shape)}")
                    tensor.copy_(saved)
                for name in sorted(names):
                    if name.startswith("origins/"):
                        moments.origins[name.removeprefix("origins/")] = file.get_tensor(name)
            return moments, json.loads(metadata["config"])
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not a file of moments ({error})") from None


def _coarsest(*dtypes: str) -> str:
    """The dtype with the fewest digits; ``""`` where there is none."""
    return max(dtypes, key=("", "float64", "float32", "float16", "bfloat16").index)


def _agreed(origin: Tensor, mine_counts: bool) -> Tensor:
    """The origin of the first process that has one, on every process of ``torch.distributed``."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    first = torch.tensor(rank if mine_counts else world, device=origin.device)
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    agreed = origin.clone() if rank == int(first) else torch.zeros_like(origin)
    torch.distributed.all_reduce(agreed)
    return agreed


def _plan_from_json(plan: dict[str, Any]) -> MomentPlan:
    pairs = {name: tuple((x, y) for x, y in plan[name]) for name in ("pairs", "pooled")}
    parts = {block: (first, second) for block, (first, second) in plan["parts"].items()}
    return MomentPlan(plan["widths"], pairs["pairs"], pairs["pooled"], tuple(plan["cones"]), parts, plan["folds"])


def unit_sums(rows: Mapping[str, Tensor], valid: Tensor, backend: str, *, exact: bool = False) -> dict[str, UnitSum]:
    """Return the sum of unit rows of every block, over the rows that count.

    Args:
        rows: block -> ``(N, width)``.
        valid: ``(N,)`` bool: the rows that count.
        backend: the backend of the operation.
        exact: widen the rows to float64 first.

    Raises:
        NumericalError: a row that counts is not finite; the message names the block.
    """
    found = {}
    for block, part in rows.items():
        wide = torch.float64 if exact or part.dtype == torch.float64 else torch.float32
        found[block] = unit_sum.where_there_is("auto" if exact else backend)(part.to(wide) if exact else part, valid)
        if not found[block].finite:
            raise NumericalError(f"{block}: a token's activation is NaN, infinite or too large for {wide}")
    return found


def _origin(rows: Tensor, valid: Tensor) -> Tensor:
    """The mean of every column that lies over four of its standard deviations from zero, and zero for the others.

    The mean is rounded to the dtype of the rows: near it 16-bit numbers are multiples of its last digit, so subtracting
    it is exact in float32 and leaves few digits. Around zero it would do harm: 16-bit numbers less one with a finer
    last digit are odd multiples of that digit, squares of odd numbers are 1 modulo 8, and float32 sums of those are
    rounded down every time (benchmarks/NOTES.md).
    """
    kept = rows[valid.nonzero()[:1024, 0]].double()  # enough to tell a mean of four standard deviations
    mean = kept.mean(0)
    squares = kept.sub_(mean).square_()  # where they are: fresh memory would take longer than the arithmetic
    far = mean.abs() > 4 * squares.mean(0).sqrt()  # std() of a dimension that is not the last is slow
    return torch.where(far, mean.to(rows.dtype).double(), torch.zeros_like(mean))
