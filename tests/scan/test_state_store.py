"""States come back from every place of the store as they were put."""

import errno
import os

import pytest
import torch

from fastprobe.scan.state_store import StateStore

CPU = torch.device("cpu")


def tensors(randn, dtype=torch.bfloat16):
    return [randn(6, 4, dtype=dtype), randn(9, dtype=torch.float32)[::2]]


@pytest.mark.parametrize("room", [0, 150, 10_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool])
def test_what_is_put_is_got(randn, tmp_path, room, dtype):
    with StateStore(CPU, room, folder=tmp_path) as store:
        put = {f"k{number}": tensors(randn, dtype) for number in range(5)}
        for key, value in put.items():
            store.put(key, value)
        for key, value in put.items():
            store.ahead(key)
            assert all(torch.equal(*pair) for pair in zip(store.get(key), value, strict=True))
            assert all(torch.equal(*pair) for pair in zip(store.get(key), value, strict=True))

    assert not list(tmp_path.iterdir())


def test_room_that_becomes_free_is_used_again(randn):
    with StateStore(CPU, 130) as store:
        for number in range(3):
            store.put(f"k{number}", tensors(randn))
        assert store.nbytes.keys() == {"device", "files"}
        store.drop("k0")
        store.drop("k1")
        store.put("k3", tensors(randn))

        assert store.nbytes == {"device": 68, "files": 68}


def test_saved_states_are_loaded_from_every_place(randn, tmp_path):
    put = {f"k{number}": tensors(randn) for number in range(3)}
    with StateStore(CPU, 70, folder=tmp_path) as store:
        for key, value in put.items():
            store.put(key, value)
        store.save(put, tmp_path / "kept")
    with StateStore(CPU, 0) as store:
        assert all(store.load(key, tmp_path / "kept") for key in put)
        assert not store.load("other", tmp_path / "kept")
        for key, value in put.items():
            assert all(torch.equal(*pair) for pair in zip(store.get(key), value, strict=True))


def test_a_full_disk_is_an_error_of_the_system_with_the_file(randn, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("fastprobe.scan.state_store.write_tensors", full)

    def put_all():
        with StateStore(CPU, 0) as store:
            for number in range(5):
                store.put(f"k{number}", tensors(randn))

    with pytest.raises(OSError, match="No space left on device") as raised:
        put_all()

    assert "k0" in raised.value.filename
