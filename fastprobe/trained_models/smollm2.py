"""Convert SmolLM2-135M-Instruct from its GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastprobe.errors import InputError


def convert(files: Path, folder: Path) -> None:
    """Write the decoder with float32 weights, and its tokenizer.

    Args:
        files: folder with the GGUF file.
        folder: where to write.

    Raises:
        InputError: the package ``gguf``, with which Transformers reads the file, is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError("smollm2: needs the package gguf; pip install 'fastprobe[real]'")
    (path,) = files.rglob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    # A model made from the configuration alone: one that was read from GGUF refuses to be saved.
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
