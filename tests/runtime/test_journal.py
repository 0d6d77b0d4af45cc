"""What a run of orders keeps on the way."""

from fastprobe.runtime.journal import FILE, Journal


def test_what_was_kept_is_on_disk_as_soon_as_a_run_goes_on(tmp_path):
    first = Journal(tmp_path)
    with first.keeping({"depths": False}):
        first.add(0, 0, {"tokens": [3.0]})
    kept = (tmp_path / FILE).read_text()

    with Journal(tmp_path, resume=True).keeping({"depths": False}):
        on_disk = (tmp_path / FILE).read_text()  # what a kill before the next order is through would leave

    assert on_disk == kept
    assert len(kept.splitlines()) == 2
