"""Do one step of a run on a GPU: ``python -m benchmarks.gpu.step NAME FILE``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from benchmarks.gpu.rows import Rows

STEPS: dict[str, tuple[str, str, tuple]] = {
    "ceiling": ("gram", "ceiling", ()),
    "pair 768": ("gram", "pair", (768,)),
    "lengths": ("gram", "lengths", ()),
    "chain model": ("gram", "chain_model", ()),
    "pair 384": ("gram", "pair", (384,)),
    "pair 1024": ("gram", "pair", (1024,)),
    "pair 2048": ("gram", "pair", (2048,)),
    "pair 4096": ("gram", "pair", (4096,)),
    "small pair": ("gram", "small_pair", ()),
    "triton variants": ("gram", "triton_variants", (768,)),
    "cuda variants": ("gram", "cuda_variants", (768,)),
    "other dtypes": ("gram", "other_dtypes", ()),
    "folds": ("gram", "folds", ()),
    "blocks": ("gram", "shared_blocks", ()),
    "exact": ("gram", "exact_products", ()),
    "update": ("scan", "update", ()),
    "scan BERT": ("scan", "scan_bert", ()),
    "scan 8B": ("scan", "scan_large", ()),
    "fit": ("scan", "fit", ()),
    "swaps": ("scan", "swaps", ()),
    "score": ("encoder", "score_of_a_map", ()),
    "forward": ("encoder", "forward", ()),
    "vocabulary": ("encoder", "vocabulary", ()),
    "unit sum": ("encoder", "unit_rows", ()),
    "norm": ("encoder", "norm", ()),
    "gelu": ("encoder", "gelu", ()),
    "attention": ("encoder", "attention", ()),
}
"""Name -> module of this folder, function, and its arguments after the file of rows."""


def function_of(name: str) -> Callable[..., None]:
    module, function, _ = STEPS[name]
    return getattr(import_module(f"benchmarks.gpu.{module}"), function)


if __name__ == "__main__":
    name, file = sys.argv[1:]
    if os.environ.get("FASTPROBE_HANG") == name:  # for the test of the runner
        import time

        time.sleep(600)
    function_of(name)(Rows(file), *STEPS[name][2])
