"""Build of the documentation site with Sphinx (``make docs``). It needs no network."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

from equations import tex  # noqa: E402, after the path

from fastprobe.version import __version__  # noqa: E402

project, author, release = "fastprobe", "the fastprobe authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown", ".ipynb": "markdown"}
exclude_patterns = ["_build", "figures"]
html_theme = "furo"
html_title = f"fastprobe {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False

NAVIGATION = {
    "Start": ["quick_start"],
    "Tutorials": [
        "tutorials/first_scan",
        "tutorials/which_layers_can_go",
        "tutorials/linear_ffn",
        "tutorials/what_layers_know",
        "tutorials/your_own_activations",
    ],
    "Scores": ["which_score", "metrics"],
    "How to": [
        "own_data",
        "large_models",
        "several-processes",
        "orders",
        "ablations",
        "probes",
        "pictures",
        "paper",
        "pretraining",
        "trained_models",
        "models",
    ],
    "Background": ["numerics", "performance", "backends", "comparison", "changelog"],
    "Reference": ["reference/index"],
    "For developers": ["extending", "contributing", "benchmark_notes"],
}
"""Captions of the side bar and their pages. ``index.md`` is free of directives, so that code hosts show it well."""

ELSEWHERE = {
    "quick_start": ROOT / "README.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "benchmark_notes": ROOT / "benchmarks" / "NOTES.md",
}
"""Pages of the site that are documents outside of ``docs/``. Here they are stubs, so that no text is there twice."""


def complete(app, name: str, source: list[str]) -> None:
    """Put documents from outside in the place of their stubs, and the contents of the site on its first page."""
    document = ELSEWHERE.get(name, Path(app.env.doc2path(name)))
    if document.suffix == ".rst":
        return
    text = source[0]
    if name in ELSEWHERE:  # under the heading of the stub
        text = "\n".join([text.splitlines()[0], *document.read_text(encoding="utf-8").splitlines()[1:]])
    if document.suffix == ".ipynb":
        text = markdown(json.loads(text))
    source[0] = re.sub(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)", lambda link: relinked(link, document), text)
    if name == "index":
        for caption, pages in NAVIGATION.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def markdown(notebook: dict) -> str:
    """Return a notebook as Markdown: its texts, its code, and what the last run printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                address = "data:image/png;base64," + data["image/png"].strip()
                parts.append(f'<img class="output" alt="output of the cell" src="{address}">')
            elif "text/html" in data:
                html = " ".join(line.strip() for line in "".join(data["text/html"]).splitlines())
                parts.append(f'<div class="output">{html}</div>')
            else:
                printed = "".join(data["text/plain"]).rstrip()
                parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def relinked(link: re.Match, document: Path) -> str:
    """Return a link of a document as a link of a page in ``docs/``."""
    target = (document.parent / link[1]).resolve()
    page = next((f"{name}.md" for name, path in ELSEWHERE.items() if path == target), None)
    folder = DOCS if document in ELSEWHERE.values() else document.parent
    return f"]({page or os.path.relpath(target, folder)}{link[2] or ''})"


def mark_equations(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Make formulas of the indented equations in docstrings. For reStructuredText they would be quotations."""
    marked: list[str] = []
    in_section, index = False, 0
    while index < len(lines):
        line = lines[index]
        if re.fullmatch(r"(Args|Returns|Yields|Raises|Examples?|Attributes):", line):
            in_section = True
        elif line and not line.startswith(" "):
            in_section = False
        if line.startswith("    ") and not in_section and (not marked or not marked[-1]):
            block = [*itertools.takewhile(lambda line: not line or line.startswith("    "), lines[index:])]
            formulas = tex("\n".join(block))
            if formulas is None:
                marked += [".. code-block:: text", "", *block]
            else:
                marked += [line for formula in formulas for line in (".. math::", "", f"   {formula}", "")]
            index += len(block)
        else:
            marked.append(line)
            index += 1
    lines[:] = marked


def visit_math(self, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers show without a script or a font from a network."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML."""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    """Register the functions above."""
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", mark_equations, priority=400)  # before napoleon, which has 500
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
