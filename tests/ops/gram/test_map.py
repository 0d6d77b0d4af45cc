"""The page at the top of ``fastprobe/ops/gram``: it names every file of the operation, and only files that exist."""

import re
from pathlib import Path

from fastprobe.ops import gram

ROOT = Path(__file__).parents[3]
NAMED = set(re.findall(r"[\w/]+\.(?:py|cpp|cuh|cu|h)\b", gram.__doc__))
FOLDERS = ["", "fastprobe/ops/gram", "csrc/cpu", "csrc/cuda", "kernels"]


def test_every_file_that_it_names_exists():
    assert {name for name in NAMED if not any((ROOT / folder / name).exists() for folder in FOLDERS)} == set()


def test_it_names_every_file_that_is_only_there_for_gram():
    here = [path for path in (ROOT / "fastprobe/ops/gram").glob("*.py") if path.name != "__init__.py"]
    kernels = [path for folder in ("csrc/cpu", "csrc/cuda", "kernels") for path in (ROOT / folder).glob("*gram*.*")]
    cuda = [path for path in (ROOT / "csrc/cuda").iterdir() if path.is_file()]
    tests = (ROOT / "tests").rglob("test_*gram*.py")

    names = {Path(name).name for name in NAMED}
    assert {str(path) for path in (*here, *kernels, *cuda, *tests) if path.name not in names} == set()
