"""Rows of the blocks of a scan: points, sums of two points, and rows of unit norm."""

import pytest
import torch

from fastprobe.models.points import Element
from fastprobe.models.resolve import resolve
from fastprobe.scan.block_rows import block_rows
from fastprobe.scan.plan import ScanOptions, ScanPlan
from fastprobe.testing.tiny_models import tiny_model

WIDTH = 4


@pytest.fixture(scope="module")
def points():
    return resolve(tiny_model("bert"))


@pytest.fixture(scope="module")
def plan(points):
    elements = tuple(Element("attention_sum", layer, layer + 1) for layer in (0, 1))
    widths = {points.canonical(point): WIDTH for element in elements for point in (element.x, element.y)}
    widths |= {part: WIDTH for element in elements for part in points.parts(element.y)}
    return ScanPlan.of(points, widths, ScanOptions(elements, folds=2, objective="cosine", cka="none", exact=False))


@pytest.fixture
def held(plan, randn):
    """Points of two sequences of three tokens, in bfloat16."""
    return {point: randn(2, 3, WIDTH, dtype=torch.bfloat16) for point in plan.until}


def test_every_block_of_a_plan_has_rows(plan, held):
    assert {*plan.units, *plan.moments.parts, *plan.moments.widths} <= {*plan.points}
    for block in plan.points:
        assert block_rows(plan, held, block).shape == (6, WIDTH)


def test_a_point_keeps_its_memory(plan, held, points):
    x = points.canonical(Element("attention_sum", 0, 1).x)

    rows = block_rows(plan, held, str(x))

    assert rows.data_ptr() == held[x].data_ptr()
    assert torch.equal(rows, held[x].view(6, WIDTH))


def test_a_sum_of_16_bit_rows_is_not_rounded(plan, held):
    (block, parts), *_ = plan.moments.parts.items()
    first, second = (held[plan.points[part]].view(6, WIDTH).float() for part in parts)

    rows = block_rows(plan, held, block)

    assert rows.dtype == torch.float32
    assert torch.equal(rows, first + second)
    assert not torch.equal(rows, rows.bfloat16().float())


def test_rows_of_unit_norm_have_the_direction_of_their_block(plan, held):
    (unit, block), *_ = plan.units.items()
    rows = block_rows(plan, held, block)

    units = block_rows(plan, held, unit)

    torch.testing.assert_close(units * rows.norm(dim=1, keepdim=True), rows)
    torch.testing.assert_close(units.norm(dim=1), torch.ones(6))


def test_a_unit_row_of_zeros_is_zero(plan, held):
    (unit, _), *_ = plan.units.items()

    assert not block_rows(plan, {point: torch.zeros_like(rows) for point, rows in held.items()}, unit).any()


def test_a_block_whose_point_is_not_held_is_an_error(plan):
    with pytest.raises(KeyError):
        block_rows(plan, {}, next(iter(plan.points)))
