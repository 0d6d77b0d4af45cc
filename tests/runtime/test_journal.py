"""The journal of a run of orders."""

from fastprobe.runtime.journal import FILE, Journal


def test_a_resumed_run_never_has_less_on_disk(tmp_path):
    first = Journal(tmp_path)
    with first.keeping({"depths": False}):
        first.add(0, 0, {"tokens": [3.0]})
    kept = (tmp_path / FILE).read_text()

    with Journal(tmp_path, resume=True).keeping({"depths": False}):
        on_disk = (tmp_path / FILE).read_text()  # what a kill before the next finished order would leave

    assert on_disk == kept
    assert len(kept.splitlines()) == 2
