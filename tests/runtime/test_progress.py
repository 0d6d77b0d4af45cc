"""Progress bars of a run."""

import pytest

from fastprobe.runtime.progress import OrderProgress, PassProgress


def test_tokens_orders_and_layer_runs_are_shown(capfd):
    with OrderProgress(100, 4, show=True) as progress:
        progress.batch(60, 1, 30)
        for _ in range(30):
            progress.ran(1)
        for _ in range(3):
            progress.finished()
        progress.batch(40, 4, 0)

    last = capfd.readouterr().err.split("\r")[-1]
    assert "100/100" in last
    assert "4/4 orders, 30 layer runs" in last
    assert progress.layer_runs == 30


def test_an_order_counts_when_it_finishes(capfd):
    with OrderProgress(100, 4, show=True) as progress:
        progress.batch(60, 0, 30)
        progress.finished()

        assert "1/4 orders" in capfd.readouterr().err.split("\r")[-1]


def test_a_hidden_bar_prints_nothing(capfd):
    with OrderProgress(None, 2, show=False) as progress:
        progress.batch(10, 0, 3)
        progress.ran(3)
        progress.finished()

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("layer_runs", [7, 584])
def test_rounding_never_moves_the_bar_past_its_end(layer_runs, capfd):
    with OrderProgress(1001, 67, show=True) as progress:
        for tokens in (500, 501):
            progress.batch(tokens, 0, layer_runs)
            for _ in range(layer_runs):
                progress.ran(1)

    assert "1.00k/1.00k" in capfd.readouterr().err.split("\r")[-1]


def test_each_pass_has_its_name_and_keeps_its_line(capfd):
    with PassProgress(show=True) as passes:
        passes.begin("sums", 3000, "tokens")
        passes.ran(3000)
        passes.begin("classifiers", 7, "states")
        passes.ran(7)

    first, second, _ = (line.split("\r")[-1] for line in capfd.readouterr().err.split("\n"))
    assert first.startswith("sums: 100%")
    assert "3.00k/3.00k" in first
    assert second.startswith("classifiers: 100%")
    assert "7/7" in second


def test_hidden_passes_print_nothing(capfd):
    with PassProgress(show=False) as passes:
        passes.begin("sums", None, "tokens")
        passes.ran(10)

    assert capfd.readouterr().err == ""
