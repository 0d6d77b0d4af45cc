"""What commands say beside their tables."""

import pytest
from rich.console import Console

from fastprobe.cli.showing import remark_on_few
from fastprobe.tables import orders_table


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (384, "384 tokens, and maps of 384 columns fit anything to as few; read more (--tokens)"),
        (2_304, "2,304 tokens are few for maps of 384 columns: held-out errors are some 20% higher"),
        (384 * 11, ""),
    ],
)
def test_few_tokens_are_remarked_on(tokens, said, capsys):
    remark_on_few(tokens, 384)

    assert capsys.readouterr().err.replace("\n", " ").strip() == said


def test_numbers_beside_a_long_name_stay_whole(capsys):
    columns = ("loss", "delta_loss", "delta_loss_se", "accuracy", "top1_agreement", "kl", "cosine", "relative_l2")
    row = dict.fromkeys((*columns, "relative_l2_se"), 0.1234) | {"name": "attention 0-3,5 random_init", "order": ""}

    Console(width=80).print(orders_table([row]))

    out = capsys.readouterr().out
    assert "…" not in out
    assert out.split("\n")[1].split()[-3:] == ["0.1234"] * 3
