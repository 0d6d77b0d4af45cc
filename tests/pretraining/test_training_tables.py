"""Tables of a training in a terminal of 80 columns."""

from rich.console import Console

from fastprobe.pretraining.table import costs_table


def test_costs_beside_a_long_name_of_a_variant_stay_whole(capsys):
    costs = {"parameters": 340_000_000, "layer_parameters": 300_000_000, "flops_per_token": 2_000_000_000}
    config = {"variant": "attention-for-ffn+linear-attention+weighted-skip", "costs": costs, "costs_of_bert": costs}

    Console(width=80).print(costs_table(config | {"steps": 1_000_000, "steps_asked": 1_000_000}))

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[1:] == ["340,000,000", "300,000,000", "2,000,000,000", "1,000,000"]
