"""Arguments of ``from_pretrained`` that place the weights of a model through Accelerate."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers
from torch import nn

from fastprobe.errors import InputError
from fastprobe.runtime.memory import free_bytes

DEVICE_MAPS = ("auto", "disk")


def placement(kind: Any, path: str, device: torch.device, device_map: str, room: int = 0) -> dict[str, Any]:
    """Return the arguments for a device map.

    Args:
        kind: the Transformers class that loads the model.
        path: hub name or folder of the model.
        device: device to compute on.
        device_map: ``"auto"`` to place the weights as they fit, or ``"disk"`` to leave those of the layers on disk.
        room: bytes of each device to leave free of weights.

    Raises:
        InputError: the device map is not known, or Accelerate is not installed.
    """
    if device_map not in DEVICE_MAPS:
        raise InputError(f"device_map: must be one of {', '.join(DEVICE_MAPS)}, got {device_map!r}")
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("device_map: needs accelerate, which is not installed; pip install accelerate")
    where: Any = (device.index or 0) if device.type == "cuda" else device.type
    if device_map == "disk":
        return {"device_map": _layers_on_disk(kind, path, where)}
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    free: dict[Any, int] = {index: free_bytes(torch.device("cuda", index)) or 0 for index in gpus}
    free["cpu"] = free_bytes(torch.device("cpu")) or 0
    return {"device_map": "auto", "max_memory": {place: max(0, size - room) for place, size in free.items()}}


def _layers_on_disk(kind: Any, path: str, where: Any) -> dict[str, Any]:
    """Return a device map with the layers of a model on disk and everything else on a device.

    The layers are the list of modules with the most weights. The model is on ``meta`` here and cannot run.
    """
    with torch.device("meta"):
        model = kind.from_config(transformers.AutoConfig.from_pretrained(path))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"device_map: {type(model).__name__} has no list of layers to leave on disk; use auto")

    def weights(layers: nn.Module) -> int:
        return sum(parameter.numel() for parameter in layers.parameters())

    layers = {*max(lists, key=weights)}
    places: dict[str, Any] = {}

    def place(module: nn.Module, prefix: str) -> None:
        places.update({f"{prefix}{name}": where for name, _ in module.named_parameters(recurse=False)})
        for name, part in module.named_children():
            if layers.isdisjoint(part.modules()):
                places[f"{prefix}{name}"] = where
            elif part in layers:
                places[f"{prefix}{name}"] = "disk"
            else:
                place(part, f"{prefix}{name}.")

    place(model, "")
    return places
