"""The bar of a scan reaches its end with the scan, names its parts and shows the tokens."""

import re

import pytest

import fastprobe as fp
from fastprobe.runtime.progress import Bar
from fastprobe.scan.progress import ScanProgress
from fastprobe.testing.tiny_models import tiny_batches, tiny_model


@pytest.mark.parametrize("schedule", ["batch", "layer"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_parts_of_a_scan_share_one_bar_whose_end_is_the_end(schedule, family, monkeypatch):
    seen = []

    class Watched(Bar):
        def update(self, n=1):
            super().update(n)
            seen.append((self.desc, self.n / self.total if self.total else 0.0))

    monkeypatch.setattr("fastprobe.scan.progress.Bar", Watched)
    batches = tiny_batches()

    fp.linearity(tiny_model(family), batches, schedule=schedule, score_sequences=4)

    shares = [share for _, share in seen]
    assert {"sums", "solve", "score"} <= {part for part, _ in seen}
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert max(shares[:-1]) < 1
    solve = [share for part, share in seen if part == "solve"]
    assert max(solve) - min(solve) > 0.02  # the solve moves the bar


def test_the_bar_stays_below_its_end_until_the_scan_is_done(capfd):
    with ScanProgress(True) as bar:
        bar.part("sums")
        bar.expect(100)
        bar.ran(150, tokens=1234)
        assert "100%" not in capfd.readouterr().err
        bar.say("a remark")
        bar.finish()

    said = capfd.readouterr().err
    assert "a remark\n" in said
    assert re.search(r"sums: 100%.*1,234 tokens", said.split("\r")[-1])


def test_a_hidden_bar_prints_nothing(capfd):
    with ScanProgress(False) as bar:
        bar.part("sums")
        bar.expect(10)
        bar.ran(5)
        bar.say("a remark")
        bar.finish()

    assert capfd.readouterr().err == ""


def test_every_second_of_a_scan_is_in_a_part(monkeypatch):
    for schedule in ("batch", "layer"):
        seconds = fp.linearity(tiny_model("gpt2"), tiny_batches(), schedule=schedule, progress=False).config["seconds"]

        assert {"check", "read", "forward", "moments", "solve", "score"} <= seconds.keys()
