"""Rates of the kernels on this machine."""
