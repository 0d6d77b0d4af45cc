"""What the README says and can be held to."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORTS = re.findall(r"`python (benchmarks/report\.py .+?)`, ", README)


@pytest.mark.parametrize("command", REPORTS)
def test_a_table_is_what_its_command_prints(command):
    printed = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert printed.stdout in README


def test_there_is_a_table_and_every_link_leads_somewhere():
    assert REPORTS
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
