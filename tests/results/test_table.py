"""The builder of tables: texts of cells, and columns that fit in a terminal."""

import pytest
from rich.console import Console

from fastprobe.results.table import cell, cells, empty_table, filled, name_column, number_columns, spread, text_columns

COLUMNS = [("r2", "r2", 3), ("rank", "rank", 0), ("bound", "bound", None)]


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (None, 3, ""),
        (0.12345, 3, "0.123"),
        (383.0, 0, "383"),
        (8.9971e-05, None, "9e-05"),
        (-0.0001, 3, "0.000"),
        (-0.001, 3, "-0.001"),
    ],
)
def test_a_cell_is_rounded_and_a_zero_has_no_sign(value, decimals, text):
    assert cell(value, decimals) == text


def test_columns_without_a_value_are_left_out():
    rows = [{"r2": None, "rank": None, "bound": None}, {"r2": 0.5, "rank": None, "bound": 1e-6}]

    columns = filled(COLUMNS, rows)

    assert columns == [COLUMNS[0], COLUMNS[2]]
    assert cells(columns, rows[1]) == ["0.500", "1e-06"]


@pytest.mark.parametrize(
    ("count", "room", "places"), [(3, 5, [0, 1, 2]), (5, 3, [0, 2, 4]), (40, 4, [0, 13, 26, 39]), (1, 4, [0])]
)
def test_places_are_spread_evenly_with_the_first_and_the_last(count, room, places):
    assert spread(count, room) == places


def test_a_long_name_goes_on_in_the_next_line_and_numbers_stay_whole(capsys):
    table = empty_table()
    name_column(table, "order")
    number_columns(table, *["loss"] * 8)
    table.add_row("a long name of an order " * 3, *["0.123456"] * 8)

    Console(width=80).print(table)

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[-8:] == ["0.123456"] * 8
    assert len(lines) > 2


def test_text_columns_are_left_aligned_and_numbers_right_aligned(capsys):
    table = empty_table()
    text_columns(table, "element")
    number_columns(table, "rank")
    table.add_row("ffn", "3")

    Console(width=80).print(table)

    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["element rank", "ffn        3"]
