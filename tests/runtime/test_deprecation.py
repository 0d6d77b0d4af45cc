"""Old names of keyword arguments."""

import inspect

import pytest

from fastprobe.errors import InputError
from fastprobe.runtime.deprecation import renamed_arguments


@renamed_arguments(which="orders", fit="method")
def call(model, *, orders=(), method=None):
    return model, orders, method


def test_an_old_name_is_passed_on_with_a_warning_at_the_line_of_the_caller():
    with pytest.warns(DeprecationWarning, match="call: the argument which is now orders; the next version") as caught:
        found = call("model", which=[1], method="ridge")

    assert found == ("model", [1], "ridge")
    assert caught[0].filename == __file__


def test_several_old_names_are_passed_on():
    with pytest.warns(DeprecationWarning, match="call: the argument (which|fit) is now") as caught:
        found = call("model", which=[1], fit="ridge")

    assert found == ("model", [1], "ridge")
    assert len(caught) == 2


@pytest.mark.filterwarnings("error")
def test_new_names_do_not_warn():
    assert call("model", orders=[1], method="ridge") == ("model", [1], "ridge")


def test_both_names_of_one_argument_are_refused():
    with pytest.raises(InputError, match="which: is the old name of orders, and call got both; pass orders alone"):
        call("model", which=[1], orders=[2])


def test_an_unknown_argument_is_refused_as_usual():
    with pytest.raises(TypeError, match="unexpected keyword argument 'wich'"):
        call("model", wich=[1])


def test_the_signature_has_the_new_names_only():
    assert [*inspect.signature(call).parameters] == ["model", "orders", "method"]
