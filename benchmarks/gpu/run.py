"""Run of all measurements on a GPU, unattended, in two calls of five minutes: ``python -m benchmarks.gpu.run 1``.

The first call settles the products of blocks, the second everything that is built on them. Each begins with a smoke
test of every backend in a process of its own; a backend that fails is off for the rest. Each step is a process with a
time limit. It writes rows as it measures them, and the table is written anew after every step. What a step leaves
behind when it is stopped therefore counts. Steps are in order of worth, and those for which no time is left are named.

In the folder of results: ``machine.json``, ``smoke.txt``, ``rows/``, ``logs/``, ``table.md``, and reports of ``ncu``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu.smoke_names import NAMES
from benchmarks.gpu.table import table

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "triton", "transformers", "numpy", "pytest")

CALLS: dict[str, dict[str, float]] = {
    "1": {
        "ceiling": 20, "pair 768": 40, "lengths": 40, "chain model": 30, "pair 384": 30, "pair 4096": 40,
        "small pair": 25, "triton variants": 60, "cuda variants": 40, "ncu": 90, "pair 1024": 30, "folds": 30,
        "other dtypes": 45, "pair 2048": 30, "exact": 30, "tests": 120,
    },
    "2": {
        "ceiling": 20, "update": 30, "scan BERT": 80, "scan 8B": 60, "fit": 45, "forward": 60, "score": 40, "swaps": 40,
        "unit sum": 20, "blocks": 30, "vocabulary": 30, "norm": 30, "gelu": 30, "attention": 30, "pair 768": 40,
        "tests": 120,
    },
}  # fmt: skip
"""Call -> steps in order of worth, with the most seconds of each."""

SMOKE_SECONDS = 60
SECTIONS = ("SpeedOfLight", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy")
KERNELS = {"cuda": "regex:gram_kernel", "triton": "regex:products_kernel"}
VARIANTS = {"stages 4": ["STAGES=4"], "stages 5": ["STAGES=5"], "stages 7": [], "flush 4096": ["FLUSH=32"]}


class Run:
    """A run: its folder, its deadline, and the backends that are off."""

    def __init__(self, out: Path, seconds: float):
        self.out, self.end = out, time.monotonic() + seconds
        self.off: list[str] = []
        for folder in ("rows", "logs"):
            (out / folder).mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self.end - time.monotonic()

    def process(self, name: str, command: Sequence[str], seconds: float) -> str:
        """Run a command with a time limit, its output in a log. Return how it ended: "" or the reason."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"FASTPROBE_OFF": ",".join(self.off), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        start = time.monotonic()
        with (self.out / "logs" / f"{name.replace(' ', '-')}.txt").open("w") as log:
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as reason:
                return str(reason)
            try:
                process.wait(timeout=max(1.0, min(seconds, self.left)))
                reason = f"exit code {process.returncode}" if process.returncode else ""
            except subprocess.TimeoutExpired:
                reason = f"stopped after {time.monotonic() - start:.0f} s"
            finally:
                _stop(process)
        print(f"{name}: {reason or 'done'}, {time.monotonic() - start:.1f} s", flush=True)
        return reason

    def say(self, line: str) -> None:
        """Add a line to the notes at the end of the table."""
        print(line, flush=True)
        with (self.out / "notes.txt").open("a") as file:
            file.write(line + "\n")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def together(run: Run, commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, str]:
    """Run commands at the same time; return the reasons of those that failed."""
    with ThreadPoolExecutor(len(commands) or 1) as pool:
        ends = pool.map(lambda item: (item[0], run.process(*item, seconds)), commands.items())
        return {name: reason for name, reason in ends if reason}


def build(run: Run) -> None:
    """Build both extensions, and the variants of the CUDA kernels beside them."""
    build_ext = ["setup.py", "--quiet", "build_ext", "--inplace", "--build-temp", "build/native", "--build-lib"]
    commands = {"build": [sys.executable, *build_ext, "build/native"]}
    if (nvcc := shutil.which("nvcc")) and importlib.util.find_spec("pybind11"):
        commands |= {f"build {name}": variant(nvcc, name, flags) for name, flags in VARIANTS.items()}
    for name, reason in together(run, commands, 150).items():
        run.say(f"{name}: {reason}; see logs")


