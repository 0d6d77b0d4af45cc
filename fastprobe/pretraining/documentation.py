"""English text that is installed with fastprobe: Python's language reference and docstrings."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fastprobe.data.demo import demo_text

SHORTEST = 100
"""Docstrings with fewer characters are left out."""


def documentation() -> Iterator[str]:
    """Yield about 6 MB of English: Python's language reference, then docstrings without their examples.

    The docstrings are those of the standard library, NumPy, pandas and Matplotlib. Their examples are left out.
    """
    yield from demo_text().values()
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in ("numpy", "pandas", "matplotlib"):
        spec = importlib.util.find_spec(name)
        roots += [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not {"site-packages", "test", "tests", "idlelib"} & {*path.relative_to(root).parts}:
                yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a file as one text, if there are any."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template, or invalid code for tests of the parser
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    prose = [
        paragraph
        for text in found
        if len(text) >= SHORTEST
        for paragraph in text.split("\n\n")
        if ">>>" not in paragraph
    ]
    if prose:
        yield "\n\n".join(prose)
