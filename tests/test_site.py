"""The documentation site: its contents, its reference, and the pictures that commands make. ``make docs`` builds it."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastprobe as fp
from fastprobe.regression import scores

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def navigation() -> list[str]:
    """Return the pages of the side bar, read from conf.py without Sphinx."""
    tree = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    (value,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "NAVIGATION")
    return [page for pages in ast.literal_eval(value).values() for page in pages]


def test_the_side_bar_has_every_page_once():
    pages = [path for kind in ("*.md", "tutorials/*.ipynb") for path in DOCS.glob(kind)]
    names = {path.relative_to(DOCS).with_suffix("").as_posix() for path in pages} | {"reference/index"}

    assert sorted(navigation()) == sorted(names - {"index"})


def test_the_reference_has_every_public_name():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.rst"))
    public = {name for name in vars(fp) if not name.startswith("_") and not isinstance(getattr(fp, name), ModuleType)}

    assert {name for name in public if not re.search(rf"auto\w+:: fastprobe\.{name}$", text, re.MULTILINE)} == set()


def test_every_page_of_the_reference_is_in_its_contents():
    index = (DOCS / "reference" / "index.rst").read_text(encoding="utf-8")

    assert set(re.findall(r"^   (\w+)$", index, re.MULTILINE)) | {"index"} == {
        path.stem for path in (DOCS / "reference").glob("*.rst")
    }


def test_the_pictures_of_scores_are_made_by_their_command(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, DOCS / "figures" / "which_score.py", tmp_path], env=environment, check=True)

    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (DOCS / "figures").glob("*.svg")}
    assert made == set(re.findall(r"figures/(\w+\.svg)", (DOCS / "which_score.md").read_text(encoding="utf-8")))


@pytest.fixture
def tex(monkeypatch):
    """The function ``tex`` of docs/equations.py."""
    monkeypatch.syspath_prepend(DOCS)
    import equations

    return equations.tex


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("r2_cv = 1 - Σ_f RSS_f / TSS", [r"\mathrm{r2\_cv} = 1 - \sum _{f} \mathrm{RSS}_{f} / \mathrm{TSS}"]),
        ("S_xy = (x - x̄)(y - ŷ)^T", [r"S_{xy} = (x - \bar{x})(y - \hat{y})^{\top}"]),
        ("a = b^2   for y_i != 0\nc = d^1/2", [r"a = b^{2} \qquad \text{for y_i != 0}", "c = d^{1/2}"]),
        ("K = {k: k > 0},  n = Σ_{k in K} k", [r"K = \{k: k > 0\} \qquad n = \sum _{k \in  K} k"]),
        ("gram[f] += z[n] z[n]^T", None),
        ("written    permute(source)", None),
    ],
)
def test_an_equation_of_a_docstring_becomes_tex_and_code_does_not(tex, text, lines):
    assert tex(text) == lines


def test_every_equation_of_the_scores_becomes_tex(tex):
    functions = [getattr(scores, name) for name in scores.COLUMNS if callable(getattr(scores, name, None))]
    texts = [scores.__doc__, *(inspect.getdoc(function).partition("Args:")[0] for function in functions)]
    blocks = [block for text in texts for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)]

    assert len(blocks) >= len(functions)
    for line in (line for block in blocks for line in tex(block)):
        assert line.count("{") == line.count("}"), line
