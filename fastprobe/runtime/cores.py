"""Independent tasks on the cores of a CPU, each on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(task: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """Return ``[task(item) for item in items]``, with one thread for each task and as many tasks at a time as cores.

    A factorisation has many short parallel regions. Beside other processes, each of them waits for a thread that is not
    running (benchmarks/NOTES.md). A task on one thread waits for none, and its result does not depend on the number of
    cores. On another device the tasks run in turn, in this thread.

    Args:
        task: does not depend on the order of the calls. It runs in another thread, with the gradient mode and the
            inference mode of this one.
        items: its arguments.
        device: device of the tensors.

    Raises:
        Exception: that of the first item whose task failed, after the tasks that run have ended.
    """
    if device.type != "cpu" or not items:
        return [task(item) for item in items]
    cores = torch.get_num_threads()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def begin() -> None:
        torch.get_num_threads()  # takes over the number of the process, which would else happen after the next line
        torch.set_num_threads(1)

    def run(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return task(item)

    try:
        with ThreadPoolExecutor(min(cores, len(items)), "fastprobe", begin) as pool:
            running = [pool.submit(run, item) for item in items]
            try:
                return [each.result() for each in running]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(cores)  # that of the process, for threads that start later
