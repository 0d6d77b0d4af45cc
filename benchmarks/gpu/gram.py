"""Products of column blocks on a GPU: ours, their variants, and torch in every precision."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.rows import DEVICE, ON_GPU, Contestant, Rows, Run, race, result_of
from benchmarks.models import generator, residual_rows
from fastprobe.kernels import gram as kernels
from fastprobe.ops.gram import Block, Pair, cuda
from fastprobe.ops.gram import triton as triton_backend
from fastprobe.testing import tensor_core

GATE = 1e-6
TOKENS = 2**20 if ON_GPU else 256
Pairs = Sequence[tuple[int, int]]
PAIR: Pairs = ((0, 0), (0, 1))


def off() -> set[str]:
    """Return the backends whose smoke test failed."""
    return set(filter(None, os.environ.get("FASTPROBE_OFF", "").split(",")))


def rows_of(count: int, width: int, dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS) -> list[Tensor]:
    seeded = generator()
    return [residual_rows(tokens, width, seeded).to(dtype) for _ in range(count)]


def ours(launch: Callable[..., Any], rows: Sequence[Tensor], pairs: Pairs, fold: Tensor | None = None) -> Contestant:
    """Return a contestant that adds products to float64 matrices. Origins and outputs are made outside of its time."""
    widths = [block.shape[1] for block in rows]
    fold = torch.zeros(len(rows[0]), dtype=torch.int64, device=DEVICE) if fold is None else fold
    folds = int(fold.max()) + 1
    blocks = [Block(block, torch.zeros(block.shape[1], dtype=torch.float64, device=DEVICE)) for block in rows]
    outs = [Pair(i, j, torch.zeros(folds, widths[i], widths[j], dtype=torch.float64, device=DEVICE)) for i, j in pairs]

    def run() -> None:
        launch(blocks, outs, fold)

    def result() -> list[Tensor]:
        for pair in outs:
            pair.gram.zero_()
        run()
        return [pair.gram.sum(0) for pair in outs]

    return Contestant(run, result)


def our_backends(rows: Sequence[Tensor], pairs: Pairs, fold: Tensor | None = None) -> dict[str, Contestant | Run]:
    """Return the contestants of the backends that passed their smoke tests and take these rows."""
    found: dict[str, Contestant | Run] = {}
    halves = rows[0].dtype in (torch.bfloat16, torch.float16)
    if ON_GPU and "cuda" not in off() and cuda.library() is not None and halves:
        found["cuda"] = ours(cuda.launch_gram, rows, pairs, fold)
    if "triton" not in off():
        found["triton"] = ours(triton_backend.launch_gram, rows, pairs, fold)
    return found


def by_torch(rows: Sequence[Tensor], pairs: Pairs, dtype: torch.dtype, tf32: bool = False) -> Run:
    """Return a function that makes torch's products, casts included, those of bfloat16 rows with sums in float32."""

    def run() -> list[Tensor]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        wide = [block.to(dtype) for block in rows]
        if dtype == torch.bfloat16 and ON_GPU:
            return [torch.mm(wide[i].mT, wide[j], out_dtype=torch.float32) for i, j in pairs]
        return [wide[i].mT @ wide[j] for i, j in pairs]

    return run


def largest_error(rows: Sequence[Tensor], pairs: Pairs) -> Callable[[list[Tensor]], float]:
    """Return the error of products relative to sqrt(G_ii G_jj), against float64 products in slices."""
    exact: list[Tensor] = []

    def error(got: list[Tensor]) -> float:
        if not exact:
            zeros = partial(torch.zeros, dtype=torch.float64, device=DEVICE)
            sums = [zeros(rows[i].shape[1], rows[j].shape[1]) for i, j in pairs]
            squares = [zeros(block.shape[1]) for block in rows]
            for start in range(0, len(rows[0]), 2**16):
                wide = [block[start : start + 2**16].double() for block in rows]
                for out, (i, j) in zip(sums, pairs, strict=True):
                    out += wide[i].mT @ wide[j]
                for square, block in zip(squares, wide, strict=True):
                    square += block.square().sum(0)
            sizes = [torch.outer(squares[i], squares[j]).sqrt() for i, j in pairs]
            exact.extend([*sums, *sizes])
        errors = []
        for ours, right, size, (i, j) in zip(got, exact, exact[len(pairs) :], pairs, strict=False):
            off_by = (ours.double() - right).abs() / size
            errors.append(float((off_by.triu() if i == j else off_by).max()))
        return max(errors)

    return error


def flops(rows: Sequence[Tensor], pairs: Pairs) -> int:
    """Return the operations of a task: one triangle of x^T x."""
    wide = [block.shape[1] for block in rows]
    return sum(len(rows[0]) * wide[i] * (wide[i] + 1 if i == j else 2 * wide[j]) for i, j in pairs)


