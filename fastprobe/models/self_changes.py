"""Changes that a model makes in its own modules, as some do for good when a sequence is short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def put_back(model: nn.Module) -> Iterator[Changes]:
    """Restore what a model changes in its own modules inside the block, as some do when a sequence is short.

    Yields:
        an object that knows, during and after the block, whether the model changed something.
    """
    changes = Changes(model)
    try:
        yield changes
    finally:
        changes.undo()


class Changes:
    """Changes of the modules of a model since this object was made.

    Args:
        model: any model. Its constants, buffers and modules are compared, parameters are not.
    """

    def __init__(self, model: nn.Module):
        self._before = [(module, _kept(module)) for module in model.modules()]
        self.found = False

    def undo(self) -> None:
        """Restore what has changed, and note in ``found`` whether something had."""
        for module, before in self._before:
            now = _kept(module)
            for store, kept in before.items():
                if now[store].keys() == kept.keys() and all(now[store][key] is kept[key] for key in kept):
                    continue
                self.found = True
                target = vars(module) if store == "constants" else vars(module)[store]
                for key in now[store].keys() - kept.keys():
                    del target[key]
                target.update(kept)


def _kept(module: nn.Module) -> dict[str, dict[str, Any]]:
    constants = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    return {"constants": constants, "_modules": dict(module._modules), "_buffers": dict(module._buffers)}
