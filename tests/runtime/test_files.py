"""Files are replaced whole or not at all. Moments are loaded bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastprobe.errors import InputError
from fastprobe.regression import moments as moments_module
from fastprobe.regression.linear_fit import LinearFit
from fastprobe.regression.moments import Moments
from fastprobe.runtime.files import check_folder, replacing, write_text

CONFIG = {"model": "a/b", "folds": 5, "nested": {"layers": [0, 2], "text": None}, "seconds": 0.1}


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


@pytest.fixture
def moments(randn):
    return LinearFit(4, 3).update(randn(30, 4) + 100, randn(30, 3)).moments


@pytest.fixture
def saved(moments, tmp_path):
    path = tmp_path / "moments.safetensors"
    moments.save(path, CONFIG)
    return path


def test_a_file_is_replaced_if_the_block_succeeds(tmp_path):
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


def test_moments_have_the_permissions_of_other_files(saved, tmp_path):
    write_text(tmp_path / "file.txt", "")

    assert saved.stat().st_mode == (tmp_path / "file.txt").stat().st_mode


def test_moments_are_loaded_bit_for_bit(moments, saved):
    loaded, config = Moments.load(saved)

    assert config == CONFIG
    assert loaded.plan == moments.plan
    assert (loaded.dtype, loaded.backend) == (moments.dtype, moments.backend)
    ours, theirs = moments.tensors(), loaded.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.origins.keys() == {"x", "y"}


def test_loaded_moments_take_more_rows_like_the_originals(moments, saved, randn):
    rows = {"x": randn(9, 4) + 100, "y": randn(9, 3)}
    loaded, _ = Moments.load(saved)

    for one in (moments, loaded):
        one.update_(rows, torch.arange(9) % 5)

    ours, theirs = moments.tensors(), loaded.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_moments_of_no_rows_can_be_saved(tmp_path):
    LinearFit(4, 3).moments.save(tmp_path / "zero")

    loaded, config = Moments.load(tmp_path / "zero")

    assert (loaded.tokens, loaded.dtype, loaded.origins, config) == (0, "", {}, {})


def test_a_failing_save_keeps_the_former_file(moments, saved, monkeypatch):
    former = saved.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(moments_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        moments.save(saved)

    assert saved.read_bytes() == former
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors: there is no such file"):
        Moments.load(tmp_path / "nothing.safetensors")


def test_a_folder_is_no_file_of_moments(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        Moments.load(tmp_path)


def _parts(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _cut_short(path):
    path.write_bytes(path.read_bytes()[:-50])


def _emptied(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("not a file of tensors, but long enough to be read as one")


def _foreign(path):
    save_file({"weight": torch.zeros(2)}, path)


def _without_a_sum(path):
    tensors, metadata = _parts(path)
    del tensors["sums/x"]
    save_file(tensors, path, metadata)


def _with_a_sum_of_another_shape(path):
    tensors, metadata = _parts(path)
    save_file(tensors | {"counts": torch.zeros(1, dtype=torch.float64)}, path, metadata)


def _with_a_plan_of_another_kind(path):
    tensors, metadata = _parts(path)
    save_file(tensors, path, metadata | {"plan": json.dumps(["x", "y"])})


def _without_config(path):
    tensors, metadata = _parts(path)
    save_file(tensors, path, {"plan": metadata["plan"]})


BREAK = [
    _cut_short,
    _emptied,
    _text,
    _foreign,
    _without_a_sum,
    _with_a_sum_of_another_shape,
    _with_a_plan_of_another_kind,
    _without_config,
]


@pytest.mark.parametrize("damage", BREAK, ids=lambda damage: damage.__name__.strip("_"))
def test_a_broken_file_is_named(damage, saved):
    damage(saved)

    with pytest.raises(InputError, match=r"moments\.safetensors: not a file of moments"):
        Moments.load(saved)
