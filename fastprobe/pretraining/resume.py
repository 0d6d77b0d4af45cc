"""The output folder of a pretraining run: its checkpoints, its options and the checks before a run continues."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError
from fastprobe.pretraining.result import Pretraining
from fastprobe.results.kept import FILES
from fastprobe.results.result import load
from fastprobe.runtime.files import write_text
from fastprobe.runtime.journal import differing

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints. It exists until the run is finished."""
OPTIONS = "options.json"
"""File with the options of an unfinished run."""


def is_started(out: Path) -> bool:
    """True if a folder holds checkpoints of an unfinished run."""
    return any((out / CHECKPOINTS).glob("checkpoint-*"))


def can_resume(out: Path) -> bool:
    """True if a folder holds an unfinished or a finished run."""
    return is_started(out) or (out / "scores.json").exists()


def check_output(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise an error if a run would replace checkpoints or a model, or has nothing to resume.

    Raises:
        InputError: the folder holds checkpoints or a model and neither ``resume`` nor ``overwrite`` is true, it holds
            no run and ``resume`` is true, or both are true.
    """
    if resume and overwrite:
        raise InputError("--overwrite: it starts anew, and --resume continues; give one of the two")
    if not resume and not overwrite:
        other = "replace them with --overwrite, or choose another folder"
        if is_started(out):
            raise InputError(f"out: {out} holds checkpoints; continue from them with --resume, {other}")
        if present := [name for name in (*FILES, "config.json") if (out / name).exists()]:
            raise InputError(f"out: {out} holds a model or a result ({', '.join(present)}); {other}")
    if resume and not can_resume(out):
        raise InputError(f"--resume: there are no checkpoints in {out}; leave --resume out to start a new run")


def finished_result(out: Path, options: dict[str, Any]) -> Pretraining:
    """Load the result of a finished run.

    Raises:
        InputError: the folder holds another kind of result, or the run had other options.
    """
    result = load(out)
    if not isinstance(result, Pretraining):
        raise InputError(f"--resume: {out} holds a result of kind {result.kind}, not a training; name another folder")
    _check_same(out, options, result.config)
    return result


def keep_options(out: Path, options: dict[str, Any], resume: bool) -> None:
    """Write the options of a new run to its folder, or compare them with those of the run to resume.

    Raises:
        InputError: the run to resume has other options.
    """
    text = json.dumps(options, sort_keys=True)
    if resume:
        _check_same(out, options, json.loads((out / OPTIONS).read_text(encoding="utf-8")))
    elif int(os.environ.get("RANK", "0")) == 0:
        write_text(out / OPTIONS, text)


def _check_same(out: Path, options: dict[str, Any], before: dict[str, Any]) -> None:
    other = differing(json.loads(json.dumps(options)), {key: before.get(key) for key in options})
    if other:
        raise InputError(f"--resume: {out} is of a run with another {other}; start anew in a new folder")
