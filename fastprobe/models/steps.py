"""Explain the output of a layer as steps from its input: ``t = norm(a m + c f)`` with f the output of a module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fastprobe.models.trace import ModuleCall, Values

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest relative Frobenius error of an identity, by the dtype the model computes in."""

_FOUND = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Largest relative error of a sum by which parts are found: about one rounding, since the model computes this sum."""


@dataclass(frozen=True)
class Step:
    """A residual connection. Numbers are those of values of a trace."""

    before: int
    after: int
    added: tuple[int, ...]
    """Outputs of modules that are added; two for attention and FFN in parallel."""
    skip: float
    scale: float
    base: int
    """State that the skip connection carries: ``before``, or its norm."""
    error: float
    sum_norm: ModuleCall | None = None
    adds: ModuleCall | None = None


@dataclass
class LayerCalls:
    """The calls of modules inside one call of a layer, and the values that they exchanged."""

    layer: ModuleCall
    calls: Sequence[ModuleCall]
    """Without the layer, in the order in which they began."""
    values: Values
    skips_norm: bool = False
    """Skip connections begin after the norm of a state, not before it."""
    _norms: dict[int, bool] = field(default_factory=dict)

    @property
    def x(self) -> int:
        assert self.layer.first_input is not None
        return self.layer.first_input

    @property
    def y(self) -> int:
        assert self.layer.first_output is not None
        return self.layer.first_output

    @property
    def rows(self) -> int:
        """Tokens of the batch."""
        return math.prod(self.values.shapes[self.x][:-1])

    def is_state(self, number: int | None) -> bool:
        """Return whether a value has the shape of the layer's states."""
        if number is None:
            return False
        shape, states = self.values.shapes[number], self.values.shapes[self.x]
        return shape[-1] == states[-1] and math.prod(shape) == math.prod(states)

    @cached_property
    def outputs(self) -> list[int]:
        """First outputs of modules that have the shape of a state, in the order in which they ended."""
        ended = sorted(self.calls, key=lambda call: call.end)
        return list(dict.fromkeys(c.first_output for c in ended if self.is_state(c.first_output) and c.end > 0))  # type: ignore[misc]

    @cached_property
    def inputs(self) -> list[int]:
        """Inputs of modules that have the shape of a state, in the order in which they were read."""
        return list(dict.fromkeys(n for call in self.calls for n in call.inputs.values() if self.is_state(n)))

    @cached_property
    def norms(self) -> list[ModuleCall]:
        """Calls of norms: modules without matrices whose output does not change with the scale of their input."""
        return [call for call in self.calls if self._is_norm(call)]

    def normed(self, number: int) -> list[int]:
        """Return the outputs of norms of a value."""
        return [call.first_output for call in self.norms if call.first_input == number]  # type: ignore[misc]

    def steps_to(self, t: int) -> Iterator[Step]:
        """Yield every step that ends at a value. One module a step says more than two, so two come last."""
        for call in self.norms:
            if call.first_output == t and call.first_input is not None and call.first_input != self.x:
                for step in self._sums(call.first_input):
                    yield replace(step, after=t, sum_norm=call)
        yield from self._sums(t)

    def _sums(self, t: int) -> Iterator[Step]:
        """Yield the residual sums that give a value."""
        if not self.is_state(t):
            return
        for call in self.calls:  # a module that adds two states
            given = [n for n in call.inputs.values() if self.is_state(n)]
            inner = any(call.contains(other) for other in self.calls)
            if call.first_output == t and len(given) == 2 and not inner and given[1] in self.sources(t):
                yield Step(given[1], t, (given[0],), 1.0, 1.0, given[1], 0.0, None, call)
        found = False
        for m in self.sources(t):
            for base in self.normed(m) if self.skips_norm else (m,):
                for step in self._with_one(m, base, t):
                    found = True
                    yield step
        if not found:
            yield from self._with_two(t)

    def sources(self, t: int) -> list[int]:
        """Return the values that may be the state before another: the layer's input, and what modules read."""
        return [n for n in dict.fromkeys((self.x, *self.inputs)) if n != t]

    def _with_one(self, m: int, base: int, t: int) -> Iterator[Step]:
        target, x = self.values[t], self.values[base]
        for f in self.outputs:
            if f in (t, m, base, self.x):
                continue
            found = fitted(target, x, (self.values[f],))
            if found is not None:
                skip, scale, error = found
                yield Step(m, t, (f,), skip, scale, base, error)

    def _with_two(self, t: int) -> Iterator[Step]:
        """Yield steps in which two modules add to one state."""
        for m in self.sources(t):
            outputs = [f for f in self.outputs if f not in (t, m)]
            for index, first in enumerate(outputs):
                for second in outputs[index + 1 :]:
                    found = fitted(self.values[t], self.values[m], (self.values[first], self.values[second]))
                    if found is not None:
                        yield Step(m, t, (first, second), found[0], found[1], m, found[2])

    def _is_norm(self, call: ModuleCall) -> bool:
        x, y = call.first_input, call.first_output
        if x is None or y is None or x == y or not self.is_state(x) or not self.is_state(y):
            return False
        key = id(call.module)
        if key not in self._norms:
            self._norms[key] = _ignores_scale(call.module, self.values[x])
        return self._norms[key]


