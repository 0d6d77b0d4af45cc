"""Two sequences of a batch, cut to a few tokens, for checks that need no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.models.copies import two_sequences

TOKENS = 16
"""Longest sequence of a short batch."""


def short_batch(batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a longest and a shortest sequence of a batch, cut to a few tokens.

    They are the first tokens, or the last ones of a batch that is padded on the left. If the batch has padding, half of
    the second sequence is padding at least, so that a missing mask shows.

    Args:
        batch: arguments of a model, with ``attention_mask`` ``(batch, length)``.

    Returns:
        the short batch; ``None`` if the batch has one sequence, is as short, or has no token ids.
    """
    if "input_ids" not in batch:
        return None
    mask = attended_mask(batch)
    count, length = mask.shape
    if count < 2 or (count == 2 and length <= TOKENS):
        return None
    left = not mask[:, 0].all()
    few = select(batch, two_sequences(mask))
    columns = slice(-TOKENS, None) if left else slice(TOKENS)
    few = {
        key: value[:, columns] if isinstance(value, Tensor) and value.shape[:2] == (2, length) else value
        for key, value in few.items()
    }
    if not mask.all():
        kept = few["attention_mask"].clone()
        half = kept.shape[1] // 2
        kept[1, slice(half) if left else slice(-half, None)] = 0
        few["attention_mask"] = kept
    return few if attended_mask(few).any(1).all() else None


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
