"""Files of moments: one safetensors file with the tensors, and the plan and a configuration as JSON in its header.

    counts, gram/<x>|<y>, sums/<block>, squares/<block>, units/<block>, unit_counts/<block>, origins/<block>

Files of version 0.1.0, whose plan calls ``units`` by another name, are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastprobe.errors import InputError
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.runtime.tensor_file import write_tensors


@dataclass(frozen=True)
class MomentsFile:
    """Contents of a file of moments. Tensors are read one at a time."""

    plan: MomentPlan
    dtype: str
    precision: str
    backend: str
    config: dict[str, Any]
    names: list[str]  # of the tensors
    _file: Any

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        return self._file.get_tensor(name)


def write_moments_file(
    path: str | Path, plan: MomentPlan, tensors: Mapping[str, Tensor], config: Mapping[str, Any], **labels: str
) -> None:
    """Write a file of moments. An existing file is replaced whole or not at all.

    Args:
        path: file to write.
        plan: plan of the moments.
        tensors: name in the file -> tensor.
        config: what the moments were made from; any JSON.
        labels: ``dtype``, ``precision`` and ``backend`` of the moments.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    metadata = {"plan": json.dumps(asdict(plan) | labels), "config": json.dumps(dict(config))}
    write_tensors(path, tensors, metadata)


@contextmanager
def reading_moments_file(path: str | Path, device: str) -> Iterator[MomentsFile]:
    """Open a file of moments.

    Raises:
        InputError: the file does not exist, or does not hold moments; also for what the ``with`` block finds wrong.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            plan = json.loads(metadata["plan"])
            dtype, backend = plan.pop("dtype"), plan.pop("backend")
            precision = plan.pop("precision", dtype)  # old files do not have it
            config = json.loads(metadata["config"])
            yield MomentsFile(_plan_from_json(plan), dtype, precision, backend, config, sorted(file.keys()), file)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; name a file of moments") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a file of moments ({error}); name a file that a scan wrote") from None


def _plan_from_json(plan: dict[str, Any]) -> MomentPlan:
    pairs, pooled = (tuple((x, y) for x, y in plan[name]) for name in ("pairs", "pooled"))
    units = tuple(plan["units"] if "units" in plan else plan["cones"])  # the name in version 0.1.0
    parts = {block: (first, second) for block, (first, second) in plan["parts"].items()}
    return MomentPlan(plan["widths"], pairs, pooled, units, parts, plan["folds"])
