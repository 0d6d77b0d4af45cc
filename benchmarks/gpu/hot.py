"""Launch a hot kernel once, for ``ncu``: ``python -m benchmarks.gpu.hot triton 768``."""

from __future__ import annotations

import sys

import torch

from benchmarks.gpu.gram import PAIR, our_backends, rows_of
from benchmarks.gpu.rows import ON_GPU, time_of

if __name__ == "__main__":
    backend, width = sys.argv[1], int(sys.argv[2])
    contestant = our_backends(rows_of(2, width, tokens=2**18 if ON_GPU else 256), PAIR)[backend]
    time_of(contestant)()
    if ON_GPU:
        torch.cuda.synchronize()
