"""The version of fastprobe. Packaging reads it from here without importing torch."""

__version__ = "0.1.0"
