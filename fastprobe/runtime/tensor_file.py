"""Write tensors to a safetensors file that is replaced whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastprobe.runtime.files import replacing


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. An existing file is replaced whole or not at all.

    Args:
        path: file to write.
        tensors: name in the file -> tensor.
        metadata: texts for the header of the file.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    with replacing(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
        except SafetensorError as error:  # holds the error of the system as text only
            if found := re.search(r"os error (\d+)", str(error)):
                code = int(found[1])
                raise OSError(code, os.strerror(code)) from None
            raise
