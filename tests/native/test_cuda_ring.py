"""The ring of stages of the CUDA Gram kernel, checked in every order of its threads (``ring.py``)."""

from dataclasses import replace

import pytest

from tests.native.cuda_on_host import host_layout
from tests.native.ring import Ring, RingError, check, mutations, plain_places

SMALL = Ring(stages=5, pieces=2, items=(4, 1, 2), places=plain_places(5))


@pytest.fixture
def layout():
    return host_layout() or pytest.skip("no C++ compiler")


def kernel_places(layout):
    """Return the places as the kernel computes them."""

    def places(n):
        place, found = layout.Place(), []
        for _ in range(n):
            found.append((place.stage, place.full_parity(), place.empty_parity()))
            place.advance()
        return found

    return places


def test_the_kernel_walks_round_the_ring(layout):
    assert kernel_places(layout)(100) == plain_places(layout.STAGES)(100)


def test_the_ring_of_the_kernel_is_right_in_every_order(layout):
    states = check(Ring(layout.STAGES, layout.PIECES, (4, 1), kernel_places(layout)))

    assert states > 1000


@pytest.mark.parametrize("stages", [4, 5, 6])
def test_rings_of_two_chains_and_more_are_right(stages):
    assert check(replace(SMALL, stages=stages, places=plain_places(stages)))


def test_a_ring_of_less_than_two_chains_stops():
    with pytest.raises(RingError, match="everybody waits"):
        check(replace(SMALL, stages=3, places=plain_places(3)))


@pytest.mark.parametrize("name", mutations(SMALL))
def test_a_wrong_rule_is_found(name):
    with pytest.raises(RingError):
        check(mutations(SMALL)[name])
