"""Order: the layers that a forward pass runs, first to last. Layers are 0-based."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastprobe.errors import InputError
from fastprobe.orders.arguments import integer, integers, iterable, plain_numbers


@dataclass(frozen=True)
class Sublayer:
    """The attention or the FFN of a layer, each with its skip connection and norm.

    Raises:
        InputError: the part is neither ``"attention"`` nor ``"ffn"``, or the layer is not an integer.
    """

    part: str  # "attention" or "ffn"
    layer: int

    def __post_init__(self) -> None:
        if self.part not in ("attention", "ffn"):
            raise InputError(f"part: must be 'attention' or 'ffn', got {self.part!r}")
        object.__setattr__(self, "layer", integer(self.layer, "layer"))

    def __str__(self) -> str:
        return f"{self.part}.{self.layer}"


@dataclass(frozen=True)
class Parallel:
    """Several layers on the same input state. The mean of their output states is the state after the step.

    Raises:
        InputError: there is no layer, or one is not an integer.
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(integers(self.layers, "layers")))
        if not self.layers:
            raise InputError("layers: there are none in parallel; name at least one")

    def __str__(self) -> str:
        return f"({'+'.join(map(str, self.layers))})"


class Edited(Hashable, Protocol):
    """A step that runs a modified layer. It implements its own forward computation."""

    @property
    def layer(self) -> int: ...

    def apply(self, stack: Any, state: Any, copies: int) -> Any:
        """Return the state after this step, as :meth:`fastprobe.models.protocols.Stack.apply` does."""


Step = int | Sublayer | Parallel | Edited
"""A step of a forward pass. An ``int`` is a whole layer."""


@dataclass(frozen=True)
class Order:
    """The steps of a forward pass, first to last. A layer may occur more than once, or not at all.

    Two orders are equal if their steps are equal. Names are not compared. Integers of NumPy and torch are layers, too.

    Raises:
        InputError: a step is neither a layer nor another step.

    Example:
        >>> str(Order((0, 2, 1, 3), "swap 1 2"))
        '0,2,1,3'
    """

    steps: tuple[Step, ...]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(map(_step, iterable(self.steps, "order", "layers"))))

    @classmethod
    def of(cls, steps: Order | Iterable[Step]) -> Order:
        """Return an order as it is, and the order of other steps.

        Raises:
            InputError: the steps are not an iterable, or one is neither a layer nor another step.
        """
        return steps if isinstance(steps, Order) else cls(tuple(iterable(steps, "order", "layers")))

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))

    @property
    def is_edited(self) -> bool:
        """True if a step runs a modified layer."""
        return bool(self.edits)

    @property
    def edits(self) -> list[Edited]:
        """The steps that run a modified layer."""
        return [step for step in self.steps if not isinstance(step, int | Sublayer | Parallel)]

    @property
    def layers(self) -> list[int]:
        """The layers of all steps in order, with repetitions."""
        return [layer for step in self.steps for layer in layers_of(step)]


def layers_of(step: Step) -> tuple[int, ...]:
    """Return the layers that one step runs."""
    if isinstance(step, Parallel):
        return step.layers
    return (step,) if isinstance(step, int) else (step.layer,)


@plain_numbers
def identity(n: int) -> Order:
    """Return the baseline order ``0, 1, ..., n - 1``."""
    return Order(tuple(range(n)), "identity")


@plain_numbers
def wanted_of(orders: Iterable[Order | Iterable[Step]], n: int) -> list[Order]:
    """Return the baseline order of n layers, followed by every other order once.

    Args:
        orders: orders, or iterables of steps. Duplicates are dropped.
        n: number of layers of the model.

    Raises:
        InputError: there is no list of orders, or a model of n layers cannot run one of them.
    """
    wanted = [identity(n)]
    for order in [orders] if isinstance(orders, Order) else iterable(orders, "orders", "orders"):
        order = Order.of(order)
        check(order, n)
        if order not in wanted:
            wanted.append(order)
    return wanted


@plain_numbers
def check(order: Order, n: int) -> None:
    """Raise an error if a model of n layers cannot run an order.

    Raises:
        InputError: the order is empty or names a layer that does not exist.
    """
    if not len(order):
        raise InputError("order: it is empty; name at least one layer")
    for step in order:
        for layer in layers_of(step):
            if not 0 <= layer < n:
                raise InputError(f"order {order}: there is no layer {layer}; the model has 0 to {n - 1}")


def _step(step: Any) -> Step:
    """Return a step of an order, with an integer of any library as an ``int``."""
    if isinstance(step, Sublayer | Parallel) or hasattr(step, "apply"):
        return step
    return integer(step, "order")
