"""Processes of one run, under ``torch.distributed``: what they gather and add up, and an error that ends all of them.

Objects, flags and tensors in host memory go through a group of gloo of their own; tensors on a GPU go through the
process group of the user. Every exchange carries the error of a process that failed, so no process waits for one that
will not come. One process alone exchanges nothing.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastprobe.errors import FastprobeError, InputError, ProcessError
from fastprobe.runtime.interrupt import uninterrupted

T = TypeVar("T")

_ANNOUNCED = "_fastprobe_announced"
"""Attribute of an error that all processes have."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    control: Any = None
    """Group of all processes that moves tensors in host memory; ``None`` for one process."""

    @classmethod
    def here(cls) -> Ranks:
        """Return the processes of ``torch.distributed``, or one process where it is not initialised.

        The first call in a process group is a collective call.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), _control_group(dist.group.WORLD))

    @property
    def is_first(self) -> bool:
        """True in the process that writes files and shows progress."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in the order of their ranks. The value must be picklable.

        Raises:
            BaseException: the error of the first process that failed.
            ProcessError: a process ended without a message.
        """
        if self.size == 1:
            return [value]
        outcomes = self._exchange(None, value)
        for rank, (failure, _) in enumerate(outcomes):
            if failure is not None:
                raise _restored(failure, rank)
        return [found for _, found in outcomes]

    def from_first(self, function: Callable[[], T]) -> T:
        """Return, in every process, what a function returns in the first one. It runs there only."""
        return self.gather(function() if self.is_first else None)[0]  # type: ignore[return-value]

    def agree(self, what: str, value: Any, remedy: str) -> None:
        """Raise if a value is not the same in all processes.

        Args:
            what: name of the argument, for the message.
            value: what is compared.
            remedy: what the user can do, for the message.

        Raises:
            InputError: the values differ.
        """
        values = self.gather(value)
        if other := next((rank for rank, found in enumerate(values) if found != values[0]), 0):
            raise InputError(f"{what}: must be the same in all processes, but 0 and {other} differ; {remedy}")

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes."""
        if self.size == 1:
            return
        self.gather(None)  # so that no process waits for one that failed
        with uninterrupted():  # the others wait for all of these sums
            try:
                for tensor in tensors:
                    dist.all_reduce(tensor, group=self.control if tensor.device.type == "cpu" else None)
            except RuntimeError as error:
                raise _lost(error) from None

    def _exchange(self, failure: bytes | None, value: Any) -> list[tuple[bytes | None, Any]]:
        """Return the errors and values of all processes. A Ctrl-C waits, and is dropped if an error ends the run."""
        outcomes: list[Any] = [None] * self.size
        with uninterrupted() as pressed:
            try:
                dist.all_gather_object(outcomes, (failure, value), group=self.control)
            except RuntimeError as error:
                raise _lost(error) from None
            if any(failed is not None for failed, _ in outcomes):
                pressed.clear()
        return outcomes

    def _announce(self, error: BaseException) -> BaseException:
        """Tell the other processes of an error, unless they have it, and return the one that ends all processes."""
        if self.size == 1 or hasattr(error, _ANNOUNCED):
            return error
        try:
            outcomes = self._exchange(_pickled(error), None)
        except ProcessError:
            return error
        rank, failure = next((rank, failure) for rank, (failure, _) in enumerate(outcomes) if failure is not None)
        setattr(error, _ANNOUNCED, True)
        return error if rank == self.rank else _restored(failure, rank)


@contextmanager
def together() -> Iterator[Ranks]:
    """Run a block in all processes: it ends for all of them, by the error of the first that fails if any does.

    Blocks may be nested. Every process must enter the same ones.
    """
    ranks = Ranks.here()
    try:
        yield ranks
        ranks.gather(None)
    except BaseException as error:
        ending = ranks._announce(error)
        if ending is error:
            raise
        raise ending from None


def launched() -> bool:
    """Return True in one of several processes that ``torchrun`` has started."""
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and all(name in os.environ for name in names)


def on_this_machine() -> int:
    """Return the number of processes that ``torchrun`` has started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` has started, for the time of a block. Does nothing in other processes.

    Each process gets a GPU of its own if there are enough. NCCL needs that; processes that share GPUs use gloo.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    backend, gpus = "gloo", torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
        backend = "cpu:gloo,cuda:nccl" if on_this_machine() <= gpus else "gloo"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


@functools.lru_cache(maxsize=1)
def _control_group(world: Any) -> Any:
    """Return a group of gloo with the processes of ``world``, made once for each."""
    return dist.new_group(backend="gloo")


def _pickled(error: BaseException) -> bytes:
    """Return an error as bytes; one that cannot be pickled as its text."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        data = pickle.dumps(FastprobeError(f"{type(error).__name__}: {error}"))
    return data


def _restored(failure: bytes, rank: int) -> BaseException:
    """Return the error of another process, marked as one that all processes have."""
    error: BaseException = pickle.loads(failure)
    if not isinstance(error, FastprobeError):
        error.add_note(f"in process {rank}")
    setattr(error, _ANNOUNCED, True)
    return error


def _lost(error: RuntimeError) -> ProcessError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    lost = ProcessError(f"torchrun: another process ended without a message ({reason}); start all of them again")
    setattr(lost, _ANNOUNCED, True)
    return lost
