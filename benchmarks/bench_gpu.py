"""Compare our kernels on a GPU with torch (``make gpu``), and test the model of sums in tensor cores first.

On a machine without a GPU, everything runs at tiny sizes in Triton's interpreter (``TRITON_INTERPRET=1``). This finds
mistakes before time on a GPU is spent. The timings then mean nothing. Rates count the operations that a task needs: one
triangle of x^T x.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.models import DEVICE, generator, residual_rows
from fastprobe.benchmarking.configurations import tune
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.score import score
from fastprobe.testing import tensor_core

pytest.importorskip("triton")

from fastprobe.kernels import gram as kernels

pytestmark = pytest.mark.gpu

ON_GPU = DEVICE.type == "cuda"
TOKENS = 2**20 if ON_GPU else 128
WIDTH = 768 if ON_GPU else 16
STATES = 13 if ON_GPU else 3
SWEEP = [2**k for k in range(12, 25 if ON_GPU else 14)]
GATE = 1e-6

Pairs = list[tuple[int, int]]


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def _rows(count: int, dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS) -> list[Tensor]:
    seeded = generator()
    return [residual_rows(tokens, WIDTH, seeded).to(dtype) for _ in range(count)]


def _grams(rows: list[Tensor], pairs: Pairs, backend: str, exact: bool = False) -> list[Tensor]:
    """Return the products by one of our backends, (D, D) float64 each. Skip the benchmark if the backend refuses."""
    grams = [torch.zeros(1, WIDTH, WIDTH, dtype=torch.float64, device=DEVICE) for _ in pairs]
    fold = torch.zeros(len(rows[0]), dtype=torch.int64, device=DEVICE)
    blocks = [Block(block, torch.zeros(WIDTH, dtype=torch.float64, device=DEVICE)) for block in rows]
    arguments = blocks, [Pair(i, j, gram) for (i, j), gram in zip(pairs, grams, strict=True)], fold
    if reason := gram_.refusals(*arguments, exact=exact)[backend]:
        pytest.skip(f"{backend}: {reason}")
    gram_.on(backend)(*arguments, exact=exact)
    return [gram[0].triu() if i == j else gram[0] for gram, (i, j) in zip(grams, pairs, strict=True)]


def _torch(rows: list[Tensor], pairs: Pairs, dtype: torch.dtype, tf32: bool = False) -> list[Tensor]:
    """Return the products of torch, casts included. On a GPU, bfloat16 products are written in float32."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    wide = [block.to(dtype) for block in rows]
    if dtype == torch.bfloat16 and ON_GPU:
        return [torch.mm(wide[i].mT, wide[j], out_dtype=torch.float32) for i, j in pairs]
    return [wide[i].mT @ wide[j] for i, j in pairs]


def _exact(rows: list[Tensor], pairs: Pairs) -> list[Tensor]:
    """Return products and norms in float64. Rows are processed in slices to save memory."""
    outs = [torch.zeros(WIDTH, WIDTH, dtype=torch.float64, device=DEVICE) for _ in pairs]
    squares = torch.zeros(len(rows), WIDTH, dtype=torch.float64, device=DEVICE)
    for start in range(0, len(rows[0]), 2**17):
        wide = [block[start : start + 2**17].double() for block in rows]
        for out, (i, j) in zip(outs, pairs, strict=True):
            out += wide[i].mT @ wide[j]
        squares += torch.stack([block.square().sum(0) for block in wide])
    return [*outs, squares.sqrt()]


def _error(pairs: Pairs) -> Callable[[list[Tensor], list[Tensor]], float]:
    def largest(got: list[Tensor], exact: list[Tensor]) -> float:
        norms, errors = exact[-1], []
        for ours, right, (i, j) in zip(got, exact, pairs, strict=False):
            error = (ours.double() - right).abs() / torch.outer(norms[i], norms[j])
            errors.append(float((error.triu() if i == j else error).max()))
        return max(errors)

    return largest


def _flops(tokens: int, pairs: Pairs) -> int:
    return sum(tokens * WIDTH * (WIDTH + 1 if i == j else 2 * WIDTH) for i, j in pairs)


