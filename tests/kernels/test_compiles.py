"""Machine code of every Triton kernel for three kinds of GPU, compiled without one: nothing spills, everything fits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
CODE = """
import json, sys
sys.path.insert(0, {tests!r})
import compiled
at = tuple(json.loads(sys.argv[1]))
hot = [compiled.products(at), compiled.products(at, choice=1), compiled.products(at, half=True), compiled.scores(at),
       compiled.scores(at, 1, False), compiled.vocabulary(at), compiled.vocabulary(at, 3)]
rows = [vars(row) | {{"hot": row in hot, "fits": row.shared <= compiled.SHARED[at]}}
        for row in (*hot, *compiled.rowwise(at), *compiled.others(at))]
print(json.dumps(rows))
"""
"""Runs in another process, because Triton interprets kernels in this one."""


@pytest.fixture(scope="module", params=[(8, 0), (9, 0), (10, 0)], ids=["sm_80", "sm_90", "sm_100"])
def kernels(request):
    """Return the compiled kernels for one compute capability, by name."""
    code = CODE.format(tests=str(Path(__file__).parent))
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request.param)],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {row["name"]: row | {"capability": request.param} for row in json.loads(done.stdout)}


def test_no_thread_needs_local_memory(kernels):
    assert {name: row["stack"] for name, row in kernels.items() if row["stack"]} == {}


def test_no_kernel_is_empty(kernels):
    # Triton 3.6 once compiled a loop to an empty kernel without an error; it had four registers.
    assert {name for name, row in kernels.items() if row["registers"] < 10 and name != "table"} == set()


def test_shared_memory_fits(kernels):
    assert all(row["fits"] for row in kernels.values())


def hot_loop(ttgir):
    """Return the loop of a Gram kernel, and its part under an ``if``, from the compiler's intermediate code."""
    lines = ttgir.splitlines()
    (start,) = [k for k, line in enumerate(lines) if "scf.for" in line]
    indent = len(lines[start]) - len(lines[start].lstrip())
    stop = next(k for k in range(start + 1, len(lines)) if lines[k].startswith(" " * indent + "}"))
    body = lines[start : stop + 1]
    branch = next(k for k, line in enumerate(body) if "scf.if" in line and "tensor<" in line)
    return "\n".join(body[:branch]), "\n".join(body[branch:])


def gram_kernels(kernels, capability):
    rows = [row for row in kernels.values() if row["name"].startswith("gram products")]
    return [row for row in rows if tuple(row["capability"]) == capability]


def test_on_hopper_a_product_is_in_flight_while_the_next_rows_are_fetched(kernels):
    """The wait in the loop leaves one product unfinished; only where a chain is added up nothing is in flight."""
    for row in gram_kernels(kernels, (9, 0)):
        loop, addition = hot_loop(row["ttgir"])
        assert re.findall(r"warp_group_dot_wait.*pendings = (\d+)", loop) == ["1"], row["name"]
        assert re.findall(r"warp_group_dot_wait.*pendings = (\d+)", addition) == ["0"], row["name"]


def test_on_hopper_and_later_the_ring_of_rows_is_as_deep_as_the_stages(kernels):
    for capability in ((9, 0), (10, 0)):
        for row in gram_kernels(kernels, capability):
            side = 64 if capability >= (10, 0) else 128
            rings = re.findall(rf"local_alloc : \(\) -> !ttg.memdesc<(\d+)x64x{side}xb?f16", row["ttgir"])
            assert rings == 2 * [str(row["stages"])], row["name"]
            assert row["stages"] >= 3


def test_rows_come_by_the_copy_engine_where_there_is_one(kernels):
    """It writes to shared memory in the order in which products read it; other copies would need a proxy fence."""
    for capability in ((9, 0), (10, 0)):
        for row in gram_kernels(kernels, capability):
            assert "cp.async.bulk.tensor.3d" in row["ptx"], row["name"]
            assert "cp.async.c" not in row["ptx"], row["name"]


def test_rows_are_fetched_ahead_16_bytes_at_a_time(kernels):
    for row in kernels.values():
        if row["hot"] and not (row["name"].startswith("gram") and row["capability"] >= (9, 0)):
            copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*?(0x10|, 16),", row["ptx"])
            assert len(copies) >= 8, row["name"]


def test_rows_that_are_read_once_are_read_16_bytes_at_a_time(kernels):
    for row in kernels.values():
        if row["name"].startswith(("add_norm", "bias_gelu")):
            wide = re.findall(r"ld\.global\S*\.(v4\.b32|v2\.b64)", row["ptx"])
            assert len(wide) >= 2, row["name"]


def test_hopper_multiplies_by_warp_groups(kernels):
    for row in kernels.values():
        if row["hot"] and row["capability"] == (9, 0):
            assert "wgmma.mma_async" in row["ptx"], row["name"]


def test_chains_are_added_up_outside_of_the_tensor_core(kernels):
    # If the accumulator of a chain were the sum itself, there would not be one addition for each number.
    for row in kernels.values():
        if row["hot"] and row["name"].startswith("gram"):
            side = 64 if row["capability"] >= (10, 0) else 128
            additions = len(re.findall(r"\badd(?:\.rn)?(?:\.f32|\.f32x2)\b", row["ptx"]))
            numbers = side * side // (32 * row["warps"])
            assert additions >= numbers / 2, row["name"]  # two at a time where f32x2 is
