"""The documentation site: its contents, its reference, and the pictures that commands make. ``make docs`` builds it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fastprobe as fp

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