@pytest.mark.benchmark(group="sums in the tensor core")
def bench_chain_model(benchmark: Any) -> None:
    """Count the sums that differ from the model ``fastprobe.testing.tensor_core``, for each chain length."""
    rows = torch.randn(2**12, 32, generator=generator(), device=DEVICE).to(torch.bfloat16)
    host = rows.float().cpu().numpy()
    found = []
    for chain in (128, 256, 512):
        # One stage, because the whole chain is in shared memory.
        config = kernels.GramConfig(block_d=64, num_warps=4, num_stages=1, chain=chain)
        out = torch.zeros(1, 32, 32, dtype=torch.float64, device=DEVICE)
        zero = torch.zeros(32, dtype=torch.float64, device=DEVICE)
        fold = torch.zeros(len(rows), dtype=torch.int64, device=DEVICE)
        kernels.launch_gram([Block(rows, zero)], [Pair(0, 0, out)], fold, config=config)
        model = torch.from_numpy(tensor_core.gram(host, host, chain=chain)).to(DEVICE).triu()
        got, exact = out[0].triu(), (rows.double().mT @ rows.double()).triu()
        sizes = exact.diagonal().sqrt()
        found.append(
            {
                "chain": chain,
                "entries that differ from the model": int((got != model).sum()),
                "largest difference": float(((got - model).abs() / torch.outer(sizes, sizes)).max()),
                "bias measured": float((got / exact - 1).diagonal().mean()),
                "bias of the model": float((model / exact - 1).diagonal().mean()),
            }
        )
    _keep(benchmark, "Sums in the tensor core, chains", found)


@pytest.mark.parametrize("column", ["constant", "uniform"])
@pytest.mark.benchmark(group="sums in the tensor core")
def bench_length(benchmark: Any, column: str) -> None:
    """Measure the bias of the sum of squares of a positive column by its length: plain bfloat16 product and ours."""
    found = []
    for n in SWEEP:
        rows = torch.full((n, 64), 1.9921875, device=DEVICE)
        if column == "uniform":
            rows = torch.rand(n, 64, generator=generator(), device=DEVICE).add(1)
        rows = rows.to(torch.bfloat16)
        exact = sum(part.double().square().sum(0) for part in rows.split(2**20))
        (plain,) = _torch([rows], [(0, 0)], torch.bfloat16)
        out, zero = (torch.zeros(*shape, dtype=torch.float64, device=DEVICE) for shape in ((1, 64, 64), (64,)))
        fold = torch.zeros(n, dtype=torch.int64, device=DEVICE)
        gram_.on("triton")([Block(rows, zero)], [Pair(0, 0, out)], fold)
        biases = (float((got.diagonal().double() / exact - 1).mean()) for got in (plain, out[0]))
        found.append(dict(zip(("rows", "torch bf16", "triton"), (n, *biases), strict=True)))
    _keep(benchmark, f"Sums in the tensor core, a {column} column", found)


def _keep(benchmark: Any, name: str, found: list[dict[str, Any]]) -> None:
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(name=name, sweep=found)


@pytest.mark.benchmark(group="ceiling")
def bench_ceiling(benchmark: Any) -> None:
    """Measure the rate of a large bfloat16 product, the ceiling of the rates below."""
    side = 8192 if ON_GPU else 64
    a, b = (torch.randn(side, side, generator=generator(i), device=DEVICE).to(torch.bfloat16) for i in (0, 1))

    def run() -> None:
        torch.mm(a, b)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=20 if ON_GPU else 1, warmup_rounds=3)
    if benchmark.stats is not None:
        benchmark.extra_info.update(ceiling_gflops=2 * side**3 / benchmark.stats.stats.median / 1e9)


