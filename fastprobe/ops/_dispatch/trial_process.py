"""Trials of GPU kernels, each in a process of its own, before a kernel is chosen on a device.

A kernel that reads a wrong address makes every later call of CUDA in its process fail, and one that waits for itself
never ends. In another process neither harms the caller. A trial that gave a number is kept in a file, so that later
processes do not repeat it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastprobe.errors import BackendError
from fastprobe.runtime.files import replacing

Trial = Callable[[torch.device], float]
"""Runs a kernel on a device and returns its error, or whether it agrees with torch."""

SECONDS = 180
"""A trial that takes longer has failed. Compiling a Triton kernel takes up to 20 s."""

_CODE = """
import importlib, sys, torch
module, _, name = sys.argv[1].partition(":")
print("result", float(getattr(importlib.import_module(module), name)(torch.device(sys.argv[2]))), flush=True)
"""


def trials_folder() -> Path:
    """Return the folder of the results, one file a trial: ``fastprobe/trials`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastprobe" / "trials"


def result_of(trial: Trial, device: torch.device) -> float:
    """Return the result of a trial on a device, from its file or from a new process.

    Args:
        trial: a function of a module, so that another process finds it.
        device: where the kernel runs.

    Raises:
        BackendError: the process ended without a result; the message says how.
    """
    return _result_of(_named(trial), str(device), _name(device))


@functools.cache
def _result_of(trial: str, device: str, name: str) -> float:
    key = _key(trial, name)
    try:
        return float(json.loads(_file(key).read_text())["result"])
    except (OSError, ValueError, TypeError, KeyError):
        result = run(trial, device)
        _keep(key, result)
        return result


def keep(trial: Trial, device: torch.device, result: float) -> None:
    """Keep the result of a trial that this process made, for later processes."""
    _keep(_key(_named(trial), _name(device)), result)


def _keep(key: str, result: float) -> None:
    with replacing(_file(key)) as temporary:
        temporary.write_text(json.dumps({"trial": key, "result": result}) + "\n")


def _key(trial: str, name: str) -> str:
    return f"{trial} on {name}, {_versions()}, kernels {_kernels()}"


def _file(key: str) -> Path:
    return trials_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _named(trial: Trial) -> str:
    return f"{trial.__module__}:{trial.__qualname__}"


def run(trial: str, device: str, seconds: float = SECONDS) -> float:
    """Run ``module:function`` on a device in a new process, and return its result.

    Raises:
        BackendError: the process ended without a result or took longer than ``seconds``.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _CODE, trial, device]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BackendError(f"its trial on {device} did not end within {seconds:.0f} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    if done.returncode or not lines:
        raise BackendError(f"its trial on {device} failed: {_reason(done)}")
    return float(lines[-1].removeprefix("result "))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"signal {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _versions() -> str:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return f"torch {torch.__version__}, triton {triton}"


@functools.cache
def _kernels() -> str:
    """Return a digest of the sources of the Triton kernels and of the compiled CUDA kernels."""
    package = Path(__file__).parents[2]
    files = sorted([*(package / "kernels").glob("*.py"), *package.glob("_cuda.*")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
