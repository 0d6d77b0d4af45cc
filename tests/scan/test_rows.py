"""Rows of a scan: equal fits are solved once, and every row gets its numbers."""

import fastprobe as fp
from fastprobe.regression.least_squares import Factorisation
from fastprobe.testing.tiny_models import tiny_batches, tiny_model


def test_equal_fits_are_solved_once_and_give_equal_rows(monkeypatch):
    solved = []
    fit = Factorisation.fit
    monkeypatch.setattr(Factorisation, "fit", lambda source, y: solved.append((source.x, y)) or fit(source, y))

    scan = fp.linearity(tiny_model("llama"), tiny_batches(), elements=["attention", "attention_sum"], progress=False)

    assert len(solved) == len(set(solved)) == len(scan.rows) // 2
    by_layer = {}
    for row in scan.rows:
        numbers = {key: value for key, value in row.items() if key != "element"}
        assert by_layer.setdefault(row["layer"], numbers) == numbers
        assert row["cosine"] is not None
