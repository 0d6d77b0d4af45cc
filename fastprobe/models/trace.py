"""Record the calls of modules in one forward pass: which tensors go in, which come out, by their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Slot = int | str
"""Place of a tensor among arguments: its index, or its name."""


class Values:
    """Tensors by their values: two tensors of the same width, dtype and bytes have one number.

    A tensor that a model hands on through views, tuples or a dropout that is off keeps its number.

    Args:
        keep: hold a copy of every tensor, for :meth:`__getitem__`.
    """

    def __init__(self, *, keep: bool):
        self._keep = keep
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._tensors: dict[int, Tensor] = {}
        self._seen: list[tuple[int, Tensor, int]] = []
        self.shapes: list[tuple[int, ...]] = []

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor's values."""
        plain = tensor.detach().to("cpu").contiguous()
        key = (plain.shape[-1], plain.dtype, hash(plain.flatten().view(torch.uint8).numpy().tobytes()))
        if key not in self._numbers:
            number = self._numbers[key] = len(self._numbers)
            self.shapes.append(tuple(plain.shape))
            if self._keep:
                self._tensors[number] = tensor.detach().clone()
        if self._keep:
            self._seen.append((self._numbers[key], tensor, tensor._version))
        return self._numbers[key]

    @property
    def changed(self) -> set[int]:
        """Numbers of tensors that the model changed in place after they were seen."""
        return {number for number, tensor, version in self._seen if tensor._version != version}

    def __getitem__(self, number: int) -> Tensor:
        return self._tensors[number]


@dataclass
class ModuleCall:
    """A call of a module. Only floating-point tensors are recorded."""

    path: str
    module: nn.Module
    start: int
    """Number of module calls and returns before it."""
    inputs: dict[Slot, int] = field(default_factory=dict)
    """Slot -> number of the tensor. Slots are in the order of the arguments."""
    outputs: list[int] = field(default_factory=list)
    """Numbers of the tensors of the output, in their order; of a tuple or dict, its own entries only."""
    first_output: int | None = None
    """Number of the tensor that :func:`~fastprobe.models.calling.first_tensor` returns."""
    end: int = -1

    @property
    def first_input(self) -> int | None:
        """Number of the first tensor among the arguments."""
        return next(iter(self.inputs.values()), None)

    def contains(self, other: ModuleCall) -> bool:
        """Return whether another call ran inside this one."""
        return self.start < other.start and other.end < self.end


class Trace:
    """Calls of modules in the order in which they began, inside a ``with`` block.

    Args:
        modules: pairs of a path and a module.
        keep: hold the values of all tensors.
        on_end: called with each call when it ends.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module]],
        *,
        keep: bool = False,
        on_end: Callable[[ModuleCall], None] | None = None,
    ):
        self._modules = list(modules)
        self.values, self.calls = Values(keep=keep), list[ModuleCall]()
        self._open: list[ModuleCall] = []
        self._clock, self._on_end = 0, on_end

    def __enter__(self) -> Trace:
        self._handles: list[RemovableHandle] = []
        for path, module in self._modules:
            self._handles += [
                module.register_forward_pre_hook(self._begin(path), with_kwargs=True),
                module.register_forward_hook(self._finish, prepend=True),
            ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, path: str) -> Callable[..., None]:
        def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given: dict[Slot, Any] = dict(enumerate(args)) | dict(kwargs)
            inputs = {slot: self.values.number(value) for slot, value in given.items() if _is_state(value)}
            self._open.append(ModuleCall(path, module, self._tick(), inputs))
            self.calls.append(self._open[-1])

        return on_call

    def _finish(self, module: nn.Module, _: Any, result: Any) -> None:
        while self._open and self._open[-1].module is not module:
            self._open.pop()  # a call that ended by an error which its caller caught
        if not self._open:
            return
        call = self._open.pop()
        call.end = self._tick()
        entries = tensors_of(result)
        call.outputs = [self.values.number(value) for value in entries if _is_state(value)]
        first = entries[0] if entries else None
        call.first_output = self.values.number(first) if isinstance(first, Tensor) and _is_state(first) else None
        if self._on_end is not None:
            self._on_end(call)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def tensors_of(result: Any) -> list[Any]:
    """Return the entries of a module's output: the tensor itself, or what a tuple or dict holds."""
    if isinstance(result, Mapping):
        return list(result.values())
    return list(result) if isinstance(result, tuple | list) else [result]


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.ndim > 1
        and value.numel() > 0
    )
