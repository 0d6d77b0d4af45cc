"""The operation ``score``."""

from fastprobe.ops.score.api import ResidualSums as ResidualSums
from fastprobe.ops.score.api import score as score
