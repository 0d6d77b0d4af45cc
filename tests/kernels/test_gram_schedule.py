"""Schedule of the Triton Gram's programs on a GPU of 132 multiprocessors, for the plans of real models."""

import heapq

import pytest
import torch

pytest.importorskip("triton")

from fastprobe.kernels._schedule import OVERHEAD, slot_length
from fastprobe.kernels._slots import slots_of
from fastprobe.kernels.gram import GramConfig
from tests.real_plans import PLANS, plan_of

PROCESSORS = 132
CONFIG = GramConfig()


def end_of(jobs):
    """Return the time at which the last of some jobs ends; each goes to the processor that is free first."""
    free = [0.0] * PROCESSORS
    for job in jobs:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def tiles_of(stage, plan):
    """Return the number of tiles of a stage."""
    across = {block: -(-width // CONFIG.block_d) for block, width in plan.widths.items()}
    return sum(across[x] * (across[x] + 1) // 2 if x == y else across[x] * across[y] for x, y in stage.pairs)


@pytest.mark.parametrize("tokens", [32_768, 131_072])
@pytest.mark.parametrize("name", PLANS)
def test_multiprocessors_are_busy(name, tokens, generator):
    plan, stage = plan_of(name)
    lengths = torch.randint(64, 129, (tokens // 96,), generator=generator)
    fold = (torch.arange(len(lengths)) % plan.folds).sort()[0].repeat_interleave(lengths)
    tiles = tiles_of(stage, plan)

    length = slot_length(len(fold), plan.folds, tiles, PROCESSORS, CONFIG.chain)
    slots = slots_of(fold, plan.folds, length, CONFIG.chain)
    rows = (slots.end - slots.start).clamp(min=0)
    jobs = [float(length) + OVERHEAD for length in rows[rows > 0] for _ in range(tiles)]

    assert int(rows.sum()) == len(fold)
    assert sum(jobs) / PROCESSORS / end_of(jobs) >= 0.85
    assert len(fold) * tiles / sum(jobs) >= 0.7  # the rest is the cost of starting and adding up


@pytest.mark.parametrize(("width", "at_least"), [(384, 0.95), (768, 0.95), (1024, 0.95), (4096, 0.95)])
def test_one_pair_of_a_million_rows_keeps_all_multiprocessors_busy(width, at_least):
    side = -(-width // CONFIG.block_d)
    tiles, n = side * (side + 1) // 2 + side * side, 2**20
    length = slot_length(n, 1, tiles, PROCESSORS, CONFIG.chain)
    slots = slots_of(torch.zeros(n, dtype=torch.int64), 1, length, CONFIG.chain)
    rows = (slots.end - slots.start).clamp(min=0)

    assert int(rows.sum()) == n
    jobs = [float(length) + OVERHEAD for length in rows[rows > 0] for _ in range(tiles)]
    assert n * tiles / PROCESSORS / end_of(jobs) >= at_least
