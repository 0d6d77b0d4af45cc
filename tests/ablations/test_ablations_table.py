"""The table of an ablation: names of its rows."""

import pytest
from rich.console import Console

import fastprobe as fp
from fastprobe.ablations.table import ablations_table
from fastprobe.testing.tiny_models import tiny_batches, tiny_model


@pytest.fixture(scope="module")
def ablations():
    return fp.ablation(tiny_model("bert"), tiny_batches(), mode=["zero", "identity"], layers=[0, 1], progress=False)


def test_rows_are_named_by_element_layers_and_mode_after_the_baseline(ablations, capsys):
    Console(width=80).print(ablations_table(ablations.rows))

    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "ablation"
    assert [line[:16].strip() for line in lines] == ["baseline", "mlp 0-2 zero", "mlp 0-2 identity"]


def test_the_table_changes_no_row(ablations):
    before = [dict(row) for row in ablations.rows]

    ablations_table(ablations.rows)

    assert ablations.rows == before
    assert (before[0]["element"], before[0]["mode"]) == ("", "none")
