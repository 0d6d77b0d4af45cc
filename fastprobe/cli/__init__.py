"""The commands: parse, call, print. A file holds those that go together, and importing it registers them."""

from fastprobe.cli import scans, orders, parts, mirror, training, results, bench  # noqa: F401, I001, in the order of the help
from fastprobe.cli.app import main as main
