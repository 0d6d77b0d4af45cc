"""The commands: parse, call, print. A file holds those that go together, and importing it registers them."""

from fastprobe.cli import linearity, permute, ablate, paper, pretrain, plot, bench  # noqa: F401, I001, in the order of the help
from fastprobe.cli.app import main as main
