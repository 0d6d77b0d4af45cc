"""The schedule of a scan, batch by batch or layer by layer: choose it, and say what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.offloaded import offload_hooks
from fastprobe.runtime.distributed import Ranks, on_this_machine
from fastprobe.runtime.memory import free_bytes, human, parse_bytes
from fastprobe.scan.checkpoint import FILE, ROWS, Checkpoint
from fastprobe.scan.layer_plans import LayerPlans
from fastprobe.scan.memory_needs import working_bytes
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.state_stream import StateStream

SCHEDULES = ("auto", "batch", "layer")
PLACES = {"device": "memory of the device", "host": "host memory", "files": "files"}


@dataclass(frozen=True)
class Budget:
    """Bytes that a scan may take beyond the weights of the model."""

    nbytes: int
    host: int  # of host memory for states, for a model on a GPU
    given: bool  # by the user

    @classmethod
    def of(cls, memory: int | str | None, device: torch.device, ranks: Ranks | None = None) -> Budget:
        """Return the budget of one process: what a user names, by default four fifths of the memory that is free.

        On a CPU the processes of ``torchrun`` on one machine get an equal part each. All processes get the smallest
        budget of any, so that they divide the elements alike.

        Raises:
            InputError: it is no number of bytes.
        """
        host = (free_bytes(torch.device("cpu")) or 0) // 2
        if memory is not None:
            nbytes = parse_bytes(memory) // (on_this_machine() if device.type == "cpu" else 1)
        else:
            free = free_bytes(device)
            nbytes = 2**62 if free is None else free * 4 // 5
        budgets = (ranks or Ranks()).gather((nbytes, host))
        return cls(min(each for each, _ in budgets), min(each for _, each in budgets), memory is not None)


def check_schedule(schedule: str) -> None:
    """Raise if a user's word is no schedule.

    Raises:
        InputError: it is none.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule: must be one of {', '.join(SCHEDULES)}, got {schedule!r}")


def goes_by_layer(
    schedule: str,
    plan: ScanPlan,
    budget: Budget,
    rows: int,
    scored: bool,
    model: nn.Module,
    checkpoint: Checkpoint,
    ranks: Ranks,
    refusal: Callable[[], str | None],
) -> tuple[bool, str]:
    """Return whether a scan goes layer by layer, and why.

    Args:
        schedule: one of ``SCHEDULES``. ``"auto"`` goes batch by batch if all sums fit in the budget and all weights are
            in memory, and if the layers of the model cannot run one at a time.
        plan: all fits and sums.
        budget: memory for the scan.
        rows: rows of a batch.
        scored: tokens are scored.
        model: the model.
        checkpoint: a run to resume keeps its schedule.
        ranks: the processes. All get the same answer: layer by layer if one of them has to.
        refusal: gives the reason if the layers of the model cannot run one at a time.

    Raises:
        InputError: the run to resume has another schedule.
        UnsupportedModelError: the layers cannot run one at a time, and the schedule is ``"layer"``.
    """
    if (begun := ranks.from_first(lambda: _begun(checkpoint.folder))) and checkpoint.resuming:
        if schedule not in ("auto", begun):
            raise InputError(
                f"--resume: {checkpoint.folder} holds a run with schedule={begun}, whose sums differ by rounding; use "
                f"that schedule or another --out"
            )
        schedule, why = begun, "as in the run that it resumes"
    elif schedule != "auto":
        why = "as asked"
    elif any(True for _ in offload_hooks(model)):
        schedule, why = "layer", "because weights are offloaded and each layer is then brought in once"
    else:
        needs = working_bytes(plan, rows, scored) if budget.given else plan.moments.nbytes * 4 // 5
        fits = needs <= budget.nbytes
        schedule = "batch" if fits else "layer"
        why = f"because the sums of all layers {'fit' if fits else 'do not fit'} in {human(budget.nbytes)}"
    wishes = ranks.gather((schedule, why))  # weights may be offloaded in one process only
    schedule, why = next((wish for wish in wishes if wish[0] == "layer"), wishes[0])
    if schedule == "batch":
        return False, why
    if reason := refusal():
        if why == "as asked":
            raise UnsupportedModelError(f"schedule: layer by layer cannot run this model: {reason}; use batch or auto")
        return False, f"because its layers cannot run one at a time: {reason}"
    return True, why


def _begun(folder: Path | None) -> str:
    """Return the schedule of the last run that a folder holds, ``""`` if it holds none."""
    files = {} if folder is None else {"layer": folder / ROWS, "batch": folder / FILE}
    return max(
        (name for name, path in files.items() if path.exists()),
        key=lambda name: files[name].stat().st_mtime,
        default="",
    )


def batch_report(plan: ScanPlan, model: nn.Module, scored: bool, why: str, checkpoint: Checkpoint) -> str:
    """Say what a scan batch by batch takes."""
    once = " and once more on the scored ones" if scored else ""
    return (
        f"batch by batch, {why}: sums {human(plan.moments.nbytes)}; weights {_weights(model)}; each layer runs once on "
        f"all tokens{once}{checkpoint.announcement(plan.moments.nbytes)}"
    )


def layer_report(
    model: nn.Module,
    plans: LayerPlans,
    states: Mapping[str, int],
    streams: Sequence[StateStream],
    runs: int,
    budget: Budget,
    why: str,
    processes: int = 1,
) -> str:
    """Say what a scan layer by layer takes, in the first of several processes."""
    depths = max(1, len(plans.kept))  # spans keep the states of several
    places = ", ".join(f"{human(size * depths)} in {PLACES[place]}" for place, size in states.items()) or "none"
    groups = f" for {plans.runs} groups of elements" if plans.runs > 1 else ""
    scored = f", {_times(plans.runs)} on the scored ones" if len(streams) > 1 else ""
    each = f" in {processes} processes, each with a share of the tokens" if processes > 1 else ""
    return (
        f"layer by layer{each}, {why}: sums of one layer {human(plans.sums)}, with solve and maps {human(plans.needs)} "
        f"of {human(budget.nbytes)}; states {places}; weights {_weights(model)}, each layer brought in once; each "
        f"layer runs {_times(runs)} on {'all tokens' if processes == 1 else 'the tokens of a process'}{groups}{scored}"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"


def _weights(model: nn.Module) -> str:
    """Return the bytes of the weights by place."""
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        place = "offloaded" if parameter.device.type == "meta" else str(parameter.device)
        sizes[place] = sizes.get(place, 0) + parameter.nbytes
    return ", ".join(f"{human(size)} {'' if place == 'offloaded' else 'on '}{place}" for place, size in sizes.items())