@pytest.mark.benchmark(group="configurations")
def bench_configurations(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compare the fastest configuration with the default. Other benchmarks use the default."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timer = {} if ON_GPU else {"timer": lambda run: (run(), 1.0)[1]}
    rows = tune([WIDTH], TOKENS // 8, [torch.bfloat16], DEVICE, **timer)
    columns = ("kernel", "rows", "width", "times_default", "configuration")
    _keep(benchmark, "Configurations", [{name: row[name] for name in columns} for row in rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.benchmark(group="products of one pair")
def bench_pair(duel: Callable[..., None], dtype: torch.dtype, backend: str) -> None:
    """Goals G1 to G3: compare x^T x and x^T y of one pair, 768 wide, with torch's products in every precision."""
    pairs: Pairs = [(0, 0), (0, 1)]
    rows = _rows(2, dtype)
    duel(
        ours=lambda: _grams(rows, pairs, backend),
        peers={
            "torch bf16, sums in fp32": lambda: _torch(rows, pairs, torch.bfloat16),
            "torch tf32": lambda: _torch(rows, pairs, torch.float32, tf32=True),
            "torch fp32": lambda: _torch(rows, pairs, torch.float32),
            "torch fp64": lambda: _torch(rows, pairs, torch.float64),
        },
        exact=lambda: _exact(rows, pairs),
        error=_error(pairs),
        gate=GATE,
        flops=_flops(TOKENS, pairs),
        bytes=sum(block.nbytes for block in rows),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["cuda" if ON_GPU else "torch"])
@pytest.mark.benchmark(group="exact products of one pair")
def bench_exact(duel: Callable[..., None], dtype: torch.dtype, backend: str) -> None:
    """Goal G4: compare the pair in float64, converted as the rows are read, with torch, which converts a copy."""
    pairs: Pairs = [(0, 0), (0, 1)]
    rows = _rows(2, dtype)
    duel(
        ours=lambda: _grams(rows, pairs, backend, exact=True),
        peers={"torch fp64": lambda: _torch(rows, pairs, torch.float64)},
        exact=lambda: _exact(rows, pairs),
        error=_error(pairs),
        gate=1e-12,
        flops=_flops(TOKENS, pairs),
        bytes=sum(block.nbytes for block in rows),
    )


@pytest.mark.benchmark(group="products of a layer")
def bench_layer(duel: Callable[..., None], backend: str) -> None:
    """Goal G8: compare five elements of a layer that share two sources with x^T x and x^T y of each pair by torch."""
    rows = _rows(5, tokens=TOKENS // 4)
    targets: Pairs = [(0, 2), (0, 1), (0, 4), (1, 3), (1, 4)]
    pairs = [(0, 0), (1, 1), *targets]
    everyone = [pair for x, y in targets for pair in ((x, x), (x, y))]
    duel(
        ours=lambda: _grams(rows, pairs, backend),
        peers={"torch bf16, pair by pair": lambda: _only(_torch(rows, everyone, torch.bfloat16), everyone, pairs)},
        exact=lambda: _exact(rows, pairs),
        error=_error(pairs),
        gate=GATE,
        flops=_flops(TOKENS // 4, pairs),
    )


@pytest.mark.benchmark(group="products of all states")
def bench_states(duel: Callable[..., None], backend: str) -> None:
    """Goal G9: compare the products of all pairs of hidden states with x^T x and x^T y of each span by torch."""
    rows = _rows(STATES, tokens=TOKENS // 8)
    spans: Pairs = [(i, j) for i in range(STATES) for j in range(i + 1, STATES)]
    pairs = [(i, i) for i in range(STATES - 1)] + spans
    everyone = [pair for x, y in spans for pair in ((x, x), (x, y))]
    duel(
        ours=lambda: _grams(rows, pairs, backend),
        peers={"torch bf16, span by span": lambda: _only(_torch(rows, everyone, torch.bfloat16), everyone, pairs)},
        exact=lambda: _exact(rows, pairs),
        error=_error(pairs),
        gate=GATE,
        flops=_flops(TOKENS // 8, pairs),
    )


def _only(products: list[Tensor], of: Pairs, wanted: Pairs) -> list[Tensor]:
    """Select the products of ``wanted`` from those of ``of``, which may repeat pairs."""
    made = dict(zip(of, products, strict=True))
    return [made[pair] for pair in wanted]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.benchmark(group="score of a map on a GPU")
def bench_score_gpu(duel: Callable[..., None], dtype: torch.dtype) -> None:
    """Goals G10, G11: compare the four sums of each row of a linear map with torch and torch.compile."""
    x, y = _rows(2, dtype, TOKENS // 4)
    coef = torch.randn(WIDTH, WIDTH, generator=generator(), device=DEVICE) / WIDTH**0.5
    intercept = torch.randn(WIDTH, generator=generator(), device=DEVICE)

    def expression(x: Tensor, y: Tensor, coef: Tensor, intercept: Tensor) -> Tensor:
        p, y = (x @ coef.to(x.dtype)).float() + intercept, y.float()
        return torch.stack([(p * y).sum(1), p.square().sum(1), y.square().sum(1), (y - p).square().sum(1)])

    compiled = torch.compile(expression) if ON_GPU else expression
    torch.backends.cuda.matmul.allow_tf32 = False
    duel(
        ours=lambda: score.on("triton")(x, coef, intercept, y).error,
        peers={
            "torch": lambda: expression(x, y, coef, intercept)[3],
            "torch.compile": lambda: compiled(x, y, coef, intercept)[3],
            "torch fp32": lambda: expression(x.float(), y, coef, intercept)[3],
        },
        exact=lambda: (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1),
        error=lambda got, exact: float((got / exact - 1).abs().max()),
        gate=1e-5,
        flops=2 * len(x) * WIDTH * WIDTH,
        bytes=x.nbytes + y.nbytes + 16 * len(x),
    )
