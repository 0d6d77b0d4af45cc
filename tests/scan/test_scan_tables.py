"""Tables of a scan: the summary and the full table, in a terminal of 80 columns."""

import pytest
from rich.console import Console

from fastprobe.models.points import ELEMENTS
from fastprobe.scan.result import LinearityScan
from fastprobe.scan.summary import headline, summary_table
from fastprobe.scan.table import COLUMNS, linearity_table, narrow

SPANS = [(0, 1), (0, 2), (10, 30)]


def row(element, start, stop, nonlinearity, note="", **more):
    numbers = {key: 0.5 for _, key, _ in COLUMNS} | {"rank": 4096, "error_bound": 3e-4}
    layer = None if element == "span" else start
    place = {"element": element, "layer": layer, "start": start, "stop": stop}
    return place | numbers | {"nonlinearity": nonlinearity, "note": note} | more


def rows_of(layers, spans=()):
    """All ten elements, least linear in the last layer, most linear in the first."""
    rows = [row(name, i, i + 1, 0.1 + 0.01 * i) for name in ELEMENTS for i in range(layers)]
    return rows + [row("span", start, stop, 0.01 * (stop - start)) for start, stop in spans]


def printed(table, capsys):
    Console(width=80).print(table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("layers", [6, 30])
def test_the_summary_has_a_line_for_each_element_and_one_for_spans(layers, capsys):
    head, *lines = printed(summary_table(rows_of(layers, SPANS)), capsys)

    assert head.split() == ["nonlinearity", "rows", "mean", "most", "linear", "layer", "least", "linear", "layer"]
    assert [line.split()[0] for line in lines] == [*ELEMENTS, "span"]
    mean, least = 0.1 + 0.005 * (layers - 1), 0.1 + 0.01 * (layers - 1)
    expected = [str(layers), f"{mean:.4f}", "0.1000", "0", f"{least:.4f}", str(layers - 1)]
    assert all(line.split()[1:] == expected for line in lines[:-1])
    assert lines[-1].split()[1:] == ["3", "0.0767", "0.0100", "0-1", "0.2000", "10-30"]


def test_the_summary_counts_marked_rows(capsys):
    rows = [*rows_of(2), row("span", 0, 2, 0.3, note="few tokens")]
    rows[0]["note"] = rows[1]["note"] = "error bound"

    head, first, second, *_, spans = printed(summary_table(rows), capsys)

    assert head.endswith("marked *")
    assert [line.split()[-1] for line in (first, second, spans)] == ["2", "0", "1"]


def test_a_scan_without_folds_is_summed_up_by_r2(capsys):
    rows = [row("ffn", i, i + 1, None, r2=value) for i, value in enumerate((0.9, 0.2, None))]
    rows += [row("mlp", 0, 1, None, r2=None)]

    _, ffn, mlp = printed(summary_table(rows), capsys)

    assert headline(rows) == "r2"
    assert ffn.split() == ["ffn", "3", "0.5500", "0.9000", "0", "0.2000", "1"]
    assert mlp.split() == ["mlp", "1"]


def test_the_full_table_has_a_line_for_each_row_and_marks_those_with_a_note(capsys):
    rows = rows_of(30, SPANS)
    rows[29]["note"] = rows[-1]["note"] = "error bound"

    _, *lines = printed(linearity_table(rows), capsys)

    lines = [line.split() for line in lines if line.strip()]
    assert len(lines) == len(rows)
    assert [line[:2] for line in lines if "*" in line[1]] == [["layer", "29*"], ["span", "10-30*"]]


@pytest.mark.parametrize("make", [summary_table, linearity_table])
@pytest.mark.parametrize("number", [0.5, -12345.678, 1e9])
def test_every_table_fits_in_80_columns(make, number, capsys):
    rows = [line | dict.fromkeys(("r2_cv_se", "r2", "r2_residual", "r2"), number) for line in rows_of(30)]
    rows += [row("span", 100, 128, number, note="few tokens") for _ in range(1000)]

    lines = printed(make(rows), capsys)

    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert len([line for line in lines if line.strip()]) == 1 + (11 if make is summary_table else len(rows))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.12345, "0.1235"), (-12.34567, "-12.35"), (12345.6, "12346"), (-123456.7, "-1e+05")],
)
def test_large_numbers_have_fewer_decimals(value, text):
    assert narrow(value, 4) == text


def test_no_table_shows_a_score_from_too_few_tokens(capsys):
    few = {"note": "few tokens", "tokens": 1_000, "tokens_needed": 1_920}
    rows = [row("mlp", 0, 1, 0.2), row("mlp", 1, 2, 117.364, **few), row("ffn", 0, 1, 0.7, **few)]

    _, mlp, ffn = printed(summary_table(rows), capsys)
    full = printed(linearity_table(rows), capsys)

    assert mlp.split() == ["mlp", "2", "0.2000", "0.2000", "0", "0.2000", "0", "1"]
    assert ffn.split() == ["ffn", "1", "1"]
    assert full[1].split()[:3] == ["mlp", "0", "0.2000"]
    assert full[2].split() == ["mlp", "1*", "0.500", "4096", "3e-04"]  # anisotropy, rank and bound


def test_the_picture_of_a_scan_says_which_rows_have_too_few_tokens():
    few = "cannot be said with 1,000 tokens; at least 1,920 would do"
    rows = [row("mlp", 0, 1, 0.2), row("mlp", 1, 2, 117.364, tokens=1_000, tokens_needed=1_920)]

    assert LinearityScan({"model": "a/b", "tokens": 1000}, rows).title == f"b  ·  1,000 tokens\n1 of 2 rows: {few}"
    assert LinearityScan({"model": "a/b", "tokens": 1000}, rows[:1]).title == "b  ·  1,000 tokens"
