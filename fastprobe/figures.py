"""Every picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastprobe.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastprobe.linearity import LinearityScan


def linearity(scan: LinearityScan, metric: str, path: str | Path | None) -> Figure:
    return None
