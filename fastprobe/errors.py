"""Every exception that fastprobe raises on purpose."""


class FastprobeError(Exception):
    """What all of them have in common: one line that names the thing and what would do."""


class InputError(FastprobeError, ValueError):
    """An argument, file or text that cannot be used as it is."""


class ShapeError(FastprobeError, ValueError):
    """A tensor whose shape, dtype or device does not fit its neighbours."""


class BackendError(FastprobeError, RuntimeError):
    """A backend asked for by name that is missing or refuses these arguments."""


class UnsupportedModelError(FastprobeError, NotImplementedError):
    """A model whose layers or points cannot be found, or fail their identities."""


class NumericalError(FastprobeError, ArithmeticError):
    """A number that is not finite where a result would be made of it."""
