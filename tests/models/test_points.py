"""Names of points and elements, and the selection of layers, elements and spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.errors import InputError
from fastprobe.models.points import (
    ELEMENTS,
    POINTS,
    Element,
    Point,
    parse_range,
    select_elements,
    select_layers,
    select_spans,
)


@pytest.mark.parametrize("name", ELEMENTS)
def test_an_element_of_one_layer_goes_between_points_of_that_layer(name):
    element = Element(name, 3, 4)

    assert (element.x, element.y) == tuple(Point(point, 3) for point in ELEMENTS[name])
    assert {element.x.name, element.y.name} <= set(POINTS)
    assert str(element) == f"{name}.3"
    assert not element.is_span


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_input_of_an_element_comes_before_its_output(name):
    x, y = ELEMENTS[name]

    assert POINTS.index(x) < POINTS.index(y)


def test_a_span_goes_from_the_input_of_its_first_layer_to_the_output_of_its_last():
    span = Element("span", 2, 5)

    assert span.is_span
    assert (str(span.x), str(span.y), str(span)) == ("resid_pre.2", "resid_post.4", "span.2-5")


def test_the_text_of_a_point_is_its_name_and_layer():
    assert str(Point("mlp_in", 0)) == "mlp_in.0"


def test_all_layers_are_selected_by_default():
    assert select_layers(None, 3) == [0, 1, 2]


def test_selected_layers_are_sorted_and_unique():
    assert select_layers([2, 0, 2], 3) == [0, 2]


@pytest.mark.parametrize("layer", [-1, 3])
def test_an_unknown_layer_is_refused_with_the_known_ones(layer):
    with pytest.raises(InputError, match=f"no layer {layer}; the model has layers 0 to 2"):
        select_layers([layer], 3)


def test_all_elements_are_selected_by_default():
    assert select_elements(None, ["layer", "mlp"]) == ["layer", "mlp"]


def test_selected_elements_keep_their_order_and_are_unique():
    assert select_elements(["mlp", "layer", "mlp"], ["layer", "mlp", "attn"]) == ["mlp", "layer"]


def test_an_unknown_element_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown element 'mpl'; the elements are layer, attention, ffn,.*mlp_act"):
        select_elements(["mpl"], ["layer"])


def test_an_element_that_a_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(InputError, match="this model has no 'ffn'; it has layer, mlp"):
        select_elements(["ffn"], ["layer", "mlp"])


@pytest.mark.parametrize("spans", [None, "none"])
def test_no_spans_are_selected_by_default(spans):
    assert select_spans(spans, 4) == []


@given(st.integers(1, 12))
def test_all_spans_are_every_range_of_layers_once(depth):
    spans = select_spans("all", depth)

    assert len(set(spans)) == len(spans) == depth * (depth + 1) // 2
    assert all(0 <= start < stop <= depth for start, stop in spans)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ("2-5,0-3", [(2, 5), (0, 3)]),
        (" 1-2 , 3", [(1, 2), (3, 4)]),
        ("0-1,0-1", [(0, 1)]),
        ([(0, 5), [1, 2]], [(0, 5), (1, 2)]),
        ([], []),
    ],
    ids=str,
)
def test_spans_are_half_open_ranges(spans, expected):
    assert select_spans(spans, 5) == expected


@pytest.mark.parametrize("spans", ["0-6", "3-3", "4-2", [(-1, 2)], "5"], ids=str)
def test_a_span_outside_the_model_is_refused(spans):
    with pytest.raises(InputError, match="is not a range of layers with 0 <= start < stop <= 5"):
        select_spans(spans, 5)


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_written_range_is_parsed(first, last):
    assert parse_range(f"{first}-{last}") == (first, last)
    assert parse_range(f"{first}") == (first, first + 1)


@pytest.mark.parametrize("text", ["", "-", "a", "1-b", "-1", "1-2-3", "1.5"])
def test_an_error_quotes_text_that_is_no_range(text):
    with pytest.raises(InputError, match="is not a layer or a half-open range of layers like 2-5") as error:
        parse_range(text)

    assert repr(text) in str(error.value)