def variant(nvcc: str, name: str, numbers: Sequence[str]) -> list[str]:
    """Return the command that builds the CUDA kernels with other numbers of stages or of chains in float32."""
    folder = ROOT / "build" / "variants" / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.find_spec("pybind11")
    headers = Path(spec.origin).with_name("include") if spec and spec.origin else Path()
    include = [f"-I{path}" for path in (headers, sysconfig.get_path("include"))]
    target = ["-gencode=arch=compute_90a,code=sm_90a", '-DFASTPROBE_ARCHITECTURES="9.0a"', "-cudart=static"]
    sources = [str(ROOT / "csrc" / "cuda" / file) for file in ("gram.cu", "module.cpp")]
    defined = [f"-DFASTPROBE_{number}" for number in numbers]
    library = str(folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}")
    flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", *target, *include]
    return [nvcc, *flags, *defined, *sources, "-o", library]


def smoke(run: Run) -> None:
    """Try every backend in a process of its own, all at the same time; those that fail are off."""
    commands = {f"smoke {name}": [sys.executable, "-m", "benchmarks.gpu.smoke", name] for name in NAMES}
    for name, reason in together(run, commands, SMOKE_SECONDS).items():
        backend = name.removeprefix("smoke ")
        run.off.append(backend)
        lines = (run.out / "logs" / f"smoke-{backend.replace(' ', '-')}.txt").read_text().strip().splitlines()
        run.say(f"{backend} is off: {reason}; {lines[-1] if lines else 'no output'}")


def sanitize(run: Run) -> None:
    """Run the smallest call of the CUDA kernels under compute-sanitizer."""
    if (tool := shutil.which("compute-sanitizer")) and "cuda" not in run.off:
        command = [tool, "--error-exitcode=9", sys.executable, "-m", "benchmarks.gpu.smoke", "cuda"]
        if reason := run.process("sanitizer", command, 60):
            run.say(f"compute-sanitizer of the CUDA Gram: {reason}; see logs")


def ncu(run: Run, seconds: float) -> None:
    """Profile one launch of each hot kernel."""
    tool = shutil.which("ncu")
    if tool is None:
        return run.say("ncu is not on PATH")
    for backend, kernel in KERNELS.items():
        if backend in run.off:
            continue
        sections = [part for section in SECTIONS for part in ("--section", section)]
        command = [tool, "--clock-control", "none", "-c", "1", "-k", kernel, *sections]
        command += [sys.executable, "-m", "benchmarks.gpu.hot", backend, "768"]
        if reason := run.process(f"ncu {backend}", command, seconds / 2):
            run.say(f"ncu of {backend}: {reason}; see logs")
    return None


def gpu_tests() -> list[str]:
    """Return the files with tests that need a GPU."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in files if "pytest.mark.gpu" in path.read_text()]


def tests(run: Run, seconds: float) -> None:
    """Run the tests that need a GPU."""
    if reason := run.process("tests", [sys.executable, "-m", "pytest", "-q", "--tb=short", *gpu_tests()], seconds):
        run.say(f"GPU tests: {reason}; see logs")


def machine(run: Run) -> None:
    """Write the device, the versions and the commit."""
    found = {name: _version(name) for name in LIBRARIES}
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    commit = _output(["git", "rev-parse", "HEAD"]) or os.environ.get("FASTPROBE_COMMIT", "")
    about = {"device": _output(smi) or "no GPU", "python": sys.version.split()[0], "versions": found, "commit": commit}
    (run.out / "machine.json").write_text(json.dumps(about, indent=1) + "\n")


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def main(run: Run, steps: Mapping[str, float], *, build_first: bool = True) -> None:
    """Do everything that there is time for."""
    machine(run)
    if build_first:
        build(run)
    smoke(run)
    sanitize(run)
    for name, most in steps.items():
        if run.left < 10:
            run.say(f"{name}: no time left")
            continue
        if name == "ncu":
            ncu(run, most)
        elif name == "tests":
            tests(run, most)
        else:
            file = run.out / "rows" / f"{name.replace(' ', '-')}.jsonl"
            if reason := run.process(name, [sys.executable, "-m", "benchmarks.gpu.step", name, str(file)], most):
                run.say(f"{name}: {reason}; see logs")
        (run.out / "table.md").write_text(table(run.out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--seconds", type=float, default=290.0, help="time for everything")
    parser.add_argument("--steps", help="run only these, separated by commas")
    parser.add_argument("--no-build", action="store_true", help="use the extensions that are there")
    arguments = parser.parse_args()
    chosen = CALLS[arguments.call]
    if arguments.steps:
        chosen = {name: CALLS["1"].get(name) or CALLS["2"][name] for name in arguments.steps.split(",")}
    main(Run(arguments.out.absolute(), arguments.seconds), chosen, build_first=not arguments.no_build)
