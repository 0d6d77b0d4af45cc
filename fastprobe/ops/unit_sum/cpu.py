"""``unit_sum`` on the C++ kernels: ``csrc/cpu/unit_sum.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastprobe.ops._dispatch import cpu_library
from fastprobe.ops.unit_sum.api import UnitSum, unit_sum


def _refuses(rows: Tensor, valid: Tensor) -> str | None:
    return cpu_library.not_on_a_cpu((valid,)) or cpu_library.cpu_refuses((rows,))


@unit_sum.register("cpu", unless=_refuses)
def launch_unit_sum(rows: Tensor, valid: Tensor) -> UnitSum:
    """Sum with ``csrc/cpu/unit_sum.cpp``, which reads every row from memory once.

    Args:
        rows: see :func:`fastprobe.ops.unit_sum.unit_sum`; already checked.
        valid: the same.
    """
    total = torch.empty(rows.shape[1], dtype=torch.float64)
    valid = valid.contiguous()  # alive while C++ reads it
    number, finite = cpu_library.cpu_library().unit_sum(
        rows=cpu_library.rows_argument(rows),
        valid=valid.data_ptr(),
        n=len(rows),
        total=total.data_ptr(),
        threads=torch.get_num_threads(),
        isa=cpu_library.chosen_instruction_set(),
    )
    return UnitSum(total, torch.tensor(number), torch.tensor(finite))
