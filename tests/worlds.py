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

_forks: Any = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "fastprobe.cli",
        "fastprobe.testing.tiny_models",
        "tests.worlds",
        *(f"transformers.models.{family}.modeling_{family}" for family in ("bert", "gpt2", "llama")),
    ]
)  # the processes are forks of one that has imported these


class World:
    """Processes with a process group of gloo. A call runs a function in all of them.

    Args:
        size: number of processes.
        folder: a folder, for the rendezvous.
    """

    def __init__(self, size: int, folder: Path):
        self._ends, self._processes = [], []
        for rank in range(size):
            here, there = _forks.Pipe()
            arguments = (rank, size, folder / f"rendezvous-{size}", there)
            process = _forks.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return, for every process, what a function of rank and arguments returns or raises; ``None`` if it is killed.

        Args:
            function: a function of a module.
            arguments: what it gets after the rank.
        """
        for end in self._ends:
            end.send((function, arguments))
        return [self._answer(rank) for rank in range(len(self._ends))]

    def _answer(self, rank: int) -> Any:
        if not self._ends[rank].poll(PATIENCE):
            self.close()
            raise AssertionError(f"process {rank} hangs")
        try:
            return self._ends[rank].recv()
        except EOFError:
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
