"""The table of a probe: states in percent, and orders one below the other."""

from rich.console import Console

from fastprobe.probes.probe import Probes
from fastprobe.probes.table import STATES, probes_table


def rows(order, name, scores):
    return [
        {"order": order, "name": name, "task": "token", "state": state, "r2_cv": score}
        for state, score in enumerate(scores)
    ]


def printed(table, capsys):
    Console(width=80).print(table)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_states_are_in_percent_with_the_expected_state_at_the_end(capsys):
    lines = printed(probes_table(Probes({}, rows("0,1", "identity", [0.5, 1.0, None]))), capsys)

    assert lines == [["r2_cv,", "%", "0", "1", "2", "learnt", "at"], ["token", "50", "100", "0.50"]]


def test_orders_stand_below_the_baseline_and_end_where_they_end(capsys):
    result = Probes({}, [*rows("0,1", "identity", [0.5, 1.0, 1.0]), *rows("1", "", [0.5, 0.5])])

    lines = printed(probes_table(result), capsys)[1:]

    assert lines == [
        ["the", "model", "itself"],
        ["token", "50", "100", "100", "0.50"],
        [],
        ["1"],
        ["token", "50", "50", "0.00"],
    ]


def test_of_many_states_the_first_the_last_and_some_between_are_shown(capsys):
    lines = printed(probes_table(Probes({}, rows("0", "identity", [0.5] * 41))), capsys)

    assert len(lines[1]) == 1 + STATES + 1
    assert (lines[0][2], lines[0][-3]) == ("0", "40")
