"""Load models and tokenizers by the names that users type."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
import transformers

from fastprobe.data.demo import demo_model_path
from fastprobe.errors import BackendError, InputError
from fastprobe.models.placement import placement
from fastprobe.trained_models.catalogue import TRAINED_MODELS, model_folder

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_model(
    name: str | None,
    dtype: str = "auto",
    device: str = "auto",
    *,
    head: bool = False,
    device_map: str | None = None,
    offload_folder: str | Path | None = None,
    room: int = 0,
) -> tuple[Any, Any]:
    """Return a model in evaluation mode and its tokenizer.

    Args:
        name: a folder, a name of ``fastprobe download`` or a hub name; ``None`` for the demo encoder.
        dtype: one of ``DTYPES``; ``"auto"`` is the dtype of the stored weights.
        device: a device of torch; ``"auto"`` is a GPU if there is one, else the CPU.
        head: load the language-model head, too, if the weights have one.
        device_map: ``"auto"`` lets Accelerate place the weights on GPUs, in host memory and on disk, in this order, as
            they fit; ``"disk"`` leaves the weights of the layers on disk; ``None`` puts all on ``device``.
        offload_folder: folder for weights on disk that their files do not hold in a readable form.
        room: bytes of each device to leave free of weights.

    Raises:
        InputError: the model cannot be loaded, or the dtype or device is unknown.
        BackendError: torch cannot use the device.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    path = str(demo_model_path()) if name is None else _folder_of(name)
    where = pick_device(device)
    tokenizer = load_tokenizer(path)
    try:
        kind = _class_with_head(path) if head else transformers.AutoModel
        placed = placement(kind, path, where, device_map, room) if device_map else {}
        if device_map and offload_folder is not None:
            placed["offload_folder"] = str(offload_folder)
        model = kind.from_pretrained(path, dtype="auto" if dtype == "auto" else getattr(torch, dtype), **placed)
    except _LOADING_ERRORS as error:
        raise InputError(f"model: {path!r} could not be loaded: {_first_line(error)}") from None
    return (model if device_map else model.to(where)).eval(), tokenizer


def _folder_of(name: str) -> str:
    """Return the folder of a model of ``fastprobe download``, and any other name as it is.

    A folder in the current directory comes before a downloaded model of the same name.

    Raises:
        InputError: the model has not been downloaded.
    """
    if name not in TRAINED_MODELS or Path(name).exists():
        return name
    folder = model_folder(name)
    if not folder.is_dir():
        raise InputError(f"model: {name} is not on this machine yet; run fastprobe download {name}")
    return str(folder)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model.

    Args:
        name: a hub name or a folder.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise InputError(f"model: {name!r} is a folder without config.json, so it holds no model")
    try:
        _register_variants(name)  # Transformers reads the model's configuration for the tokenizer, too
        return transformers.AutoTokenizer.from_pretrained(name)
    except _LOADING_ERRORS as error:
        raise InputError(f"model: {name!r} could not be loaded: {_first_line(error)}") from None


_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError)


def _first_line(error: Exception) -> str:
    """Return the first sentence of an error message of Transformers, in one line."""
    said = " ".join(str(error).split())
    return said.partition(". ")[0] if said else type(error).__name__


def _register_variants(path: str) -> None:
    """Register the model classes of ``fastprobe pretrain`` if this is one of them. The import takes a second or two."""
    if transformers.PretrainedConfig.get_config_dict(path)[0].get("model_type") == "bert-variant":
        importlib.import_module("fastprobe.models.bert_variants")


def _class_with_head(path: str) -> Any:
    """Return the Transformers class that loads a model with its head, by the class named in its configuration."""
    saved = (transformers.AutoConfig.from_pretrained(path).architectures or [""])[0]
    if re.search("CausalLM|LMHead", saved):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForMaskedLM if re.search("MaskedLM|PreTraining", saved) else transformers.AutoModel


def pick_device(name: str) -> torch.device:
    """Return the device of a name; for ``"auto"`` a GPU if there is one, else the CPU.

    Raises:
        InputError: the name is not a device of torch.
        BackendError: torch cannot use the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is not a device of torch; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device: this torch finds no GPU; use --device cpu, or install a CUDA build of torch")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        raise BackendError(f"device: this torch cannot compute on {name!r}; use auto, cpu or cuda") from None
    return device