def _sizes(rows: Sequence[Tensor]) -> str:
    return f"{len(rows[0])} x {rows[0].shape[1]}"


def ceiling(rows: Rows) -> None:
    """Measure a large bfloat16 product, the ceiling of all rates."""
    side = 8192 if ON_GPU else 64
    a, b = (torch.randn(side, side, generator=generator(i), device=DEVICE).bfloat16() for i in (0, 1))
    race(rows, "ceiling", f"{side}^3 bf16", {"torch": lambda: torch.mm(a, b)}, flops=2 * side**3, seconds=1.0)


def pair(rows: Rows, width: int, dtype: torch.dtype = torch.bfloat16, tokens: int | None = None) -> None:
    """Goals G1 to G3: x^T x and x^T y of one pair, against torch in every precision."""
    width = width if ON_GPU else 16
    tokens = tokens or (TOKENS if width <= 1024 else TOKENS // 8)
    blocks = rows_of(2, width, dtype, tokens)
    contestants = our_backends(blocks, PAIR) | {
        "torch bf16, sums in fp32": by_torch(blocks, PAIR, torch.bfloat16),
        "torch tf32": by_torch(blocks, PAIR, torch.float32, tf32=True),
        "torch fp32": by_torch(blocks, PAIR, torch.float32),
    }
    race(
        rows, "products of one pair", f"{tokens} x {width} {str(dtype).removeprefix('torch.')}", contestants,
        error=largest_error(blocks, PAIR), gate=GATE, flops=flops(blocks, PAIR),
        bytes=sum(block.nbytes for block in blocks), graphs=tokens <= 2**17,
    )  # fmt: skip


def small_pair(rows: Rows) -> None:
    """The pair with few rows, where the fixed cost of a call shows."""
    for width in (384, 768):
        pair(rows, width if ON_GPU else 16, tokens=100_000 if ON_GPU else 256)


def other_dtypes(rows: Rows) -> None:
    """The pair in float16 and in float32, which takes six products of bfloat16 planes."""
    for dtype in (torch.float16, torch.float32):
        pair(rows, 768 if ON_GPU else 16, dtype)


def folds(rows: Rows, width: int = 768) -> None:
    """Measure the pair in five folds: rows of a fold adjacent, as a scan has them, and scattered."""
    blocks = rows_of(2, width if ON_GPU else 32)
    sequence = torch.arange(len(blocks[0]), device=DEVICE) // 128
    for case, fold in (("adjacent", (sequence * 5 // (sequence[-1] + 1))), ("scattered", sequence % 5)):
        race(
            rows, "products of one pair in five folds", case, our_backends(blocks, PAIR, fold),
            error=largest_error(blocks, PAIR), gate=GATE, flops=flops(blocks, PAIR),
        )  # fmt: skip


def exact_products(rows: Rows, width: int = 768) -> None:
    """Goal G4: the pair in float64, against torch, which converts a copy."""
    blocks = rows_of(2, width if ON_GPU else 32)
    contestants = {"torch fp64": by_torch(blocks, PAIR, torch.float64)}
    if ON_GPU and "exact" not in off() and cuda.library() is not None:
        contestants["cuda"] = ours(partial(cuda.launch_gram, exact=True), blocks, PAIR)
    race(
        rows, "exact products of one pair", _sizes(blocks), contestants, error=largest_error(blocks, PAIR),
        gate=1e-12, flops=flops(blocks, PAIR),
    )  # fmt: skip


def shared_blocks(rows: Rows, width: int = 768) -> None:
    """Goals G8 and G9: five elements of a layer with two sources, and all pairs of states, against torch by pairs."""
    width = width if ON_GPU else 16
    states = 13 if ON_GPU else 3
    spans = [(i, j) for i in range(states) for j in range(i + 1, states)]
    for case, count, targets, tokens in (
        ("five elements of a layer", 5, [(0, 2), (0, 1), (0, 4), (1, 3), (1, 4)], TOKENS // 4),
        ("all pairs of states", states, spans, TOKENS // 8),
    ):
        blocks = rows_of(min(count, states) if case.startswith("all") else count, width, tokens=tokens)
        pairs = [*((x, x) for x in sorted({x for x, _ in targets})), *targets]
        everyone = [one for x, y in targets for one in ((x, x), (x, y))]
        product = by_torch(blocks, everyone, torch.bfloat16)
        peers = {"torch bf16, pair by pair": _only(product, everyone, pairs)}
        race(
            rows, case, f"{tokens} x {width}", our_backends(blocks, pairs) | peers, error=largest_error(blocks, pairs),
            gate=GATE, flops=flops(blocks, pairs),
        )  # fmt: skip


def _only(product: Run, of: Pairs, wanted: Pairs) -> Run:
    """Select the products of ``wanted`` from those of ``of``, which may repeat pairs."""

    def run() -> list[Tensor]:
        made = dict(zip(of, product(), strict=True))
        return [made[one] for one in wanted]

    return run


def triton_variants(rows: Rows, width: int) -> None:
    """Measure configurations of the Triton kernel side by side."""
    blocks = rows_of(2, width if ON_GPU else 16)
    base = kernels.configs(torch.cuda.get_device_capability() if ON_GPU else None)[0]
    choices = {
        "default": base,
        "stages 2": replace(base, num_stages=2),
        "stages 3": replace(base, num_stages=3),
        "no descriptors": replace(base, descriptors=False, num_stages=3),
        "chain 64": replace(base, chain=64, block_n=32),
        "chain 256": replace(base, chain=256),
        "flush 4096": replace(base, flush=4096),
        "tile 64": replace(base, block_d=64, num_warps=4),
    }
    launches = {name: partial(kernels.launch_gram, config=it, zero_origins=True) for name, it in choices.items()}
    contestants = {name: ours(launch, blocks, PAIR) for name, launch in launches.items()}
    race(
        rows, "variants of the Triton kernel", _sizes(blocks), contestants, error=largest_error(blocks, PAIR),
        gate=GATE, flops=flops(blocks, PAIR), seconds=4.0,
    )  # fmt: skip


def cuda_variants(rows: Rows, width: int) -> None:
    """Measure builds of the CUDA kernel side by side: numbers of stages, and of rows summed in float32."""
    blocks = rows_of(2, width if ON_GPU else 16)
    contestants = {}
    for path in sorted(Path("build/variants").glob("*/_cuda*.so")):
        # pybind11 returns the same module for the same name.
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}._cuda", path)
        assert spec is not None
        assert spec.loader is not None
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
        contestants[path.parent.name] = ours(_with(library), blocks, PAIR)
    race(
        rows, "variants of the CUDA kernel", _sizes(blocks), contestants, error=largest_error(blocks, PAIR),
        gate=GATE, flops=flops(blocks, PAIR), seconds=4.0,
    )  # fmt: skip


def _with(library: Any) -> Callable[..., Any]:
    def launch(*args: Any) -> None:
        before, cuda.library = cuda.library, lambda: library
        try:
            cuda.launch_gram(*args)
        finally:
            cuda.library = before

    return launch


def chain_model(rows: Rows) -> None:
    """Count the sums that differ from the model ``fastprobe.testing.tensor_core``, for each chain length."""
    block = torch.randn(2**12 if ON_GPU else 256, 32, generator=generator(), device=DEVICE).bfloat16()
    host = block.float().cpu().numpy()
    for chain in (128, 256, 512):
        base = kernels.configs(torch.cuda.get_device_capability() if ON_GPU else None)[0]
        config = replace(base, block_d=64, num_warps=4, num_stages=2, chain=chain)
        (got,) = ours(partial(kernels.launch_gram, config=config), [block], [(0, 0)]).result()
        model = torch.from_numpy(tensor_core.gram(host, host, chain=chain)).to(DEVICE).triu()
        exact = (block.double().mT @ block.double()).triu()
        sizes = exact.diagonal().sqrt()
        rows.write(
            "sums in the tensor core", f"chain {chain}", "triton", different=int((got.triu() != model).sum()),
            largest_difference=float(((got.triu() - model).abs() / torch.outer(sizes, sizes)).max()),
            bias=float((got.diagonal() / exact.diagonal() - 1).mean()),
            bias_of_the_model=float((model.diagonal() / exact.diagonal() - 1).mean()),
        )  # fmt: skip


def lengths(rows: Rows) -> None:
    """Measure the bias of the sum of squares of a positive column by its length, in torch's product and in ours."""
    for n in [2**k for k in range(12, 25 if ON_GPU else 13)]:
        for column in ("constant", "uniform"):
            block = torch.full((n, 64), 1.9921875, device=DEVICE)
            if column == "uniform":
                block = torch.rand(n, 64, generator=generator(), device=DEVICE).add(1)
            block = block.bfloat16()
            exact = sum(part.double().square().sum(0) for part in block.split(2**20))
            contestants = our_backends([block], [(0, 0)]) | {"torch": by_torch([block], [(0, 0)], torch.bfloat16)}
            for name, run in contestants.items():
                (got,) = result_of(run)
                bias = float((got.diagonal().double() / exact - 1).mean())
                rows.write("bias of a positive column", f"{column}, {n} rows", name, bias=bias)
