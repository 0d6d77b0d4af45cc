"""A transformer on one batch as stem, layers and head, with layers that run in any order.

Nothing is known of families: the model's own forward pass is run once with layers that pass their state on untouched
and note what else they are handed (mask, rotary embeddings, ...). Those arguments belong to the layer, not to its
place, so the right ones go with it wherever it runs; and the head is the same pass with a given state at its end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.record import first_input, first_tensor
from fastprobe.models.resolve import ModelPoints
from fastprobe.orders import Parallel, Step, Sublayer

Call = tuple[tuple[Any, ...], dict[str, Any]]


class LayerStack:
    """The layers of a model as functions from state to state, for one batch.

    Args:
        model: a Hugging Face model.
        points: where its layers are.
        batch: what the model is called with, on its device.
        stem: ``(batch, length, width)``, the state that the first layer is handed.
        calls: what each layer is handed besides.
        first: number of the batch's first sequence in the stream that it is from.
    """

    def __init__(
        self,
        model: nn.Module,
        points: ModelPoints,
        batch: Mapping[str, Any],
        stem: Tensor,
        calls: Sequence[Call],
        first: int = 0,
    ):
        self.model, self.points, self.batch, self.stem, self.first = model, points, dict(batch), stem, first
        self._calls = calls

    @classmethod
    def record(cls, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], first: int = 0) -> LayerStack:
        """The stack of a model in evaluation mode on a batch.

        Raises:
            UnsupportedModelError: a forward pass does not run every layer once.
        """
        body = getattr(model, "base_model", model)
        if "use_cache" in inspect.signature(body.forward).parameters:
            batch = {**batch, "use_cache": False}
        calls: list[Call] = []
        states: list[Tensor] = []

        def note(layer: int, state: Tensor, call: Call) -> Tensor:
            states.append(state)
            calls.append(call)
            return state

        with replaced_layers(points.layers, note):
            body(**batch)
        if len(states) != len(points.layers):
            raise UnsupportedModelError(
                f"{type(model).__name__}: {len(states)} layers ran in a forward pass, it has {len(points.layers)}"
            )
        return cls(model, points, batch, states[0], calls, first)

    def __len__(self) -> int:
        return len(self._calls)

    def apply(self, step: Step, state: Tensor, copies: int = 1) -> Tensor:
        """Run one step.

        Args:
            step: a layer, the attention or the FFN of one, layers in parallel, or a step that runs itself.
            state: ``(copies * batch, length, width)``.
            copies: how many states of the whole batch lie side by side.
        """
        if isinstance(step, Parallel):
            return torch.stack([self.apply(layer, state, copies) for layer in step.layers]).mean(0)
        if isinstance(step, Sublayer):
            return self._apply_part(step, state, copies)
        if not isinstance(step, int):
            return step.apply(self, state, copies)
        args, kwargs = self._calls[step]
        args, kwargs = self._repeated(args, copies), self._repeated(kwargs, copies)
        return first_tensor(self.points.layers[step](state, *args, **kwargs))

    def rows(self, state: Tensor, at: Tensor) -> Tensor:
        """The tokens ``(n, width)`` of a state where ``at``, ``(batch, length)`` bool and never padding, is true."""
        return state[at]

    def by_row(self, values: Tensor) -> Tensor:
        """What a batch says of its tokens, ``(batch, length)``, as one for each row of a state that is a matrix."""
        return values.flatten()

    def padded(self, state: Tensor) -> Tensor:
        """A state as ``(batch, length, width)``."""
        return state

    def head(self, state: Tensor) -> Any:
        """What the model returns for a final state ``(batch, length, width)``."""
        last = len(self) - 1
        with replaced_layers(self.points.layers, lambda layer, passed, _: state if layer == last else passed):
            return self.model(**self.batch)

    def _apply_part(self, step: Sublayer, state: Tensor, copies: int) -> Tensor:
        """Half a layer: stopped after the attention, or with an attention that adds nothing."""
        layer, layout = self.points.layers[step.layer], self.points.layout
        if self.points.parallel:
            raise UnsupportedModelError(
                f"order {step}: attention and FFN of this model read one state and cannot be run apart"
            )
        if not self.points.has_ffn:
            if step.part == "ffn":
                raise UnsupportedModelError(f"order {step}: the layers of this model have no FFN")
            return self.apply(step.layer, state, copies)
        if step.part == "attention":
            place = self.points.places["resid_mid"]
            module = layer.get_submodule(place.module)
            register = module.register_forward_hook if place.output else module.register_forward_pre_hook
            found: list[Tensor] = []

            def stop(module: nn.Module, args: Any, kwargs: Any, *result: Any) -> None:
                found.append(first_tensor(result[0]) if result else first_input(args, kwargs))
                raise _Reached

            handle = register(stop, with_kwargs=True)
            try:
                self.apply(step.layer, state, copies)
            except _Reached:
                return found[0]
            finally:
                handle.remove()
            raise AssertionError("a layer ended without its attention")
        name = layout.attn_proj.partition(".")[0]
        attention, forwards = layer.get_submodule(name), {}
        result: Any = torch.zeros_like(state)
        if layout.post_ln:  # the norm after the attention gives back what the layer got
            forwards[layer.get_submodule(layout.attn_norm)] = lambda *args, **kwargs: state
            if layout.attn_norm.startswith(f"{name}."):
                result = state
        if not self._returns_tensor(attention, step.layer):
            result = (result, None)
        forwards[attention] = lambda *args, **kwargs: result
        with replaced_forwards(forwards):
            return self.apply(step.layer, state, copies)

    def _returns_tensor(self, attention: nn.Module, layer: int) -> bool:
        """Whether an attention returns its output alone: seen once a class."""

        def look(_: nn.Module, __: Any, result: Any) -> None:
            _ATTENTION_RETURNS_TENSOR[type(attention)] = isinstance(result, Tensor)
            raise _Reached

        if type(attention) not in _ATTENTION_RETURNS_TENSOR:
            handle = attention.register_forward_hook(look)
            try:
                self.apply(layer, self.stem)
            except _Reached:
                pass
            finally:
                handle.remove()
        return _ATTENTION_RETURNS_TENSOR[type(attention)]

    def _repeated(self, value: Any, copies: int) -> Any:
        """Arguments of one batch for several side by side: what has one entry a sequence is repeated."""
        if copies == 1:
            return value
        if isinstance(value, Tensor):
            batch = len(self.stem)
            return torch.cat([value] * copies) if value.ndim and len(value) == batch > 1 else value
        if isinstance(value, dict):
            return {key: self._repeated(inner, copies) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(self._repeated(inner, copies) for inner in value)
        return value


def has_language_head(model: nn.Module) -> bool:
    """Whether a model predicts tokens."""
    get = getattr(model, "get_output_embeddings", lambda: None)
    return get() is not None


class _Reached(BaseException):
    """Leaves a layer half way; no handler of ``Exception`` may hold it up."""


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules that do something else when called, put back on every exit; weights and hooks stay where they are."""
    before: dict[nn.Module, Any] = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


