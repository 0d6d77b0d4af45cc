"""Exceptions that fastprobe raises.

Messages are one line: *argument: must be ..., got ...; do ...*.
"""


class FastprobeError(Exception):
    """Base class of all exceptions of fastprobe."""


class InputError(FastprobeError, ValueError):
    """An invalid argument, file or text."""


class ShapeError(FastprobeError, ValueError):
    """A tensor whose shape, dtype or device does not fit the other arguments."""


class BackendError(FastprobeError, RuntimeError):
    """A backend that was requested by name, but is missing or does not support the arguments."""


class UnsupportedModelError(FastprobeError, NotImplementedError):
    """A model whose layers or points cannot be found, or whose points fail their identity checks."""


class NumericalError(FastprobeError, ArithmeticError):
    """A NaN or infinite number in the input of a result."""


class ProcessError(FastprobeError, RuntimeError):
    """A process of a distributed run that ended without a message, for example because it was killed."""
