"""Tables of orders and pairs: their names, the rows they show of many, and the caption that counts the others."""

import itertools

import pytest
from rich.console import Console

from fastprobe.reordering.table import depths_table, orders_table, pairs_table
from fastprobe.results.table import LINES

NUMBERS = ("loss", "delta_loss", "delta_loss_se", "accuracy", "top1_agreement", "kl", "cosine", "relative_l2_se")


def order_row(name, distance):
    return {"name": name, "order": "1,0", "relative_l2": distance} | dict.fromkeys(NUMBERS)


def printed(table, capsys):
    """Return the words of every line, and the caption."""
    caption, table.caption = table.caption, None  # it may be wrapped
    Console(width=80).print(table)
    return [line.split() for line in capsys.readouterr().out.splitlines()], caption


def test_columns_without_numbers_are_left_out_and_an_order_without_a_name_is_shown_itself(capsys):
    lines, caption = printed(orders_table([order_row("identity", 0.0), order_row("", 0.25)]), capsys)

    assert lines == [["order", "rel", "l2"], ["baseline", "0.0000"], ["1,0", "0.2500"]]
    assert caption is None


def test_all_rows_are_shown_in_their_order_if_they_fit(capsys):
    rows = [order_row("identity", 0.0), *(order_row(str(k), k / 100) for k in range(1, LINES))]

    (_, *lines), caption = printed(orders_table(rows), capsys)

    assert [line[0] for line in lines] == ["baseline", *map(str, range(1, LINES))]
    assert caption is None


def test_of_many_orders_the_baseline_and_those_that_change_most_are_shown(capsys):
    rows = [order_row("identity", 0.0), *(order_row(str(k), k / 100) for k in range(1, LINES + 5))]
    rows.append(order_row("infinite", None))

    (_, *lines), caption = printed(orders_table(rows), capsys)

    assert [line[0] for line in lines] == ["baseline", "infinite", *map(str, range(LINES + 4, 6, -1))]
    assert caption == "6 rows hidden; these have the largest relative_l2. scores.csv has all rows."


@pytest.mark.parametrize("table", [orders_table, depths_table])
def test_of_many_orders_with_a_loss_those_that_raise_it_most_are_shown(table, capsys):
    by_depth = {"relative_l2_by_depth": [0.5]}
    rows = [order_row("identity", 0.0) | by_depth]
    rows += [order_row(str(k), k / 100) | by_depth | {"delta_loss": (30 - k) / 100} for k in range(LINES)]
    rows += [order_row("infinite", None) | by_depth]

    (_, *lines), caption = printed(table(rows), capsys)

    assert [line[0] for line in lines] == ["baseline", "infinite", *map(str, range(LINES - 2))]
    assert caption == "2 rows hidden; these have the largest delta_loss. scores.csv has all rows."


def test_a_caption_is_printed_below_the_table(capsys):
    Console(width=80).print(orders_table([order_row("identity", 0.0), *[order_row("1,0", 0.25)] * (LINES + 2)]))

    lines = capsys.readouterr().out.splitlines()
    assert " ".join(" ".join(lines[1 + LINES :]).split()).startswith("3 rows hidden; these have the largest")


@pytest.mark.parametrize(("layers", "shown"), [(4, 6), (12, LINES)])
def test_of_many_pairs_those_furthest_from_commuting_are_shown(layers, shown, capsys):
    pairs = itertools.combinations(range(layers), 2)
    rows = [
        {"i": i, "j": j, "relative_l2": (i + 20 * j) / 1000, "relative_l2_se": 0.01, "cosine": 0.5, "cosine_se": None}
        for i, j in pairs
    ]

    (_, *lines), caption = printed(pairs_table(rows), capsys)

    distances = [float(line[2]) for line in lines]
    assert len(lines) == shown
    assert (caption is None) == (shown < LINES)
    assert lines[-1][3:] == ["0.0100", "0.5000"]
    assert max(distances) == (layers - 2 + 20 * (layers - 1)) / 1000
    if shown == LINES:
        assert distances == sorted(distances, reverse=True)
