"""Files are replaced whole or not at all."""

import pytest

from fastprobe.errors import InputError
from fastprobe.runtime.files import check_folder, replacing, write_text


def test_check_folder_makes_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)

    check_folder(tmp_path)
    check_folder("some/new/folder")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path, why in (("file", "File exists"), ("file/folder/below", "Not a directory")):
        with pytest.raises(InputError, match=f"out: the folder {path} cannot be made: {why}"):
            check_folder(path)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(InputError, match="cannot be made: Permission denied"):
        check_folder("new")


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"

    write_text(path, "one")
    write_text(path, "two: ±")

    assert path.read_text(encoding="utf-8") == "two: ±"
    assert list(path.parent.iterdir()) == [path]


def _fail_while_writing(path):
    with replacing(path) as temporary:
        temporary.write_text("half of wh")
        raise OSError("disk full")


@pytest.mark.parametrize("former", ["before", None])
def test_a_failing_block_changes_nothing(former, tmp_path):
    path = tmp_path / "file.txt"
    if former:
        path.write_text(former)

    with pytest.raises(OSError, match="disk full"):
        _fail_while_writing(path)

    assert [p.read_text() for p in tmp_path.iterdir()] == ([former] if former else [])


def test_the_former_file_exists_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    with replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
        assert temporary.parent == path.parent  # a rename within one file system is atomic

    assert path.read_text() == "after"
