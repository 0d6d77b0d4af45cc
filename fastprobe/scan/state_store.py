"""Store of hidden states between layers: on the device while they fit, else in host memory, else in files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastprobe.runtime.files import make_folder
from fastprobe.runtime.tensor_file import write_tensors

WRITES = 2
"""Files that may wait to be written. More would hold their states in memory."""


@dataclass
class _Entry:
    """Tensors in memory, or a file that holds them."""

    size: int
    place: str  # "device", "host" or "files"
    tensors: list[Tensor] = field(default_factory=list)
    written: Future[None] | None = None
    read: Future[dict[str, Tensor]] | None = None


class StateStore:
    """Lists of tensors by key. A key is put once and dropped when it is not needed any more.

    Files are written and read ahead of use by a thread. They lie in a folder of their own, which is deleted at the end.

    Args:
        device: device that :meth:`get` gives tensors on.
        on_device: bytes that may stay on the device.
        on_host: bytes that may stay in host memory, page-locked; 0 for a CPU, whose memory is the device's.
        folder: where to make the folder for files; by default that of the system for temporary files.
    """

    def __init__(self, device: torch.device, on_device: int, on_host: int = 0, folder: Path | None = None):
        self.device, self._folder = device, folder
        self._room = {"device": on_device, "host": on_host if device.type != "cpu" else 0}
        self._entries: dict[str, _Entry] = {}
        self._files: Path | None = None
        self._thread = ThreadPoolExecutor(1)
        self._writes: list[Future[None]] = []

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._entries.clear()
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes in each place that holds some: device, host, files."""
        sizes: dict[str, int] = {}
        for entry in self._entries.values():
            sizes[entry.place] = sizes.get(entry.place, 0) + entry.size
        return sizes

    def put(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Store tensors under a new key.

        Raises:
            OSError: a file cannot be written, for example because the disk is full; also for an earlier file.
        """
        size = sum(tensor.nbytes for tensor in tensors)
        place = next((name for name, room in self._room.items() if size <= room), "files")
        entry = self._entries[key] = _Entry(size, place)
        if place != "files":
            self._room[place] -= size
            entry.tensors = [_compact(t) if place == "device" else _pinned(t) for t in tensors]
            return
        while len(self._writes) >= WRITES:
            self._writes.pop(0).result()
        entry.written = self._thread.submit(_write, self._path(key), [_compact(t).cpu() for t in tensors])
        self._writes.append(entry.written)

    def get(self, key: str) -> list[Tensor]:
        """Return the tensors of a key, on the device."""
        entry = self._entries[key]
        if entry.place == "files":
            self.ahead(key)
            assert entry.read is not None
            found, entry.read = entry.read.result(), None
            return [found[name].to(self.device, non_blocking=True) for name in sorted(found, key=int)]
        return [tensor.to(self.device, non_blocking=True) for tensor in entry.tensors]

    def ahead(self, key: str) -> None:
        """Begin to read the file of a key, if it is in one, so that :meth:`get` need not wait."""
        entry = self._entries[key]
        if entry.place == "files" and entry.read is None:
            entry.read = self._thread.submit(_read, self._path(key), entry.written)

    def drop(self, key: str) -> None:
        """Delete the tensors of a key."""
        entry = self._entries.pop(key)
        if entry.place != "files":
            self._room[entry.place] += entry.size
            return
        for waiting in (entry.written, entry.read):
            if waiting is not None:
                waiting.result()
        self._path(key).unlink(missing_ok=True)

    def save(self, keys: Iterable[str], folder: Path) -> None:
        """Write the tensors of some keys to files ``<key>.safetensors`` of a folder that :meth:`load` reads.

        Files of the store are linked, not copied, where the file system can do that.
        """
        make_folder(folder)
        for key in keys:
            entry, path = self._entries[key], folder / f"{key}.safetensors"
            if entry.written is not None:
                entry.written.result()
                try:
                    os.link(self._path(key), path)
                    continue
                except OSError:  # another file system, or one without links
                    pass
            _write(path, [tensor.cpu() for tensor in self.get(key)])

    def load(self, key: str, folder: Path) -> bool:
        """Put the tensors of a key that :meth:`save` wrote, and return False if it wrote none."""
        path = folder / f"{key}.safetensors"
        if not path.exists():
            return False
        found = _read(path, None)
        self.put(key, [found[name].to(self.device) for name in sorted(found, key=int)])
        return True

    def _path(self, key: str) -> Path:
        if self._files is None:
            parent = None if self._folder is None else make_folder(self._folder)
            self._files = Path(tempfile.mkdtemp(prefix=".states-", dir=parent))
        return self._files / f"{key}.safetensors"


def _compact(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor that keeps no larger memory alive."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _pinned(tensor: Tensor) -> Tensor:
    """Return a copy in page-locked host memory, which a GPU reads without a detour."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _write(path: Path, tensors: Sequence[Tensor]) -> None:
    write_tensors(path, {str(index): tensor for index, tensor in enumerate(tensors)})


def _read(path: Path, written: Any) -> dict[str, Tensor]:
    if written is not None:
        written.result()
    return {name: tensor.clone() for name, tensor in load_file(path).items()}  # so that the file is read here
