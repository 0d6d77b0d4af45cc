"""The operation ``score``."""

from fastprobe.ops.score import cpu as cpu
from fastprobe.ops.score import triton as triton
from fastprobe.ops.score.api import ResidualSums as ResidualSums
from fastprobe.ops.score.api import RowScores as RowScores
from fastprobe.ops.score.api import score as score