Run = Callable[[int, Tensor, Call], Tensor]


@contextmanager
def replaced_layers(layers: Sequence[nn.Module], run: Run) -> Iterator[None]:
    """A model whose layers do ``run(layer, state, (other args, other kwargs))`` instead."""
    with layer_forwards(layers, run, lambda layer: nullcontext(False)):
        yield


@contextmanager
def layer_forwards(
    layers: Sequence[nn.Module], run: Run, turn: Callable[[int], AbstractContextManager[bool]]
) -> Iterator[None]:
    """The same, but for a layer whose turn it is: within ``turn(layer)``, where that is true, it runs as it is."""

    def forward_of(index: int, layer: nn.Module) -> Callable[..., Any]:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with turn(index) as is_it:
                if is_it:
                    return own(*args, **kwargs)
            if type(layer) not in _RETURNS_TUPLE:
                _RETURNS_TUPLE[type(layer)] = _returns_tuple(own, args, kwargs)
            state = first_input(args, kwargs)
            others = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
            out = run(index, state, (args[1:], others))
            return (out,) if _RETURNS_TUPLE[type(layer)] else out

        return forward

    with replaced_forwards({layer: forward_of(index, layer) for index, layer in enumerate(layers)}):
        yield


def _returns_tuple(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Seen from one run, which leaves no trace in a cache."""

    def without(value: Any) -> Any:
        return None if hasattr(value, "get_seq_length") else value

    with torch.no_grad():
        found = forward(*map(without, args), **{key: without(value) for key, value in kwargs.items()})
    return isinstance(found, tuple)


_ATTENTION_RETURNS_TENSOR: dict[type[nn.Module], bool] = {}
"""Classes of attention: whether they return their output alone or first in a tuple."""

_RETURNS_TUPLE: dict[type[nn.Module], bool] = {}
"""Classes of layers: whether they hand their state on in a tuple, as those of Transformers 4 do; seen, not guessed."""
