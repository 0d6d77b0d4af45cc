"""An order: which layers a forward pass runs, first to last. Layers are 0-based and ranges half-open."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastprobe.errors import InputError


@dataclass(frozen=True)
class Sublayer:
    """The attention or the FFN of a layer, each with its skip connection and norm."""

    part: str  # "attention" or "ffn"
    layer: int

    def __str__(self) -> str:
        return f"{self.part}.{self.layer}"


@dataclass(frozen=True)
class Parallel:
    """Layers that all get one state; the mean of what they make of it goes on."""

    layers: tuple[int, ...]

    def __str__(self) -> str:
        return f"({'+'.join(map(str, self.layers))})"


class Edited(Hashable, Protocol):
    """A layer with something changed in it: a step that says itself how it is run."""

    @property
    def layer(self) -> int: ...

    def apply(self, stack: Any, state: Any, copies: int) -> Any:
        """The state after it, as :meth:`fastprobe.models.protocols.Stack.apply` has it."""


Step = int | Sublayer | Parallel | Edited


@dataclass(frozen=True)
class Order:
    """Steps of a forward pass, first to last; repeats and omissions are allowed. Orders are equal if their steps are.

    Example:
        >>> str(Order((0, 2, 1, 3), "swap 1 2"))
        '0,2,1,3'
    """

    steps: tuple[Step, ...]
    name: str = field(default="", compare=False)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))

    @property
    def is_edited(self) -> bool:
        """Whether a step is a layer with something changed in it."""
        return not all(isinstance(step, int | Sublayer | Parallel) for step in self.steps)

    @property
    def layers(self) -> list[int]:
        """Every layer that takes part, as often as it runs."""
        return [layer for step in self.steps for layer in layers_of(step)]


def layers_of(step: Step) -> tuple[int, ...]:
    """The layers of one step."""
    if isinstance(step, Parallel):
        return step.layers
    return (step,) if isinstance(step, int) else (step.layer,)


def identity(n: int) -> Order:
    """The order of the model itself."""
    return Order(tuple(range(n)), "identity")


def parse(text: str, name: str = "") -> Order:
    """An order from its text: layers, half-open ranges, ``(3+4)`` for layers in parallel, ``ffn.3``, ``attention.3``.

    Example:
        >>> list(parse("0-3,2,(3+4)"))
        [0, 1, 2, 2, Parallel(layers=(3, 4))]

    Raises:
        InputError: a part cannot be read; it is named.
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


def load(path: str | Path, *, layers: int | None = None, first: int = 0) -> list[Order]:
    """Orders of a text file, one a line; empty lines and comments (#) are passed over.

    Of the files of Zhao et al. (2021), ``fix{k}_layers.txt``, those for BERT count layers from 0 and those for their
    other models from 1.

    Args:
        path: the file.
        layers: of the model that is to run them; ``None`` if any may be named.
        first: the number that the file gives the first layer.

    Raises:
        InputError: the file cannot be read, holds no order, or a line is none of this model; its number is named.
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
                order = _counted_from(first, parse(text))
                if layers is not None:
                    check(order, layers)
                orders.append(order)
            except InputError as error:
                raise InputError(f"orders: {path}, line {number}: {error}") from None
    if not orders:
        raise InputError(f"orders: {path} has none; one a line, like 0,2,1,3")
    return orders


def _counted_from(first: int, order: Order) -> Order:
    """An order whose first layer has the number ``first``, as one whose first layer is 0."""

    def moved(step: Step) -> Step:
        if isinstance(step, Parallel):
            return Parallel(tuple(layer - first for layer in step.layers))
        if isinstance(step, Sublayer):
            return Sublayer(step.part, step.layer - first)
        assert isinstance(step, int)  # a text has no other steps
        return step - first

    return Order(tuple(map(moved, order)), order.name) if first else order


def save(orders: Iterable[Order], path: str | Path) -> None:
    """Write orders as :func:`load` reads them."""
    Path(path).write_text("".join(f"{order}\n" for order in orders), encoding="utf-8")


def to_mergekit(order: Order, model_id: str, dtype: str = "bfloat16") -> str:
    """A mergekit "passthrough" configuration, as YAML, that writes a model with its layers in this order.

    Raises:
        InputError: the order has steps that are no whole layers.
    """
    if not all(isinstance(step, int) for step in order):
        raise InputError(f"to_mergekit: {order} has steps that are no whole layers")
    slices: list[list[int]] = []
    for step in order.layers:
        if slices and slices[-1][1] == step:
            slices[-1][1] = step + 1
        else:
            slices.append([step, step + 1])
    sources = "".join(
        f"  - sources:\n      - model: {model_id}\n        layer_range: [{start}, {stop}]\n" for start, stop in slices
    )
    return f"slices:\n{sources}merge_method: passthrough\ndtype: {dtype}\n"


def wanted_of(which: Iterable[Order | Iterable[Step]], n: int) -> list[Order]:
    """The model's own order of n layers, then each other one once.

    Raises:
        InputError: one of them cannot be run by a model of n layers.
    """
    wanted = [identity(n)]
    for order in which:
        order = order if isinstance(order, Order) else Order(tuple(order))
        check(order, n)
        if order not in wanted:
            wanted.append(order)
    return wanted


def check(order: Order, n: int) -> None:
    """That a model of n layers can run an order.

    Raises:
        InputError: the order is empty or names a layer that is not there.
    """
    if not len(order):
        raise InputError("order: it is empty; name at least one layer")
    for step in order:
        for layer in layers_of(step):
            if not 0 <= layer < n:
                raise InputError(f"order {order}: there is no layer {layer}; the model has 0 to {n - 1}")
