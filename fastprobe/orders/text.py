"""Orders as text: parse one, read and write files of them, export one as a mergekit configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.order import Order, Parallel, Step, Sublayer, check


def parse(text: str, name: str = "") -> Order:
    """Parse an order: layers, half-open ranges, ``(3+4)`` for layers in parallel, ``ffn.3``, ``attention.3``.

    Args:
        text: steps separated by commas.
        name: name of the order.

    Example:
        >>> list(parse("0-3,2,(3+4)"))
        [0, 1, 2, 2, Parallel(layers=(3, 4))]

    Raises:
        InputError: a step cannot be read. The message names it.
    """
    steps: list[Step] = []
    for part in (part.strip() for part in text.split(",")):
        if re.fullmatch(r"\d+", part):
            steps.append(int(part))
        elif match := re.fullmatch(r"(\d+)-(\d+)", part):
            start, stop = int(match[1]), int(match[2])
            if stop <= start:
                raise InputError(f"order {text!r}: {part} is empty; ranges are half-open and go up")
            steps += range(start, stop)
        elif match := re.fullmatch(r"(attention|ffn)\.(\d+)", part):
            steps.append(Sublayer(match[1], int(match[2])))
        elif re.fullmatch(r"\(\d+(\+\d+)*\)", part):
            steps.append(Parallel(tuple(map(int, part[1:-1].split("+")))))
        else:
            raise InputError(f"order {text!r}: {part!r} is no layer, range, (i+j), attention.i or ffn.i")
    return Order(tuple(steps), name)


@plain_numbers
def load(path: str | Path, *, layers: int | None = None, first: int = 0) -> list[Order]:
    """Read a text file with one order a line. Empty lines and comments (``#``) are ignored.

    The files of Zhao et al. (2021), ``fix{k}_layers.txt``, count layers from 0 for BERT and from 1 for their other
    models.

    Args:
        path: the file.
        layers: number of layers of the model that will run the orders; ``None`` skips this check.
        first: the number of the first layer in the file.

    Raises:
        InputError: the file cannot be read or holds no order, or the model cannot run an order. The message gives the
            line number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"orders: {path} cannot be read as text: {error}") from None
    orders = []
    for number, line in enumerate(lines, 1):
        text = line.strip().strip("[]")
        if text and not text.startswith("#"):
            try:
                order = _count_from_zero(parse(text), first)
                if layers is not None:
                    check(order, layers)
                orders.append(order)
            except InputError as error:
                raise InputError(f"orders: {path}, line {number}: {error}") from None
    if not orders:
        raise InputError(f"orders: {path} holds no order; write one a line, like 0,2,1,3")
    return orders


def _count_from_zero(order: Order, first: int) -> Order:
    """Renumber an order whose first layer has the number ``first``."""

    def renumber(step: Step) -> Step:
        if isinstance(step, Parallel):
            return Parallel(tuple(layer - first for layer in step.layers))
        if isinstance(step, Sublayer):
            return Sublayer(step.part, step.layer - first)
        assert isinstance(step, int)  # parse() returns no other steps
        return step - first

    return Order(tuple(map(renumber, order)), order.name) if first else order


def save(orders: Iterable[Order], path: str | Path) -> None:
    """Write orders to a text file, in the format of :func:`load`."""
    Path(path).write_text("".join(f"{order}\n" for order in orders), encoding="utf-8")


def to_mergekit(order: Order, model_id: str, dtype: str = "bfloat16") -> str:
    """Return a mergekit "passthrough" configuration that writes a model with its layers in this order.

    Args:
        order: whole layers only.
        model_id: name or folder of the model, for mergekit.
        dtype: dtype of the written model, for mergekit.

    Returns:
        the configuration as YAML.

    Raises:
        InputError: a step of the order is not a whole layer.
    """
    if not all(isinstance(step, int) for step in order):
        raise InputError(f"to_mergekit: every step must be a whole layer, got {order}")
    slices: list[list[int]] = []
    for layer in order.layers:
        if slices and slices[-1][1] == layer:
            slices[-1][1] = layer + 1
        else:
            slices.append([layer, layer + 1])
    sources = "".join(
        f"  - sources:\n      - model: {model_id}\n        layer_range: [{start}, {stop}]\n" for start, stop in slices
    )
    return f"slices:\n{sources}merge_method: passthrough\ndtype: {dtype}\n"
