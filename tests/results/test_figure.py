"""Figures from plain arrays: what they show of their inputs."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from fastprobe.errors import InputError
from fastprobe.results import figure


@pytest.fixture
def axes():
    _, (axes,) = figure.panels("title")
    return axes


def tick_names(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_panels_have_the_title_and_the_size():
    drawing, axes = figure.panels("model  ·  20 tokens", 2, (14, 4))

    assert len(axes) == 2
    assert drawing.get_suptitle() == "model  ·  20 tokens"
    assert [*drawing.get_size_inches()] == [14, 4]


def test_a_heatmap_shows_its_matrix_and_writes_the_numbers_in(axes):
    matrix = np.array([[np.nan, 0.25], [0.75, np.nan]])

    figure.heatmap(axes, matrix, x_label="layer", y_label="and layer", label="cosine")

    assert np.array_equal(axes.images[0].get_array().filled(np.nan), matrix, equal_nan=True)
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(1, 0): "0.25", (0, 1): "0.75"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "and layer")
    assert axes.images[0].colorbar.ax.get_ylabel() == "cosine"


@pytest.mark.parametrize(("layers", "numbers"), [(16, 256), (17, 0)])
def test_a_large_heatmap_has_no_numbers(axes, layers, numbers):
    figure.heatmap(axes, np.arange(layers**2.0).reshape(layers, layers), x_label="", y_label="", label="")

    assert len(axes.texts) == numbers


def test_numbers_are_white_on_dark_and_black_on_light_cells(axes):
    figure.heatmap(axes, np.array([[0.0, 1.0], [0.4, 0.6]]), x_label="", y_label="", label="")

    assert [text.get_color() for text in axes.texts] == ["white", "black", "white", "black"]


def test_named_rows_have_their_names_from_the_top(axes):
    matrix = np.arange(6.0).reshape(2, 3)

    figure.named_rows(axes, matrix, ["first", "second"], x_label="step", label="cosine")

    assert np.array_equal(axes.images[0].get_array(), matrix)
    assert axes.images[0].get_extent() == [0.5, 3.5, 1.5, -0.5]
    assert tick_names(axes.yaxis) == ["first", "second"]


def test_lines_are_drawn_as_described_and_named_in_the_legend(axes):
    lines = [
        figure.Line([1, 2, 4], "a", figure.Style("#000000", "--", "s")),
        figure.Line([3, 1], x=[10, 20]),
    ]

    figure.lines(axes, lines, x_label="layer", y_label="r2", reference=figure.ReferenceLine(2.5, "unigram"))

    one, other, reference = axes.lines
    assert one.get_xydata().tolist() == [[0, 1], [1, 2], [2, 4]]
    assert (to_hex(one.get_color()), one.get_linestyle(), one.get_marker()) == ("#000000", "--", "s")
    assert other.get_xydata().tolist() == [[10, 3], [20, 1]]
    assert list(reference.get_ydata()) == [2.5, 2.5]
    assert legend(axes) == ["a", "unigram"]


def test_lines_may_have_names_on_their_axis_and_a_bottom(axes):
    figure.lines(axes, [figure.Line([1, 2], "a")], x_label="", y_label="", names=["0-2", "3"], bottom=-1)

    assert tick_names(axes.xaxis) == ["0-2", "3"]
    assert axes.get_ylim()[0] == -1


def test_dots_have_names_and_error_bars(axes):
    figure.dots(axes, [0.5, 0.25], [0.1, 0.0], x_label="kl", names=["swap 0 1", "swap 0 2"], y_label="orders")

    assert axes.lines[0].get_xydata().tolist() == [[0.5, 0], [0.25, 1]]
    assert [path.tolist() for path in axes.collections[0].get_segments()] == [[[0.4, 0], [0.6, 0]], [[0.25, 1]] * 2]
    assert tick_names(axes.yaxis) == ["swap 0 1", "swap 0 2"]
    assert axes.get_ylabel() == ""


def test_too_many_names_are_left_out(axes):
    count = figure.MOST_NAMES + 1

    figure.dots(axes, [*range(count)], [0] * count, x_label="", names=["name"] * count, y_label="orders")

    assert "name" not in tick_names(axes.yaxis)
    assert axes.get_ylabel() == "orders"


def test_a_curve_runs_through_the_means(axes):
    figure.curve(axes, [0, 2, 0, 2], [1.0, 5.0, 3.0, 6.0], x_label="layers kept in place", y_label="kl")

    dots, means = axes.lines
    assert len(dots.get_xydata()) == 4
    assert means.get_xydata().tolist() == [[0, 2], [2, 5.5]]
    assert tick_names(axes.xaxis) == ["0", "2"]


def test_a_figure_is_saved_in_the_format_of_its_name(tmp_path):
    drawing, _ = figure.panels("")

    assert figure.save_figure(drawing, None) is drawing
    figure.save_figure(drawing, tmp_path / "picture.svg")

    assert b"<svg" in (tmp_path / "picture.svg").read_bytes()


def test_an_unknown_format_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"picture.docx: name a picture by its format, one of .*png"):
        figure.save_figure(figure.panels("")[0], tmp_path / "picture.docx")

    assert not [*tmp_path.iterdir()]


def test_drawing_does_not_import_pyplot():
    code = (
        "import sys; from fastprobe.results import figure; drawing, (axes,) = figure.panels('title');"
        "figure.curve(axes, [0, 1], [1, 2], x_label='', y_label=''); drawing.draw_without_rendering();"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
