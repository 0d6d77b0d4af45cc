"""What both schedules of a scan need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastprobe.data.sample import SequenceSample
from fastprobe.data.shares import Shares
from fastprobe.models.resolve import ModelPoints
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.distributed import Ranks
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.progress import ScanProgress
from fastprobe.scan.reader import Reader
from fastprobe.scan.schedule import Budget


@dataclass
class ScanSetting:
    """Model, batches, plan and surroundings of a scan."""

    model: nn.Module
    points: ModelPoints
    shares: Shares  # the batches of the user
    reader: Reader
    plan: ScanPlan
    sample: SequenceSample
    method: LeastSquares
    backend: str
    device: torch.device
    budget: Budget
    why: str  # reason of the schedule, for the report
    most: int  # tokens, padding included, that all batches have at most
    ranks: Ranks
    clock: Clock
    progress: ScanProgress
