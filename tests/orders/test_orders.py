"""Orders: families against their definitions, text by a round trip."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprobe import orders
from fastprobe.errors import InputError
from fastprobe.orders import Order, Parallel, Sublayer

STEPS = st.one_of(
    st.integers(0, 20),
    st.builds(Sublayer, st.sampled_from(["attention", "ffn"]), st.integers(0, 20)),
    st.lists(st.integers(0, 20), min_size=1, max_size=4).map(lambda layers: Parallel(tuple(layers))),
)
FAMILIES = {
    "swaps": (orders.swaps(6), 15),
    "adjacent swaps": (orders.swaps(6, adjacent=True), 5),
    "replacements": (orders.replacements(6), 30),
    "moves": (orders.moves(6), 25),
    "drops": (orders.drops(6), 6),
    "pair drops": (orders.drops(6, 2), 15),
    "skips": (orders.skips(6), 20),
    "repeats": (orders.repeats(6), 6),
    "blocks": (orders.blocks(6), 21),
    "reversals": (orders.reversals(6), 15),
    "triples": (orders.reversals(6, 3), 4),
    "shuffles": (orders.shuffles(6, fixed=2, count=50), 50),
    "few shuffles": (orders.shuffles(6, fixed=4), 15),
    "groups": (orders.groups(6, 2), 5),
    "cycles": (orders.cycles(6), 6),
    "cycles of two": (orders.cycles(6, 2), 5),
    "parallel": (orders.parallel(6, 2, 4), 1),
    "ffn swaps": (orders.sublayer_swaps(6, "ffn"), 15),
    "attentions first": (orders.attentions_first(6), 1),
}


@pytest.mark.parametrize(("family", "count"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_has_the_expected_size_and_unique_named_orders(family, count):
    assert len(family) == len(set(family)) == count
    assert orders.identity(6) not in family
    assert len({order.name for order in family}) == count
    for order in family:
        orders.check(order, 6)


@given(st.lists(STEPS, min_size=1, max_size=12))
def test_parsing_the_text_of_an_order_returns_the_order(steps):
    order = Order(tuple(steps))

    assert orders.parse(str(order)) == order


def test_a_swap_exchanges_two_layers_and_a_replacement_copies_one():
    assert str(orders.swaps(4)[1]) == "2,1,0,3"
    assert str(orders.replacements(4)[0]) == "1,1,2,3"


@pytest.mark.parametrize("fixed", range(5))
def test_a_shuffle_keeps_exactly_the_given_number_of_layers_in_place(fixed):
    for order in orders.shuffles(6, fixed=fixed, count=40):
        assert sorted(order) == list(range(6))
        assert sum(layer == place for place, layer in enumerate(order)) == fixed


def test_shuffles_depend_only_on_the_seed():
    assert orders.shuffles(12, 3) == orders.shuffles(12, 3) != orders.shuffles(12, 3, seed=1)


def test_shuffles_return_all_derangements_of_five_layers():
    found = {tuple(order) for order in orders.shuffles(5, fixed=0, count=1000)}

    assert found == {p for p in itertools.permutations(range(5)) if all(i != p[i] for i in range(5))}
    assert len(found) == 44 == round(math.factorial(5) / math.e)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("skip", "0,1,6,7"),
        ("reverse", "0,1,5,4,3,2,6,7"),
        ("middle_repeat", "0,1,4,4,4,4,6,7"),
        ("parallel", "0,1,(2+3+4+5),6,7"),
        ("looped_parallel", "0,1,(2+3+4+5),(2+3+4+5),(2+3+4+5),6,7"),
    ],
)
def test_each_mode_of_painters(mode, text):
    assert str(orders.painters(8, mode, 2)[0]) == text


def test_random_painters_shuffle_only_the_middle_layers():
    (order,) = orders.painters(8, "random", 2)

    assert (order.steps[:2], order.steps[6:]) == ((0, 1), (6, 7))
    assert sorted(order.steps[2:6]) == [2, 3, 4, 5]


@pytest.mark.parametrize(("name", "count"), [("swaps", 66), ("triples", 10), ("albert", 12), ("fix4", 100)])
def test_the_size_of_each_protocol_of_the_paper(name, count):
    assert len(orders.paper(name)) == count


def test_sublayer_orders_move_one_sublayer():
    assert str(orders.sublayer_swaps(3, "ffn")[0]) == "attention.0,ffn.1,attention.1,ffn.0,2"
    assert str(orders.attentions_first(2)[0]) == "attention.0,attention.1,ffn.0,ffn.1"


def test_a_file_of_orders_is_read_and_written(tmp_path):
    path = tmp_path / "orders.txt"
    path.write_text("# all of them\n0,1,2\n\n[2, 1, 0]\n")

    read = orders.load(path)
    orders.save(read, path)

    assert [order.steps for order in read] == [(0, 1, 2), (2, 1, 0)]
    assert path.read_text() == "0,1,2\n2,1,0\n"


def test_a_file_may_count_layers_from_one(tmp_path):
    path = tmp_path / "fix1_layers.txt"
    path.write_text("1,3,2\nffn.2,(1+3)\n")

    read = orders.named(f"file:{path},first=1", 3)

    assert [str(order) for order in read] == ["0,2,1", "ffn.1,(0+2)"]
    with pytest.raises(InputError, match=r"line 1: order 1,3,2: there is no layer 3; .* name it as file:.*,first=1"):
        orders.named(f"file:{path}", 3)
    with pytest.raises(InputError, match="there is no layer -1"):
        orders.named(f"file:{path},first=2", 3)
    with pytest.raises(InputError, match="first must be a number, got 'one'"):
        orders.named(f"file:{path},first=one", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\n0,x\n", r"line 2: order '0,x': 'x' is no layer"),
        ("0,3-3\n", r"line 1: .* 3-3 is empty; ranges are half-open"),
        ("0,,1\n", r"line 1: .* '' is no layer"),
        ("\n", r"holds no order; write one a line"),
        ("\xff", "cannot be read as text"),
    ],
)
def test_an_error_in_a_file_names_file_and_line(text, message, tmp_path):
    path = tmp_path / "orders.txt"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(InputError, match=message):
        orders.load(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orders.drops(4, 4), "width: must be at least 1 and at most 3 for 4 layers, got 4"),
        (lambda: orders.shuffles(4, fixed=3), "fixed: must be at least 0 and at most 2"),
        (lambda: orders.painters(4, "cubist", 1), "'cubist' is not one of skip"),
        (lambda: orders.painters(4, "skip", 0), "leaves no layer"),
        (lambda: orders.paper("swap"), "'swap' is not one of swaps, triples"),
        (lambda: orders.sublayer_swaps(4, "mlp"), "'mlp' is not attention or ffn"),
        (lambda: orders.check(Order((0, 4)), 4), "order 0,4: there is no layer 4; the model has 0 to 3"),
        (lambda: orders.check(Order(()), 4), "it is empty"),
        (lambda: orders.to_mergekit(orders.attentions_first(2)[0], "m"), "every step must be a whole layer"),
    ],
)
def test_invalid_arguments_raise_an_error(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_mergekit_gets_one_slice_for_each_run_of_consecutive_layers():
    text = orders.to_mergekit(orders.parse("0-3,2,3"), "some/model")

    assert text.count("layer_range") == 2
    assert "layer_range: [0, 3]\n" in text
    assert "layer_range: [2, 4]\n" in text
    assert "merge_method: passthrough" in text


def test_wanted_orders_start_with_the_baseline_and_drop_duplicates():
    wanted = orders.wanted_of([[0, 2, 1], Order((0, 1, 2), "again"), Order((0, 2, 1), "twice"), (0,)], 3)

    assert [str(order) for order in wanted] == ["0,1,2", "0,2,1", "0"]
    assert wanted[0].name == "identity"
    with pytest.raises(InputError, match="there is no layer 3"):
        orders.wanted_of([[3]], 3)
