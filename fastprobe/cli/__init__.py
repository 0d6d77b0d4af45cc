"""The command line. One file a command; importing it registers the command."""

from fastprobe.cli import linearity, points, merge, permute, commutator, ablate, probe  # noqa: F401, I001, as in the help
from fastprobe.cli import paper, pretrain, plot, report, download, bench  # noqa: F401, as in the help
from fastprobe.cli.app import main as main
