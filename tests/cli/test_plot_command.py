"""``fastprobe plot``."""

import fastprobe as fp


def test_a_saved_scan_loads_and_plots(scan, run, tmp_path):
    scan("--spans", "all")

    loaded = fp.load(tmp_path / "out")
    code, _, _ = run("plot", tmp_path / "out", "--metric", "cosine")

    assert loaded.matrix("r2").shape == (10, 2)
    assert loaded.matrix("r2", spans=True).shape == (2, 2)
    assert len(loaded.to_pandas()) == 23
    assert loaded.top(1, "r2")[0]["element"] == "attn_proj"
    assert code == 0
    assert (tmp_path / "out" / "cosine.png").read_bytes()[:4] == b"\x89PNG"


def test_a_column_without_numbers_is_refused(scan, run, tmp_path):
    scan("--elements", "layer")

    code, out, err = run("plot", tmp_path / "out", "--metric", "element")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "metric: no row has 'element'; the rows have " in err
