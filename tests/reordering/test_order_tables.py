"""Tables of orders and pairs: the rows they show of many."""

import itertools

import pytest
from rich.console import Console

from fastprobe.reordering.table import orders_table, pairs_table
from fastprobe.results.table import LINES

NUMBERS = ("loss", "delta_loss", "delta_loss_se", "accuracy", "top1_agreement", "kl", "cosine", "relative_l2_se")


def order_row(name, distance):
    return {"name": name, "order": "1,0", "relative_l2": distance} | dict.fromkeys(NUMBERS)


def printed(table, capsys):
    Console(width=80).print(table)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_columns_without_numbers_are_left_out_and_an_order_without_a_name_is_shown_itself(capsys):
    lines = printed(orders_table([order_row("identity", 0.0), order_row("", 0.25)]), capsys)

    assert lines == [["order", "rel", "l2"], ["identity", "0.0000"], ["1,0", "0.2500"]]


def test_of_many_orders_the_baseline_and_those_that_change_most_are_shown(capsys):
    rows = [order_row("identity", 0.0), *(order_row(str(k), k / 100) for k in range(1, LINES + 5))]
    rows.append(order_row("infinite", None))

    lines = printed(orders_table(rows), capsys)[1:]

    assert [line[0] for line in lines] == ["identity", "infinite", *map(str, range(LINES + 4, 6, -1))]


@pytest.mark.parametrize(("layers", "shown"), [(4, 6), (12, LINES)])
def test_of_many_pairs_those_furthest_from_commuting_are_shown(layers, shown, capsys):
    pairs = itertools.combinations(range(layers), 2)
    rows = [
        {"i": i, "j": j, "relative_l2": (i + 20 * j) / 1000, "relative_l2_se": 0.01, "cosine": 0.5, "cosine_se": None}
        for i, j in pairs
    ]

    lines = printed(pairs_table(rows), capsys)[1:]

    distances = [float(line[2]) for line in lines]
    assert len(lines) == shown
    assert lines[-1][3:] == ["0.0100", "0.5000"]
    assert max(distances) == (layers - 2 + 20 * (layers - 1)) / 1000
    if shown == LINES:
        assert distances == sorted(distances, reverse=True)