def _ignores_scale(module: nn.Module, x: Tensor) -> bool:
    """Return whether a module without matrices gives the same output for a large input and for twice that input."""
    if any(parameter.ndim > 1 for parameter in module.parameters()) or isinstance(module, nn.Dropout | nn.Identity):
        return False
    large = x * (1e3 / float(x.float().abs().mean().clamp(min=1e-20)))
    try:
        one, two = module(large), module(2 * large)
    except Exception:  # of the model's code, which may need other arguments
        return False
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.shape != x.shape:
        return False
    size = float(one.float().norm())
    return 0 < size < 1e-2 * float(large.float().norm()) and float((one - two).float().norm()) <= 1e-2 * size


def fitted(t: Tensor, base: Tensor, added: Sequence[Tensor]) -> tuple[float, float, float] | None:
    """Return skip, scale and the relative error of ``t = skip * base + scale * (sum of added)``, if that holds.

    Both factors are 1 where they may be, so that the sum is the one that the model computes.
    """
    t, base, added = t.flatten(0, -2), base.flatten(0, -2), [tensor.flatten(0, -2) for tensor in added]
    size = float(t.double().norm())
    allowed = _FOUND.get(t.dtype, 1e-5)
    total = added[0] if len(added) == 1 else added[0] + added[1]
    matters = float(total.double().norm())
    if not (size > 0 and matters > 0 and math.isfinite(size) and math.isfinite(matters)):
        return None

    def error(skip: float, scale: float) -> float:
        left = (base if skip == 1 else skip * base) + (total if scale == 1 else scale * total)
        return float((left - t).double().norm())

    plain = error(1.0, 1.0)
    if plain <= allowed * size and plain <= 0.3 * matters:
        return 1.0, 1.0, plain / size
    b, f, target = (tensor.double().flatten() for tensor in (base, total, t))
    bb, bf, ff, bt, ft = (float(u @ v) for u, v in ((b, b), (b, f), (f, f), (b, target), (f, target)))
    scale = (ft - bf) / ff  # with a skip connection of weight 1
    determinant = bb * ff - bf * bf
    pairs = [(1.0, scale)]
    if determinant > 1e-9 * bb * ff:
        pairs.append(((bt * ff - ft * bf) / determinant, (ft * bb - bt * bf) / determinant))
    for skip, factor in pairs:
        if abs(factor) * matters < 1e-3 * size * (1 if allowed < 1e-4 else 100) or abs(skip) < 1e-3:
            continue
        found = error(skip, factor)
        if found <= allowed * size:
            return _rounded(skip), _rounded(factor), found / size
    return None


def _rounded(factor: float) -> float:
    """Return a factor with the digits that a float32 fit has."""
    return float(f"{factor:.7g}")


def path_of(layer: LayerCalls) -> list[Step]:
    """Return the longest chain of steps from the input of a layer to its output; empty if there is none.

    A layer whose norms follow its sums can also be read as one whose skip connections begin after a norm. The second
    form counts only where the first one does not hold.
    """
    return _longest(layer) or _longest(replace(layer, skips_norm=True))


def _longest(layer: LayerCalls) -> list[Step]:
    best: dict[int, list[Step] | None] = {}

    def to(t: int, depth: int) -> list[Step] | None:
        if t == layer.x:
            return []
        if depth == 0:
            return None
        if t in best:
            return best[t]
        best[t] = None  # while it is looked for
        options = []
        for step in layer.steps_to(t):
            before = to(step.before, depth - 1)
            if before is not None:
                options.append([*before, step])
        # one module a step says more than two; then the longest chain
        best[t] = max(
            options, key=lambda steps: (len(steps), -sum(len(s.added) for s in steps), -steps[-1].error), default=None
        )
        return best[t]

    return to(layer.y, 6) or []
