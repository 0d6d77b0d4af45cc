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


@disassembled
@pytest.mark.parametrize("kernel", ON_WGMMA)
def test_a_chain_is_eight_wgmmas_of_adjacent_columns_loaded_by_the_copy_engine(kernel):
    code = machine_code("90a")[kernel]

    products = re.findall(r"HGMMA\.64x128x16\.F32\S* .*", code)
    assert len(products) == 8
    assert all("tnspA.tnspB" in line for line in products)
    assert sum("RZ, !UPT" in line for line in products) == 1  # only the first starts from nothing
    assert code.count("WARPGROUP.DEPBAR") == 1  # all eight are on their way before the one wait
    assert "UTMALDG.2D" in code
    assert not re.search(r"\b(LDL|STL)\b", code)


@disassembled
@pytest.mark.parametrize("kernel", ON_WGMMA)
def test_warpgroups_own_the_registers_they_use(kernel):
    """After ``setmaxnreg`` a thread does not own registers above the limit."""
    code = machine_code("90a")[kernel]
    (_, *consumers), (_, *producers) = (re.split(rf"USETMAXREG\.{side}\S*", code) for side in ("TRY_ALLOC", "DEALLOC"))

    for after, limit in ((consumers[0].partition("USETMAXREG")[0], 232), (producers[0].partition("USETMAXREG")[0], 40)):
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
