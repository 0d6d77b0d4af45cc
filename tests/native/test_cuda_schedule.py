"""Schedule of the CUDA Gram kernel on a GPU of 132 multiprocessors, for the plans of real models."""

import numpy as np
import pytest

from fastprobe.ops.gram.cuda_launches import PAIRS, SLAB, TILE, parts_of, tiles_of
from tests.native.cuda_on_host import host_layout
from tests.real_plans import PLANS, plan_of

PROCESSORS = 132


@pytest.fixture
def layout():
    return host_layout() or pytest.skip("no C++ compiler")


@pytest.mark.parametrize("tokens", [32_768, 131_072])
@pytest.mark.parametrize("name", PLANS)
def test_multiprocessors_are_busy(layout, name, tokens):
    """Every multiprocessor takes the items whose numbers are its own modulo their number, launch after launch."""
    plan, stage = plan_of(name)
    widths, blocks = plan.widths, list(plan.widths)
    slabs = -(-tokens // plan.folds // SLAB)
    first = (np.arange(plan.folds + 1) * slabs).astype(np.int32)
    pairs = sorted(stage.pairs, key=lambda pair: pair not in plan.pooled)
    done = ends = 0.0
    for start in range(0, len(pairs), PAIRS):
        here = pairs[start : start + PAIRS]
        units = sum(plan.folds * tiles_of(widths[x], widths[y], x == y, TILE) for x, y in here)
        arguments = []
        for x, y in here:
            folds = 1 if (x, y) in plan.pooled else plan.folds
            arguments.append((blocks.index(x), blocks.index(y), widths[x], widths[y], 0, 0, 0, folds))
        launch = layout.Plan(arguments, TILE, parts_of(units, slabs, PROCESSORS), plan.folds, first.ctypes.data, 0)
        work = np.zeros(PROCESSORS)
        for item in range(launch.items):
            *_, begin, end, _ = launch.work(item)
            work[item % PROCESSORS] += end - begin
        done, ends = done + work.sum(), ends + work.max()

    assert done / (PROCESSORS * ends) >= 0.95
