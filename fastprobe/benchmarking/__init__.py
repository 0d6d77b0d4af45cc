"""Measure the kernels on this machine: ``fastprobe bench``."""
