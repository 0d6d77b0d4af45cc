"""The operation ``gram_``."""

from fastprobe.ops.gram import cpu as cpu
from fastprobe.ops.gram import cuda as cuda
from fastprobe.ops.gram import triton as triton
from fastprobe.ops.gram.api import Block as Block
from fastprobe.ops.gram.api import Pair as Pair
from fastprobe.ops.gram.api import gram_ as gram_
