"""Changes of an order, as data."""

import pytest

from fastprobe import orders
from fastprobe.orders import Order, Parallel, Sublayer
from fastprobe.orders.changes import layers_dropped, layers_kept, swapped_layers

PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    "family", [orders.swaps(4), orders.sublayer_swaps(4, "ffn"), orders.sublayer_swaps(4, "attention")]
)
def test_every_swap_names_its_two_layers(family):
    assert [swapped_layers(order, 4) for order in family] == PAIRS


@pytest.mark.parametrize(
    "steps",
    [
        (0, 1, 2, 3),
        (1, 2, 0, 3),
        (1, 0, 3, 2),
        (0, 2, 2, 3),
        (0, 2, 1),
        (0, 1, 2, 3, 3),
        (0, Parallel((1, 2)), 3),
        (*(Sublayer(part, layer) for part in ("attention", "ffn") for layer in range(4)),),
        # attention 1 and ffn 2 interchanged
        (0, Sublayer("ffn", 2), Sublayer("ffn", 1), Sublayer("attention", 2), Sublayer("attention", 1), 3),
        # attention 1 and ffn 0 run twice
        (*(Sublayer("attention", 1), Sublayer("ffn", 0)) * 2, 2, 3),
        # attentions interchanged, FFNs too, but of another pair
        (
            *(Sublayer("attention", 1), Sublayer("ffn", 0), Sublayer("attention", 0), Sublayer("ffn", 2)),
            *(Sublayer("attention", 2), Sublayer("ffn", 1), 3),
        ),
    ],
)
def test_other_orders_are_not_swaps(steps):
    assert swapped_layers(Order(steps), 4) is None


def test_the_sublayers_of_a_swap_may_be_written_one_by_one():
    steps = [Sublayer(part, layer) for layer in (0, 2, 1) for part in ("attention", "ffn")]

    assert swapped_layers(Order((*steps, 3)), 4) == (1, 2)


@pytest.mark.parametrize("fixed", [0, 1, 2])
def test_a_shuffle_keeps_as_many_layers_as_were_fixed(fixed):
    assert {layers_kept(order, 5) for order in orders.shuffles(5, fixed=fixed)} == {fixed}


def test_the_baseline_keeps_every_layer():
    assert layers_kept(orders.identity(5), 5) == 5


@pytest.mark.parametrize("order", [*orders.drops(4), *orders.repeats(4), *orders.parallel(4, 1, 3)], ids=str)
def test_orders_that_are_not_permutations_keep_no_number(order):
    assert layers_kept(order, 4) is None


def test_dropped_layers_are_those_that_do_not_run():
    assert layers_dropped(Order((0, 2)), 4) == [1, 3]
    assert layers_dropped(orders.cycles(4)[2], 4) == [0, 1, 3]
    assert layers_dropped(Order((Parallel((0, 1)), Sublayer("ffn", 2), 3)), 4) == []
