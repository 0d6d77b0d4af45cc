"""The global random number generators, put back after a block that seeds them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch when the block ends.

    Of several GPUs all generators are restored, or that of this process's GPU in a distributed run.
    """
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        devices = [torch.cuda.current_device()]
    else:
        devices = list(range(torch.cuda.device_count()))
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
