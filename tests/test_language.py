"""Language of docstrings and names. CONTRIBUTING.md has the rules that no test can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OPENINGS = {"What", "That", "Whether", "How", "Why", "Of", "Where", "When", "One", "So", "Those", "As"}
"""First words of docstrings that do not say what a thing is or does."""
ALLOWED_SHARE = 0.01

BANNED_WORDS = {
    "cone": "anisotropy",
    "flat": "unpadded",
    "own": "baseline",
    "picked": "select",
    "skipless": "the cut or the missing skip connections",
    "standin": "replacement",
    "unskipped": "the cut or the missing skip connections",
}
"""Part of an identifier -> the standard term."""
BANNED_NAMES = {
    "explained": "r2_score",
    "merged": "merge",
    "stand_in": "replacement",
    "stand_ins": "replacements",
    "turn": "transpose",
    "turned": "transposed",
    "which": "orders",
}
"""Name of a function, class or parameter -> the standard term."""
ALLOWED: set[tuple[str, str]] = set()
"""Pairs (path, identifier) that read files of older versions."""


def room_of(path: Path) -> str:
    """Return the room of a file: ``fastprobe/orders``, ``kernels``, ``setup.py``."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "fastprobe" else parts[0]


def files() -> Iterator[Path]:
    for folder in ("fastprobe", "kernels", "benchmarks"):
        yield from sorted(
            path for path in (ROOT / folder).rglob("*.py") if (ROOT / "fastprobe" / "kernels") not in path.parents
        )
    yield ROOT / "setup.py"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for index, statement in enumerate(node.body):
            if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
                continue
            text = statement.value.value
            after_assignment = index > 0 and isinstance(node.body[index - 1], ast.Assign | ast.AnnAssign)
            if isinstance(text, str) and (index == 0 or after_assignment):
                yield statement.lineno, text


def opening(text: str) -> str:
    """Return the first word of a docstring."""
    match = re.match(r"\W*(\w*)", text)
    assert match is not None
    return match[1]


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line, name, and True if the name is that of a function, class or parameter."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name, True
            case ast.arg(arg=name):
                yield node.lineno, name, True
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield node.lineno, name, False


def words(name: str) -> list[str]:
    """Split an identifier into lower-case words: ``FlatStack`` -> ``flat``, ``stack``."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


ROOMS = sorted({room_of(path) for path in files()})


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_open_with_a_verb_or_a_noun(room):
    found = [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in files()
        if room_of(path) == room
        for line, text in docstrings(ast.parse(path.read_text()))
    ]
    offenders = [f"{place}: {text.splitlines()[0]}" for place, text in found if opening(text) in OPENINGS]

    assert len(offenders) <= ALLOWED_SHARE * len(found), "\n".join(offenders)


@pytest.mark.parametrize("room", [room for room in ROOMS if room.startswith("fastprobe")])
def test_identifiers_use_standard_terms(room):
    offenders = []
    for path in files():
        if room_of(path) != room:
            continue
        place = path.relative_to(ROOT).as_posix()
        names = [(1, path.stem, True), *identifiers(ast.parse(path.read_text()))]
        for line, name, is_definition in names:
            terms = [BANNED_WORDS[word] for word in words(name) if word in BANNED_WORDS]
            terms += [BANNED_NAMES[name]] if is_definition and name in BANNED_NAMES else []
            if terms and (place, name) not in ALLOWED:
                offenders.append(f"{place}:{line}: {name}; use {', '.join(terms)}")

    assert not offenders, "\n".join(sorted(set(offenders)))


def test_docstrings_of_attributes_and_functions_are_found():
    tree = ast.parse('"""Module."""\nX = 1\n"""What x is."""\nclass C:\n    y: int = 2\n    """How y is."""\n')

    assert [opening(text) for _, text in docstrings(tree)] == ["Module", "What", "How"]


def test_identifiers_are_split_into_words():
    assert words("FlatStack") == ["flat", "stack"]
    assert words("own_se") == ["own", "se"]
    assert words("flatten") == ["flatten"]
