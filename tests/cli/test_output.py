"""Tables and notes of commands that run layers."""

import pytest
from rich.console import Console
from rich.table import Table

from fastprobe.ablations.table import ablations_table
from fastprobe.cli.output import note_few_tokens, show
from fastprobe.probes.probe import Probes
from fastprobe.probes.table import probes_table
from fastprobe.reordering.commutativity import OrderEffects
from fastprobe.reordering.table import depths_table, orders_table


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (384, "* maps of 384 columns: cannot be said with 384 tokens; at least 1,920 would do (--tokens)"),
        (2_304, "2,304 tokens are few for maps of 384 columns: held-out errors are about 20% higher"),
        (384 * 11, ""),
    ],
)
def test_too_few_tokens_get_a_note(tokens, text, capsys):
    note_few_tokens(tokens, 384)

    assert capsys.readouterr().err.replace("\n", " ").strip() == text


def test_numbers_beside_a_long_name_stay_whole(capsys):
    columns = ("loss", "delta_loss", "delta_loss_se", "accuracy", "top1_agreement", "kl", "cosine", "relative_l2")
    row = dict.fromkeys((*columns, "relative_l2_se"), 0.1234) | {"name": "attention 0-3,5 random_init", "order": ""}

    Console(width=80).print(orders_table([row, row]))

    out = capsys.readouterr().out
    assert "…" not in out
    assert out.split("\n")[2].split()[-3:] == ["0.1234"] * 3


@pytest.mark.parametrize(("layers", "last"), [(3, "0.2500"), (12, "0.25"), (40, "0.25")])
def test_depths_of_any_model_fit_in_80_columns_and_include_the_last(layers, last, capsys):
    long = dict.fromkeys(("relative_l2", "cosine"), 0.5) | {"name": "", "order": "12,1,2,3,4,5,6,7,8,9,10,11,12"}
    long |= {"relative_l2_by_depth": [1.5] * (layers - 1) + [0.25]}
    short = long | {"order": "0", "relative_l2_by_depth": [1.0]}

    Console(width=80).print(depths_table([long, long, short]))

    out = capsys.readouterr().out
    head, _, first, *_, ends_early = out.splitlines()
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert head.split()[:4] == ["rel", "l2", "after", "step"]
    assert (head.split()[4], head.split()[-1], len(head.split()) - 4) == ("1", str(layers), min(layers, 12))
    assert first.split()[-1] == last
    assert len(ends_early.split()) == 2


@pytest.mark.parametrize(
    ("metric", "shown"), [("cosine_by_depth", "cosine"), ("cosine", "cosine"), ("delta_loss", "rel l2")]
)
def test_depths_show_the_drawn_column_if_it_has_depths(metric, shown, capsys):
    row = {"name": "identity", "order": "0,1", "relative_l2": 0.0}
    row |= {"relative_l2_by_depth": [0.0, 0.0], "cosine_by_depth": [1.0, 1.0], "delta_loss": 0.0}

    Console(width=80).print(depths_table([row], metric))

    assert capsys.readouterr().out.startswith(f"{shown} after step")


def test_without_a_predicted_token_the_picture_shows_the_states(tmp_path, capsys):
    config = {"layers": 3, "layer_forwards": 5, "layer_forwards_naive": 6}
    rows = [
        {"order": order, "name": name, "relative_l2": distance, "cosine": 1 - distance, "delta_loss": None}
        for order, name, distance in (("0,1,2", "identity", 0.0), ("1,0,2", "swap 0 1", 0.2))
    ]

    effects = OrderEffects.restored(config, rows)
    show(effects, Table(), provenance={}, out=tmp_path, metric="delta_loss", json=False, quiet=False)

    assert (tmp_path / "commutativity.png").exists()
    assert (
        "no row has delta_loss, because no token was to be predicted; the picture shows relative_l2"
        in capsys.readouterr().err
    )


def test_one_sequence_decides_nothing(tmp_path, capsys):
    config = {"layers": 2, "layer_forwards": 5, "layer_forwards_naive": 6, "tokens": 20}
    rows = [
        {"order": order, "name": name, "relative_l2": distance, "relative_l2_se": None}
        for order, name, distance in (("0,1", "identity", 0.0), ("1,0", "swap 0 1", 0.2))
    ]

    effects = OrderEffects.restored(config, rows)
    show(effects, Table(), provenance={}, out=tmp_path, metric="relative_l2", json=False, quiet=False)

    expected = "one sequence has no standard error: a difference cannot be said with 20 tokens; at least 40 would do"
    assert expected in capsys.readouterr().err


def test_rows_of_linear_maps_from_too_few_tokens_are_marked(capsys):
    columns = ("loss", "delta_loss", "delta_loss_se", "accuracy", "top1_agreement", "kl", "cosine", "relative_l2")
    numbers = dict.fromkeys((*columns, "relative_l2_se"), 0.1234) | {"order": "", "element": "mlp", "layers": "0"}
    rows = [numbers | {"mode": mode, "tokens": 119} for mode in ("none", "zero", "linear")]

    for few in (24, 23):
        Console(width=80).print(ablations_table(rows, few))

    lines = capsys.readouterr().out.splitlines()
    assert [" linear*" in line for line in lines] == [False, False, False, True, False, False, False, False]


def test_a_probe_from_too_few_tokens_shows_no_number(capsys):
    row = {"order": "0,1", "name": "", "task": "next", "r2_cv": 0.5}
    rows = [row | {"state": state, "tokens": 119} for state in range(3)]

    for few in (24, 23):
        Console(width=80).print(probes_table(Probes({"columns": few, "tokens": 119}, rows)))

    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    assert lines == [["next"], ["next", "50", "50", "50", "0.00"]]
