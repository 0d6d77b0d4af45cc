"""Table of processor families: the fastest library and instruction set of each, as measured or as assumed.

A choice by table gives every process on a machine the same backend and the same bits, whatever else runs there. The
measurements are in ``benchmarks/NOTES.md``. A comment at a row names each of its fields, and each processor in it, that
was assumed and not measured. A processor of no row gets ``UNKNOWN``.

The environment variable ``FASTPROBE_PROCESSOR`` names the row to use instead. It serves to repeat another machine's
choices, and to try a row on a processor that has none. It does not add instructions that the processor lacks.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from fastprobe.errors import BackendError


@dataclass(frozen=True)
class Family:
    """A family of processors and its fastest implementations."""

    name: str
    vendor: str  # vendor_id of /proc/cpuinfo
    flag: str  # the family's processors have this flag of /proc/cpuinfo
    onednn: bool  # oneDNN, not MKL, for products of float32
    bfloat16_pairs: bool  # VDPBF16PS, not float32 multiply-adds, for rows of bfloat16
    sublayers: bool  # the C++ products, not a library's, for the halves of an encoder layer


FAMILIES = (
    # Measured on a Zen 4. onednn: MKL runs at 0.5 to 0.8 of its rate. bfloat16_pairs: 452-458 GF/s, float32 225-232.
    # Assumed. sublayers: their 8 x 32 tile reached 0.99 of the peak in the Gram, and oneDNN 0.83 to 0.95. Zen 5 has the
    # same vendor and flag, so it gets this row.
    Family("zen4", "AuthenticAMD", "avx512_bf16", onednn=True, bfloat16_pairs=True, sublayers=True),
    # Measured on an Emerald Rapids. onednn: MKL runs at 0.97 to 1.05 of its rate (512 to 4,096 rows, 384 to 1,536
    # columns). bfloat16_pairs: 174 GF/s, float32 340-360. sublayers: 0.71 to 0.98 of the time with a library.
    # Assumed. Sapphire Rapids and others have the same vendor and flag, so they get this row.
    Family("emerald-rapids", "GenuineIntel", "avx512_bf16", onednn=False, bfloat16_pairs=False, sublayers=True),
)

UNKNOWN = Family("unknown", "", "", onednn=False, bfloat16_pairs=False, sublayers=False)
"""The choices of torch itself, and instructions that every processor runs at full rate."""


def family() -> Family:
    """Return the family of this machine's processor, or the one that ``FASTPROBE_PROCESSOR`` names.

    Raises:
        BackendError: ``FASTPROBE_PROCESSOR`` names no row of the table.
    """
    return _family(os.environ.get("FASTPROBE_PROCESSOR", ""))


@functools.cache
def _family(name: str) -> Family:
    if not name:
        return family_of(_cpuinfo())
    known = {row.name: row for row in (*FAMILIES, UNKNOWN)}
    if name not in known:
        raise BackendError(
            f"FASTPROBE_PROCESSOR: must be one of {', '.join(known)}, got {name!r}; unset it to use this processor's"
        )
    return known[name]


def family_of(cpuinfo: str) -> Family:
    """Return the family that the text of a ``/proc/cpuinfo`` describes, or ``UNKNOWN``."""
    first = cpuinfo.split("\n\n")[0]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    vendor, flags = fields.get("vendor_id", ""), fields.get("flags", "").split()
    return next((row for row in FAMILIES if row.vendor == vendor and row.flag in flags), UNKNOWN)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
