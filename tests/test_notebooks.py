"""Notebooks of docs/tutorials: they run, and the outputs in them are those of a run."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def outputs(notebook) -> list[list[str]]:
    """Return the kinds of output of each cell with code; progress bars do not count."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = [[output for output in cell["outputs"] if output.get("name") != "stderr"] for cell in cells]
    return [
        [*dict.fromkeys(kind for output in cell for kind in sorted(output.get("data", ["text"])))] for cell in found
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_has_the_outputs_of_a_run(path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from run import executed  # in docs/tutorials

    saved = json.loads(path.read_text(encoding="utf-8"))

    assert outputs(executed(path)) == outputs(saved)
    sys.modules.pop("run")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_pictures_or_numbers_and_links_that_lead_somewhere(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))

    assert any(outputs(notebook))
    assert "execution" not in json.dumps([cell["metadata"] for cell in notebook["cells"]])  # times of a machine
    for cell in notebook["cells"]:
        for link in "".join(cell["source"]).split("](")[1:]:
            assert (FOLDER / link.partition(")")[0].partition("#")[0]).exists(), link


def test_there_is_a_notebook_for_each_of_the_five_questions():
    names = {"first_scan", "which_layers_can_go", "linear_ffn", "what_layers_know", "your_own_activations"}

    assert {path.stem for path in NOTEBOOKS} == names
