"""Which room may import which (``CONTRIBUTING.md`` draws it), and rules that hold for every file."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastprobe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastprobe"

FLOORS = [
    {"errors", "version"},
    {"orders", "runtime"},
    {"kernels", "_cpu", "_cuda"},
    {"ops"},
    {"data"},
    {"trained_models"},
    {"regression"},
    {"results"},
    {"models"},
    {"scan"},
    {"reordering"},
    {"ablations", "probes"},
    {"pretraining"},
    {"replication"},
    {"benchmarking", "testing"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""Rooms from the ground up. A room imports rooms below it, and its own files without a circle."""

APART = {"ops": {"_dispatch", "products", "rows", "tune"}}
"""Rooms whose folders do not import each other, and what all of them may import."""


SLOW = ["transformers", "pandas", "matplotlib", "datasets", "sklearn", "triton", "typer", "jinja2"]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "kernels" not in path.parts)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(path: Path) -> set[str]:
    """Modules of fastprobe that a file imports anywhere in it, also for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastprobe":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if is_module(inner) else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fastprobe"}
    return found


def room_of(name: str) -> str:
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path):
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    room = room_of(name_of(path))
    assert room in floor, f"{room} has no place: give it one in CONTRIBUTING.md and here"
    for other in map(room_of, imports(path)):
        assert other == room or floor[other] < floor[room], f"{name_of(path)} imports {other}, which is not below it"


def test_no_circles():
    graph = {name_of(path): imports(path) for path in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph.get(name, set()) - {name}):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", [path for path in modules() if room_of(name_of(path)) in APART], ids=name_of)
def test_folders_of_a_room_do_not_import_each_other(path):
    _, room, *inside = name_of(path).split(".")
    for other in imports(path):
        _, other_room, *other_inside = [*other.split("."), "__init__"]
        if inside and other_room == room and other_inside[0] not in {inside[0], "__init__"}:
            assert other_inside[0] in APART[room], f"{name_of(path)} imports {other}, a folder beside it"


def brings_a_slow_library(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path.exists() and any(re.search(rf"^(from|import) {library}", path.read_text(), re.M) for library in SLOW)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_stand_at_the_top(path):
    """Except a kernel in the launcher that first runs it, and files that bring a library that is slow to import."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    top |= {id(inner) for node in tree.body if isinstance(node, ast.If | ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastprobe") and id(node) not in top:
            launcher = room_of(name_of(path)) == "ops" and node.module.startswith("fastprobe.kernels")
            assert launcher or brings_a_slow_library(node.module), f"{name_of(path)}:{node.lineno}: {node.module}"


def test_no_function_hides_a_module_of_its_name():
    for info in pkgutil.walk_packages(fastprobe.__path__, "fastprobe."):
        parent, _, name = info.name.rpartition(".")
        if "kernels" in info.name.split(".") or name.startswith("_") or parent not in sys.modules:
            continue
        found = getattr(importlib.import_module(parent), name, None)
        assert found is None or type(found).__name__ == "module", f"{parent}.{name} is not the module of that name"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_file_is_longer_than_its_noun(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_drawers():
    names = {path.stem for path in modules()} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not names & {"utils", "common", "core", "helpers", "config", "scripts"}


def test_kernels_never_becomes_a_package_of_its_own():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    tracked = subprocess.run(["git", "ls-files", "-s"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not [line for line in tracked.splitlines() if line.startswith("120000")]  # links, which some systems lack


def test_importing_fastprobe_costs_no_optional_or_slow_library():
    code = f"import sys, fastprobe; print([m for m in {SLOW} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
