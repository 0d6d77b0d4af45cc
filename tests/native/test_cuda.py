"""Machine code of the CUDA kernels: no local memory, and the instructions that they were written for."""

import re

import pytest

from tests.native.cuda_resources import compiled, disassembler, machine_code, nvcc, resources

ON_WGMMA = ("gram_kernel<bfloat16>", "gram_kernel<float16>")

pytestmark = pytest.mark.skipif(nvcc() is None, reason="no nvcc on PATH or in CUDA_HOME/bin")
disassembled = pytest.mark.skipif(disassembler() is None, reason="no cuobjdump on PATH or in Triton's package")


@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_kernels_keep_their_numbers_in_registers(architecture):
    rows = resources(architecture)

    assert len(rows) == 5
    assert {row["kernel"]: row["stack_bytes"] for row in rows} == dict.fromkeys((row["kernel"] for row in rows), 0)
    assert max(row["shared_bytes"] for row in rows) <= 227 * 1024


def test_the_compiler_has_no_warnings():
    """A warning could be that wgmma is serialised, or that setmaxnreg is ignored."""
    assert "warning" not in compiled("90a")[1].lower()
    assert "Potential Performance Loss" not in compiled("90a")[1]


CHAINS = 2
"""Chains of one turn of the loop."""

PRODUCTS = r"HGMMA\.64x128x16\.F32"


@pytest.fixture(params=ON_WGMMA)
def loop(request):
    """Return the instructions of the loop over the chains of an item."""
    if disassembler() is None:
        pytest.skip("no cuobjdump on PATH or in Triton's package")
    bodies = loops(machine_code("90a")[request.param])
    (found,) = [body for body in bodies if count(body, "HGMMA") == 8 * CHAINS]
    return found


def loops(code):
    """Return the instructions of every loop that has no other inside: from the target of a jump back to the jump."""
    lines = [(int(at, 16), line.strip()) for at, line in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)]
    jump = r"BRA(?:\.\w+)* (?:\w+, )?0x([0-9a-f]+)"
    jumps = [(at, int(to, 16)) for at, line in lines for to in re.findall(jump, line)]
    back = [(to, at) for at, to in jumps if to <= at]
    inner = [(to, at) for to, at in back if not any(to <= a and b <= at and (a, b) != (to, at) for a, b in back)]
    return [[line for at, line in lines if first <= at <= last] for first, last in inner]


def count(body, pattern):
    return sum(re.search(pattern, line) is not None for line in body)


def test_a_chain_is_eight_products_of_adjacent_columns(loop):
    products = [line for line in loop if re.search(PRODUCTS, line)]

    assert len(products) == 8 * CHAINS
    assert all("tnspA.tnspB" in line for line in products)
    assert count(products, r"RZ, !UPT") == CHAINS  # only the first product of a chain starts from nothing
    assert count(products, r"gsb0") == CHAINS  # a chain is one group


def test_one_chain_is_multiplied_while_the_other_is_added(loop):
    """The two chains have different accumulators, and a wait leaves the later one unfinished."""
    waits = [k for k, line in enumerate(loop) if "WARPGROUP.DEPBAR" in line]
    accumulators = [re.search(r"HGMMA\S* (R\d+)", line)[1] for line in loop if re.search(PRODUCTS, line)]

    assert [loop[k] for k in waits] == CHAINS * ["WARPGROUP.DEPBAR.LE gsb0, 0x1"]
    assert len(set(accumulators[:8])) == len(set(accumulators[8:])) == 1
    assert accumulators[0] != accumulators[8]


def test_a_chain_costs_few_instructions(loop):
    assert count(loop, r"\bFADD\b") == 64 * CHAINS
    assert len(loop) <= 159 * CHAINS
    assert count(loop, r"\bMOV\b") <= 8  # accumulators and sums are not copied


def test_stages_are_released_soon_after_the_wait(loop):
    waits = [k for k, line in enumerate(loop) if "WARPGROUP.DEPBAR" in line]
    for wait in waits:
        following = (loop[wait:] + loop)[:40]
        releases = [k for k, line in enumerate(following) if "SYNCS.ARRIVE" in line]
        assert releases[0] <= 20


@disassembled
@pytest.mark.parametrize("kernel", ON_WGMMA)
def test_rows_come_by_the_copy_engine_and_nothing_goes_through_local_memory(kernel):
    code = machine_code("90a")[kernel]

    assert "UTMALDG.2D" in code
    assert not re.search(r"\b(LDL|STL)\b", code)


@disassembled
@pytest.mark.parametrize("kernel", ON_WGMMA)
def test_warpgroups_own_the_registers_they_use(kernel):
    """After ``setmaxnreg`` a thread does not own registers above the limit."""
    code = machine_code("90a")[kernel]
    (_, *consumers), (_, *producers) = (re.split(rf"USETMAXREG\.{side}\S*", code) for side in ("TRY_ALLOC", "DEALLOC"))

    # The waits that are repeated stand behind the last exit, those of both.
    for part, limit in ((consumers[0], 232), (producers[0], 40)):
        after = part.partition("USETMAXREG")[0].rpartition("EXIT")[0]
        assert hex(limit) in after.partition(";")[0]
        assert max(map(int, re.findall(r"\bR(\d+)\b", after))) < limit


@disassembled
@pytest.mark.parametrize(("architecture", "products"), [("80", 64 * ["DMMA.884"]), ("90a", 8 * ["DMMA.16x8x16"])])
def test_float64_products_are_made_in_tensor_cores(architecture, products):
    code = machine_code(architecture)["gram_exact_kernel"]

    assert re.findall(r"DMMA\.\w+", code) == products
    assert not re.search(r"\b(LDL|STL)\b", code)


@disassembled
def test_sums_go_to_memory_without_waiting_for_it():
    assert all("REDG.E.ADD.F64" in machine_code("90a")[kernel] for kernel in (*ON_WGMMA, "gram_exact_kernel"))
    assert not any("ATOM" in code for code in machine_code("90a").values())
