"""Entry point of ``python -m fastprobe``."""

from fastprobe.cli import main

main()
