"""Who may import whom (CONTRIBUTING.md draws it), and that every module has a place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastprobe"

LEAVES = {
    "errors",
    "points",
    "files",
    "memory",
    "interrupt",
    "journal",
    "progress",
    "batches",
    "clock",
    "version",
    "moment_plan",
    "orders",
    "plan",
    "tensor_core",
}
"""Rooms that know nothing of the others but, at most, other leaves."""

FLOORS = [
    LEAVES,
    {"ops"},
    {"moments"},
    {"spectrum"},
    {"linear"},
    {"scores", "refinement"},
    {"fit", "models", "sample", "text", "results", "ridge"},
    {"scan", "figures", "stand_ins", "element_outputs", "predictions", "labelled_text"},
    {
        "passes",
        "effects",
        "permute",
        "runs",
        "skips",
        "checkpoint",
        "loading",
        "testing",
        "tables",
        "bench",
        "configurations",
    },
    {"depths", "token_labels", "pretraining"},
    {"linearity", "commutativity", "probe_passes"},
    {"commutator", "ablation", "probe"},
    {"merging", "paper"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""From the ground up. A room imports what is below it; within a floor, only what ``BESIDE`` says."""

BESIDE = {
    ("ops", "ops"),
    ("models", "models"),
    ("cli", "cli"),
    ("moment_plan", "errors"),
    ("points", "errors"),
    ("files", "errors"),
}
BESIDE |= {("orders", "orders"), ("orders", "errors"), ("plan", "errors"), ("journal", "errors"), ("journal", "files")}
BESIDE |= {("pretraining", "pretraining"), ("paper", "paper")}
INSIDE = {("ops", "kernels"), ("testing", "models")}


def modules():
    return [path for path in PACKAGE.rglob("*.py") if "kernels" not in path.parts]


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """Rooms of fastprobe that a module imports, wherever in it; those for type checkers only are left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastprobe":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {"__init__" for alias in node.names if alias.name == "fastprobe"}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    room = room_of(path)
    assert room in floor, f"{room} has no place: give it one in CONTRIBUTING.md and here"
    for other in imports(path):
        if (room, other) in BESIDE | INSIDE:
            continue
        assert floor[other] < floor[room], f"{path.name} imports {other}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_longer_than_its_noun(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_drawers():
    names = {path.stem for path in modules()} | {path.name for path in PACKAGE.iterdir()}
    assert not names & {"utils", "common", "core", "helpers", "config", "scripts"}


def test_kernels_never_becomes_a_package_of_its_own():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (PACKAGE / "kernels").is_symlink()


def test_importing_fastprobe_costs_no_optional_or_slow_library():
    slow = ["transformers", "pandas", "matplotlib", "datasets", "sklearn", "triton", "typer", "jinja2"]
    code = f"import sys, fastprobe; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
