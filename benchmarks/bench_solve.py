"""Compare the least-squares fits of many sources, from moments, with plain Cholesky solves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench_fit import exact_r2
from benchmarks.models import DEVICE, generator, residual_rows
from fastprobe.regression.least_squares import Factorisation, LeastSquares, source_groups
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.runtime.cores import side_by_side

SOURCES, WIDTH = (24, 768) if DEVICE.type == "cuda" else (6, 384)
ROWS = 4 * WIDTH


@pytest.mark.parametrize("norm", [False, True], ids=["full rank", "after a LayerNorm"])
@pytest.mark.benchmark(group="solve")
def bench_solve(duel: Callable[..., None], norm: bool) -> None:
    """Goal G23: compare 24 fits from float64 moments, 768 wide, one target each, without folds. On a CPU, 6 of 384.

    Ours also gives rank, condition number and an error bound, which need the ends of the spectrum. The peers need only
    a Cholesky factor. After a LayerNorm, one direction has no variance, and there the Cholesky solve fits rounding. The
    error is the largest error of r2, against an SVD of the rows.
    """
    seeded = generator()
    # residual_rows are rows after a LayerNorm, which do not have full rank.
    shape = SOURCES, ROWS, WIDTH
    x = torch.randn(shape, generator=seeded, device=DEVICE, dtype=torch.float64)
    x[..., : WIDTH // 4] *= 10
    x = x @ torch.randn(WIDTH, WIDTH, generator=seeded, device=DEVICE, dtype=torch.float64)
    if norm:
        x = torch.stack([residual_rows(ROWS, WIDTH, seeded) for _ in range(SOURCES)]).double()
    y = F.gelu(x @ torch.randn(WIDTH, WIDTH, generator=seeded, device=DEVICE).double() / x.std() / WIDTH**0.5)
    names = [f"x{i}" for i in range(SOURCES)]
    plan = MomentPlan.of([(name, f"y{name}") for name in names], _widths(names), folds=0)
    moments = Moments.zero(plan, DEVICE)
    rows = dict(zip(names, x, strict=True)) | dict(zip([f"y{name}" for name in names], y, strict=True))
    moments.update_(rows, torch.zeros(ROWS, dtype=torch.int64, device=DEVICE))
    scatter, cross, total = _centred(moments, names)
    method = LeastSquares()

    def r2(coef: Tensor) -> Tensor:
        left = total - 2 * (coef * cross).sum((1, 2)) + (coef * (scatter @ coef)).sum((1, 2))
        return 1 - left / total

    def cholesky(scatter: Tensor, cross: Tensor) -> Tensor:
        return torch.cholesky_solve(cross, torch.linalg.cholesky_ex(scatter).L)

    duel(
        ours=lambda: _in_order(names, _solved(moments, names, method)),
        peers={
            "ours, source by source": lambda: torch.stack(
                [Factorisation.of(moments, name, method).fit(f"y{name}").coef for name in names]
            ),
            "torch Cholesky, source by source": lambda: torch.stack([*map(cholesky, scatter, cross)]),
            "torch Cholesky, in one batch": lambda: cholesky(scatter, cross),
        },
        exact=lambda: torch.tensor([*map(exact_r2, x, y)], dtype=torch.float64),
        error=lambda coef, exact: float((r2(coef).cpu() - exact).abs().max()),
        gate=1e-6,
    )


def _solved(moments: Moments, names: list[str], method: LeastSquares) -> dict[str, Tensor]:
    """Return the coefficients of every fit, as a scan solves them."""

    def solve(sources: list[str]) -> dict[str, Tensor]:
        return {s.x: s.fit(f"y{s.x}").coef for s in Factorisation.together(moments, sources, method)}

    groups = source_groups(moments, names)
    return {x: coef for group in side_by_side(solve, groups, DEVICE) for x, coef in group.items()}


def _widths(names: list[str]) -> dict[str, int]:
    return {prefix + name: WIDTH for prefix in ("", "y") for name in names}


def _in_order(names: list[str], coefs: dict[str, Tensor]) -> Tensor:
    return torch.stack([coefs[name] for name in names])


def _centred(moments: Moments, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return scatters and cross products about the means, (S, d, d) each, and sums of squares of the targets, (S,)."""
    found = []
    for x, y in ((name, f"y{name}") for name in names):
        x_sum, y_sum = moments.sum(x)[0], moments.sum(y)[0]
        products = ((moments.cross(x, x)[0], x_sum), (moments.cross(x, y)[0], y_sum))
        squares = moments.square(y)[0] - y_sum.square() / ROWS
        found.append((*(p - torch.outer(x_sum, s) / ROWS for p, s in products), squares.sum()))
    scatters, crosses, totals = zip(*found, strict=True)
    return torch.stack(scatters), torch.stack(crosses), torch.stack(totals)
