"""Trials that end as those of broken kernels do, for ``test_trial_process.py``."""

import os
import time


def right(device):
    return 1e-8


def aborts(device):
    os.abort()


def hangs(device):
    time.sleep(600)


def raises(device):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def leaves(device):
    os._exit(0)
