"""The operation ``unit_sum``."""

from fastprobe.ops.unit_sum import cpu as cpu
from fastprobe.ops.unit_sum import triton as triton
from fastprobe.ops.unit_sum.api import UnitSum as UnitSum
from fastprobe.ops.unit_sum.api import unit_sum as unit_sum
