"""Triton kernels. In an installation they lie here, in a checkout in the folder ``kernels`` beside ``fastprobe``.

That folder is no package: ``kernels`` is the import name of another project. Links are no way to bring the two
together, because some systems have none.
"""

from pathlib import Path

if not Path(__file__).with_name("gram.py").exists():
    __path__ = [str(Path(__file__).parents[2] / "kernels")]
