"""Figures of views: what they show of their inputs, and their sizes."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from fastprobe.errors import InputError
from fastprobe.results.figure import MOST_NAMES, SIZES, draw, save_figure
from fastprobe.results.views import (
    Curve,
    Dots,
    Heatmap,
    Line,
    Profiles,
    ReferenceLine,
    Style,
    shortened,
    square_heatmap,
)

PROFILES = Profiles([Line([1, 2, 4], "a", Style("#000000", "--", "s")), Line([3, 1], x=[10, 20])], "layer", "r2")
SQUARE = square_heatmap(np.array([[np.nan, 0.25], [0.75, np.nan]]), x_label="layer", y_label="and layer", label="kl")
DOTS = Dots([0.5, 0.25], [0.1, 0.0], ["swap 0 1", "swap 0 2"], "kl", "orders")
CURVE = Curve([0, 2, 0, 2], [1.0, 5.0, 3.0, 6.0], ["a", "b", "c", "d"], "layers kept in place", "kl")
VIEWS = [PROFILES, SQUARE, DOTS, CURVE]


def drawn(view, size="screen"):
    return draw("title", "", [view], size=size).axes[0]


def tick_names(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_a_heatmap_shows_its_matrix_and_writes_the_numbers_in():
    axes = drawn(SQUARE)

    assert np.array_equal(axes.images[0].get_array().filled(np.nan), SQUARE.matrix, equal_nan=True)
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(1, 0): "0.25", (0, 1): "0.75"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "and layer")
    assert axes.images[0].colorbar.ax.get_ylabel() == "kl"


@pytest.mark.parametrize(("layers", "size", "numbers"), [(16, "screen", 256), (17, "screen", 0), (7, "column", 0)])
def test_a_large_heatmap_has_no_numbers_and_few_ticks(layers, size, numbers):
    axes = drawn(square_heatmap(np.arange(layers**2.0).reshape(layers, layers), x_label="", y_label="", label=""), size)

    assert len(axes.texts) == numbers


@pytest.mark.parametrize("size", SIZES)
def test_the_names_of_many_layers_are_spread(size):
    axes = drawn(square_heatmap(np.zeros((80, 80)), x_label="", y_label="", label=""), size)

    names = tick_names(axes.xaxis)
    assert len(names) <= SIZES[size].ticks
    assert (names[0], names[-1]) == ("0", "79")


def test_numbers_are_white_on_dark_and_black_on_light_cells():
    axes = drawn(square_heatmap(np.array([[0.0, 1.0], [0.4, 0.6]]), x_label="", y_label="", label=""))

    assert [text.get_color() for text in axes.texts] == ["white", "black", "white", "black"]


def test_rows_of_a_heatmap_have_their_names_from_the_top():
    matrix = np.arange(6.0).reshape(2, 3)

    axes = drawn(Heatmap(matrix, ["first", "second"], ["1", "2", "3"], "step", "", "cosine"))

    assert np.array_equal(axes.images[0].get_array(), matrix)
    assert axes.get_ylim() == (1.5, -0.5)
    assert (tick_names(axes.yaxis), tick_names(axes.xaxis)) == (["first", "second"], ["1", "2", "3"])


def test_lines_are_drawn_as_described_and_named_in_the_legend():
    axes = drawn(Profiles(PROFILES.lines, "layer", "r2", reference=ReferenceLine(2.5, "unigram")))

    one, other, reference = axes.lines
    assert one.get_xydata().tolist() == [[0, 1], [1, 2], [2, 4]]
    assert (to_hex(one.get_color()), one.get_linestyle(), one.get_marker()) == ("#000000", "--", "s")
    assert other.get_xydata().tolist() == [[10, 3], [20, 1]]
    assert list(reference.get_ydata()) == [2.5, 2.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "unigram"]


def test_lines_may_have_names_on_their_axis_and_a_bottom():
    axes = drawn(Profiles([Line([1, 2], "a")], "", "", names=["0-2", "3"], bottom=-1))

    assert tick_names(axes.xaxis) == ["0-2", "3"]
    assert axes.get_ylim()[0] == -1


def test_dots_have_names_and_error_bars_and_the_first_is_on_top():
    axes = drawn(DOTS)

    assert axes.lines[0].get_xydata().tolist() == [[0.5, 0], [0.25, 1]]
    assert [path.tolist() for path in axes.collections[0].get_segments()] == [[[0.4, 0], [0.6, 0]], [[0.25, 1]] * 2]
    assert tick_names(axes.yaxis) == ["swap 0 1", "swap 0 2"]
    assert axes.yaxis_inverted()
    assert axes.get_ylabel() == ""


def test_too_many_names_are_left_out():
    count = MOST_NAMES + 1

    axes = drawn(Dots([*range(count)], [0] * count, ["name"] * count, "", "orders"))

    assert tick_names(axes.yaxis) == []
    assert axes.get_ylabel() == "orders"


def test_long_names_are_shortened():
    axes = drawn(Dots([1.0], [0.0], ["0,1,2,3,4,5," * 20], "kl"))

    assert [len(name) for name in tick_names(axes.yaxis)] == [SIZES["screen"].letters]
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789a", 10) == "012345…89a"


def test_a_curve_runs_through_the_means():
    axes = drawn(CURVE)

    dots, means = axes.lines
    assert len(dots.get_xydata()) == 4
    assert means.get_xydata().tolist() == [[0, 2], [2, 5.5]]
    assert tick_names(axes.xaxis) == ["0", "2"]


@pytest.mark.parametrize(("size", "width"), [("column", 3.35), ("page", 6.9)])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_a_figure_for_a_paper_has_the_width_small_type_and_no_title(view, size, width):
    figure = draw("title", "", [view], size=size)
    figure.draw_without_rendering()

    assert figure.get_size_inches()[0] <= width
    assert figure.get_suptitle() == ""
    (axes, *_) = figure.axes
    sizes = [text.get_fontsize() for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()]
    assert max(*sizes, axes.xaxis.label.get_fontsize()) <= 8
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]


def test_panels_of_a_column_are_one_above_the_other_and_a_remark_stays():
    figure = draw("title", "cannot be said", [PROFILES, SQUARE], size="column")

    assert figure.get_size_inches().tolist() == [3.35, 5.4]
    assert figure.get_suptitle() == "cannot be said"
    assert draw("title", "remark", [PROFILES, SQUARE]).get_suptitle() == "title\nremark"


def test_an_unknown_size_is_refused():
    with pytest.raises(InputError, match="size: must be one of screen, column, page, got 'poster'"):
        draw("", "", VIEWS, size="poster")


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_a_figure_is_saved_in_the_format_of_its_name(tmp_path, suffix, start):
    drawing = draw("", "", [PROFILES], tmp_path / f"picture.{suffix}")

    content = (tmp_path / f"picture.{suffix}").read_bytes()
    assert content.startswith(start)
    assert b"/Type3" not in content  # fonts that conferences refuse
    assert save_figure(drawing, None) is drawing


def test_an_unknown_format_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"picture.docx: name a picture by its format, one of .*png"):
        draw("", "", [CURVE], tmp_path / "picture.docx")

    assert not [*tmp_path.iterdir()]


def test_a_notebook_shows_a_figure_without_pyplot():
    code = (
        "import sys; from fastprobe.results.figure import draw; from fastprobe.results.views import Curve;"
        "drawing = draw('title', '', [Curve([0, 1], [1, 2], ['a', 'b'], '', '')]);"
        "print(drawing._repr_png_()[1:4], 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["b'PNG'", "False"]
