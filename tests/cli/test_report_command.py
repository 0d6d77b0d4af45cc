"""``fastprobe report``, and the sizes of ``fastprobe plot``."""

import shlex

import fastprobe as fp


def test_a_report_has_the_command_that_made_the_result(scan, run, tmp_path):
    scan("--elements", "layer", out=tmp_path / "a folder")

    code, printed, _ = run("report", tmp_path / "a folder")

    assert (code, printed.strip()) == (0, str(tmp_path / "a folder" / "report.html"))
    command = fp.load(tmp_path / "a folder").config["command"]
    assert shlex.split(command)[:2] == ["fastprobe", "linearity"]
    assert shlex.split(command)[-4:] == ["--out", str(tmp_path / "a folder"), "--elements", "layer"]
    page = (tmp_path / "a folder" / "report.html").read_text(encoding="utf-8")
    assert "--elements layer</pre>" in page


def test_a_folder_without_a_result_is_refused(run, tmp_path):
    code, printed, said = run("report", tmp_path, "--out", tmp_path / "page.html")

    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert not [*tmp_path.iterdir()]


def test_a_picture_for_a_paper_is_written(scan, run, tmp_path):
    scan("--elements", "layer")

    code, _, _ = run("plot", tmp_path / "out", "--size", "column", "-o", tmp_path / "figure.pdf")
    refused, _, said = run("plot", tmp_path / "out", "--size", "poster")

    assert code == 0
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (refused, said.count("\n")) == (2, 1)
