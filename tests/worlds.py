"""Several processes of ``torch.distributed`` for tests, started once for many cases."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60
"""Seconds that a case may take before the test fails."""


class World:
    """Processes with a process group of gloo. A call runs a function in all of them.

    They are forked, so that they need not import anything again.

    Args:
        size: number of processes.
        folder: an empty folder, for the rendezvous.
    """

    def __init__(self, size: int, folder: Path):
        fork = multiprocessing.get_context("fork")
        self._ends, self._processes = [], []
        for rank in range(size):
            here, there = fork.Pipe()
            process = fork.Process(target=_serve, args=(rank, size, folder / "rendezvous", there), daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the result of a function of rank and arguments in every process; the error of one that failed."""
        for end in self._ends:
            end.send((function, arguments))
        return [self._answer(rank) for rank in range(len(self._ends))]

    def _answer(self, rank: int) -> Any:
        end = self._ends[rank]
        if not end.poll(PATIENCE):
            self.close()
            raise AssertionError(f"process {rank} hangs")
        try:
            return end.recv()
        except EOFError:  # it was killed
            return None

    def close(self) -> None:
        """Stop the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, rendezvous: Path, end: Connection) -> None:
    torch.set_num_threads(1)
    url = f"file://{rendezvous}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # as torchrun sets them; nothing listens
    while True:
        function, arguments = end.recv()
        try:
            answer = function(rank, *arguments)
        except BaseException as error:
            answer = error
        end.send(answer)
