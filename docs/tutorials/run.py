"""Run the notebooks of this folder, and write their outputs into them.

``python docs/tutorials/run.py [NAME.ipynb ...]``
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent


def executed(path: Path) -> Any:
    """Return a notebook with the outputs of a new run.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    config = Config(KernelManager={"transport": "ipc"})  # no port that other users could read
    options = {"timeout": 300, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, config=config, **options).execute()
    return notebook


def main(names: list[str]) -> None:
    """Run notebooks by their file names, or all of them."""
    for path in [FOLDER / Path(name).name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = executed(path)
        for cell in notebook.cells:
            if cell.cell_type == "code":  # progress bars are no result
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},  # without the version of the machine
        }
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
