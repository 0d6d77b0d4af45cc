"""Package fastprobe. What is Python needs no build; native code is built where its compiler is, and only there."""

from setuptools import setup

setup()
