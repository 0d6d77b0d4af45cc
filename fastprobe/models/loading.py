"""Models and tokenizers by the names a user types."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
import transformers

from fastprobe.data.demo import demo_model_path
from fastprobe.errors import BackendError, InputError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_model(name: str | None, dtype: str = "auto", device: str = "auto", *, head: bool = False) -> tuple[Any, Any]:
    """A model in evaluation mode, and its tokenizer.

    Args:
        name: a hub name or a folder; ``None`` for the demo encoder.
        dtype: ``"auto"`` for the one the weights are stored in.
        device: ``"auto"`` for a GPU where there is one.
        head: with the language-model head that its weights have, if they have one.

    Raises:
        InputError: there is no such model, dtype or device.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    path = str(demo_model_path()) if name is None else name
    where = pick_device(device)
    tokenizer = load_tokenizer(path)
    try:
        kind = _class_with_head(path) if head else transformers.AutoModel
        model = kind.from_pretrained(path, dtype="auto" if dtype == "auto" else getattr(torch, dtype))
    except _LOADING_ERRORS as error:
        raise InputError(f"model: {path!r} could not be loaded: {_first_line(error)}") from None
    return model.to(where).eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a hub name or a folder.

    Raises:
        InputError: there is none.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise InputError(f"model: {name!r} has no config.json in it, so it is not the folder of a model")
    try:
        _know_variants(name)  # Transformers reads the model's configuration for the tokenizer too
        return transformers.AutoTokenizer.from_pretrained(name)
    except _LOADING_ERRORS as error:
        raise InputError(f"model: {name!r} could not be loaded: {_first_line(error)}") from None


_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError)


def _first_line(error: Exception) -> str:
    """What Transformers says, in one line."""
    said = " ".join(str(error).split())
    return said.partition(". ")[0] if said else type(error).__name__


def _know_variants(path: str) -> None:
    """Register the models that ``fastprobe pretrain`` writes, if this is one: that takes a second or two."""
    if transformers.PreTrainedConfig.get_config_dict(path)[0].get("model_type") == "bert-variant":
        importlib.import_module("fastprobe.models.bert_variants")


def _class_with_head(path: str) -> Any:
    """The class that loads a model with its language-model head, by what its configuration says was saved."""
    saved = (transformers.AutoConfig.from_pretrained(path).architectures or [""])[0]
    if re.search("CausalLM|LMHead", saved):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForMaskedLM if re.search("MaskedLM|PreTraining", saved) else transformers.AutoModel


def pick_device(name: str) -> torch.device:
    """The device of that name; for ``"auto"`` a GPU where there is one.

    Raises:
        InputError: torch knows no such device.
        BackendError: torch has it not.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is not a device of torch; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device: this torch sees no GPU; use --device cpu, or install a CUDA build of torch")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        raise BackendError(f"device: this torch cannot compute on {name!r}; use auto, cpu or cuda") from None
    return device
