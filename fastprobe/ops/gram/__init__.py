"""The operation ``gram_``."""

from fastprobe.ops.gram.api import gram_ as gram_
