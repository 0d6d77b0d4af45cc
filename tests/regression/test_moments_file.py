"""Files of moments: saved and loaded bit for bit, replaced whole or not at all, named if broken."""

import json
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastprobe.errors import InputError
from fastprobe.regression.linear_fit import LinearFit
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.runtime import tensor_file
from fastprobe.runtime.files import write_text

CONFIG = {"model": "a/b", "folds": 5, "nested": {"layers": [0, 2], "text": None}, "seconds": 0.1}


@pytest.fixture
def moments(randn):
    return LinearFit(4, 3).update(randn(30, 4) + 100, randn(30, 3)).moments


@pytest.fixture
def saved(moments, tmp_path):
    path = tmp_path / "moments.safetensors"
    moments.save(path, CONFIG)
    return path


def test_a_file_of_moments_has_the_permissions_of_other_files(saved, tmp_path):
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


def test_rows_can_be_added_to_loaded_moments(moments, saved, randn):
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


def test_a_failed_save_leaves_the_old_file(moments, saved, monkeypatch):
    former = saved.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        moments.save(saved)

    assert saved.read_bytes() == former
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors: there is no such file"):
        Moments.load(tmp_path / "nothing.safetensors")


def test_a_folder_is_not_a_file_of_moments(tmp_path):
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


def test_a_full_disk_raises_oserror_and_leaves_the_old_file(randn, tmp_path):
    """safetensors itself raises no OSError; a limit on the size of files makes the system refuse the real write."""
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": 300, "y": 200}))
    path = tmp_path / "moments.safetensors"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            moments.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_version_0_1_0_is_read(moments, saved):
    """Return a file of version 0.1.0, which calls the blocks with unit sums ``cones``."""
    tensors, metadata = _parts(saved)
    plan = json.loads(metadata["plan"])
    plan["cones"] = plan.pop("units")
    save_file(tensors, saved, metadata | {"plan": json.dumps(plan)})

    loaded, config = Moments.load(saved)

    assert config == CONFIG
    assert loaded.plan == moments.plan
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in moments.tensors().items())
