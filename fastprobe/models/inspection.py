"""Find attention and FFN inside a layer, from the modules that run in it and the values that they exchange.

Candidates come from structure, and equations between the values decide (``steps.py``). Which of the parts mixes tokens
is measured: the layer runs again with other first tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.calling import StopForward, first_tensor
from fastprobe.models.forwards import without_caches
from fastprobe.models.layouts import Layout, Part
from fastprobe.models.places import Place
from fastprobe.models.steps import LayerCalls, Step, path_of
from fastprobe.models.trace import ModuleCall, Trace

FFN_NAMES = re.compile(r"(^|[._])(mlp|ffn|feed_?forward\w*|moe|experts|block_sparse_moe|channel_mix\w*)([._]|$)")
"""Names of FFNs. They count only where both parts of a layer mix tokens, as in RWKV."""

UNMIXED = 0.05
"""Largest change of an FFN at other tokens, relative to that of the attention. Quantisation by batch makes some."""

Rerun = Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]]
"""From values to put in place of others, to the first outputs of the modules by the numbers that they had before."""


@torch.no_grad()
def layouts_of(layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[Layout]:
    """Return the layout of every layer. Layers with the same modules inside have the same layout.

    Args:
        layers: of one stack.
        run: runs the model.
    """
    kinds: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    found: dict[Any, Layout] = {}
    for attempt in range(2):  # a layer that a hook changes does not decide for its kind
        tried = {key: alike[attempt] for key, alike in kinds.items() if key not in found and len(alike) > attempt}
        for key, layout in zip(tried, _inspected(list(tried.values()), run), strict=True):
            if layout.attn or layout.mlp or attempt or len(kinds[key]) == 1:
                found[key] = layout
    return [found[_kind(layer)] for layer in layers]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    return type(layer), tuple((name, type(module)) for name, module in layer.named_modules())


def _inspected(layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[Layout]:
    """Return the layouts of some layers from one forward pass, which ends after the last of them."""
    if not layers:
        return []
    modules = [(path, module) for layer in layers for path, module in layer.named_modules()]
    given: dict[nn.Module, Any] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[layer] = without_caches((args, kwargs))

    def stop(call: ModuleCall) -> None:
        if call.module is layers[-1]:
            raise StopForward

    with ExitStack() as hooks, suppress(StopForward):
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        trace = hooks.enter_context(Trace(modules, keep=True, on_end=stop))
        run()
    found = []
    for layer in layers:
        whole = next(call for call in trace.calls if call.module is layer)
        inside = [call for call in trace.calls if whole.contains(call)]
        calls = LayerCalls(whole, inside, trace.values)
        changed = trace.values.changed
        paths = [c.path for c in inside if not changed.isdisjoint({*c.inputs.values(), *c.outputs})]
        if not changed.isdisjoint((calls.x, calls.y)):
            paths.append("")
        layout = layout_of(calls, partial(substituted, calls, *given[layer]))
        found.append(replace(layout, changed=frozenset(paths)))
    return found


def layout_of(layer: LayerCalls, rerun: Rerun) -> Layout:
    """Return the layout of a layer.

    Args:
        layer: the calls inside one call of it.
        rerun: runs it again.
    """
    steps = path_of(layer)
    changes = {step.after: [_change(layer, step.before, f, rerun) for f in step.added] for step in steps}
    least = max((c for found in changes.values() for c in found if c is not None), default=0.0) * UNMIXED
    mixes = {after: [None if c is None else c > least for c in found] for after, found in changes.items()}
    if not steps:
        return Layout(reason="no equation between its modules gives its output")
    if len(steps) == 1:
        return _single(layer, steps[0], mixes[steps[0].after])
    *earlier, last = steps
    at = next((step for step in earlier if mixes[step.after] == [True]), None)
    ends = mixes[last.after]
    if at is None or (True in ends and not _named_ffn(layer, last.added[0])):
        return Layout(reason="its modules are not attention and FFN")
    mid = place_of(layer, last.before)
    if mid is None:
        return Layout(reason="no module reads the state between its attention and its FFN")
    mlp = _part(layer, last) if len(ends) == 1 else None
    reason = "" if mlp else "the output of its FFN is no tensor of one module"
    return Layout(_part(layer, at), mlp, mid=mid, others=len(steps) - 2, reason=reason)


def _single(layer: LayerCalls, step: Step, mixes: Sequence[bool | None]) -> Layout:
    """Return the layout of a layer with one residual connection."""
    if len(step.added) == 2:
        if {*mixes} != {False, True}:
            return Layout(reason="two modules add to one state, but they are not attention and FFN")
        attn, mlp = (step.added[mixes.index(mixing)] for mixing in (True, False))
        return Layout(_part(layer, step, attn), _part(layer, step, mlp), parallel=True)
    part = _part(layer, step)
    if part is None or mixes[0] is None or not _is_one_module(layer, part, step):
        return Layout(reason="its modules are not attention and FFN")
    return Layout(attn=part) if mixes[0] else Layout(mlp=part)


def _is_one_module(layer: LayerCalls, part: Part, step: Step) -> bool:
    """Return whether one module, or one before the last matrix, makes the output of a part from its input."""
    given = {step.before, *layer.normed(step.before)}
    last = next(call for call in layer.calls if call.path == part.out)
    before = [call for call in layer.calls if part.proj and call.first_output == last.first_input]
    return any(not given.isdisjoint(call.inputs.values()) for call in (last, *before))


def _part(layer: LayerCalls, step: Step, f: int | None = None) -> Part | None:
    """Return the part that a step adds, or ``None`` if its modules do not say where it is."""
    f = step.added[0] if f is None else f
    post = next((c for c in layer.norms if c.first_output == f and c.first_input in layer.outputs), None)
    raw = f if post is None or post.first_input == step.before else post.first_input
    if raw == f:
        post = None
    producer = _producer(layer, raw)
    if producer is None:
        return None
    given = _input(layer, step.before, producer)
    norm = next((c for c in layer.norms if c.first_input == step.before and c.first_output == given), None)
    if step.base != step.before and (norm is None or step.base != given):
        return None
    sides = (norm, post, step.sum_norm)
    if any(call is not None and not _once(layer, call) for call in sides):
        return None
    return Part(
        out=producer.path,
        norm=norm.path if norm else "",
        proj=_projection(layer, raw, {given, step.before}),
        post_norm=post.path if post else "",
        sum_norm=step.sum_norm.path if step.sum_norm else "",
        adds=step.adds.path if step.adds else "",
        scale=step.scale,
        skip=step.skip,
        skips_norm=step.base != step.before,
    )


def _producer(layer: LayerCalls, f: int | None) -> ModuleCall | None:
    """Return the outermost call that returns a value first; one with parameters, if there is one."""
    calls = [c for c in layer.calls if c.first_output == f and _once(layer, c)]
    return next((c for c in calls if _has_matrix(c.module)), calls[0] if calls else None)


def _input(layer: LayerCalls, m: int, producer: ModuleCall) -> int:
    """Return the value that a part reads: the state before it, or the norm of that state."""
    normed = layer.normed(m)
    given = list(producer.inputs.values())
    for candidate in (*normed, m):
        if candidate in given:
            return candidate
    reads = [c for c in layer.calls if c.start < producer.start and not c.contains(producer) and c not in layer.norms]
    return next((n for n in normed if any(n in call.inputs.values() for call in reads)), m)


def _projection(layer: LayerCalls, out: int | None, given: set[int]) -> str:
    """Return the outermost module with a matrix that makes a part's output from one tensor inside the part; else ""."""
    for call in layer.calls:
        x = call.first_input
        if call.first_output != out or len(call.inputs) != 1 or x in given or x is None or not _once(layer, call):
            continue
        if _has_matrix(call.module) and layer.values[x].shape[-1] * layer.rows == layer.values[x].numel():
            return call.path
    return ""


def _has_matrix(module: nn.Module) -> bool:
    """Return whether a module has a matrix: a parameter, a buffer, or packed weights as quantised modules have."""
    tensors = [*module.parameters(), *module.buffers()]
    return any(tensor.ndim > 1 for tensor in tensors) or (not tensors and hasattr(module, "weight"))


def place_of(layer: LayerCalls, number: int) -> Place | None:
    """Return where a value is read inside a layer: at the output of a norm, at an input, or at another output."""
    calls = [c for c in layer.calls if _once(layer, c)]
    for call in calls:
        if call.first_output == number and call in layer.norms:
            return Place(call.path, True)
    for call in calls:
        if call.first_input == number and call in layer.norms:
            return Place(call.path, False)
    for call in calls:
        if call.first_input == number:
            return Place(call.path, False)
    return next((Place(c.path, True) for c in calls if c.first_output == number), None)


def _once(layer: LayerCalls, call: ModuleCall) -> bool:
    """Return whether a module runs once in the layer, so that a hook on it sees this call only."""
    return sum(other.module is call.module for other in layer.calls) == 1


def _named_ffn(layer: LayerCalls, f: int) -> bool:
    return any(FFN_NAMES.search(call.path) for call in layer.calls if call.first_output == f)


def _change(layer: LayerCalls, m: int, f: int, rerun: Rerun) -> float | None:
    """Return how much the output f of a module changes at later tokens with the first tokens of a state m.

    Returns:
        the relative Frobenius norm of the change, 0 if it is rounding; ``None`` if unknown.
    """
    state = layer.values[m].clone()
    shape = layer.values.shapes[layer.x]
    part = shape[1] // 3  # no multiple of the chunks of an attention in chunks
    rows = state.view(shape)
    rows[:, :part] = 1.5 * rows[:, :part].flip(-1)
    try:
        found = rerun({m: state}).get(f)
    except Exception:  # of the model's code, which may raise anything
        return None
    if found is None or found.shape != layer.values[f].shape:
        return None
    before = layer.values[f].view(shape)[:, part:].double()
    change = float((found.view(shape)[:, part:].double() - before).norm())
    rounding = torch.finfo(found.dtype).eps * (100 if found.dtype.itemsize > 2 else 4)
    relative = change / max(float(before.norm()), 1e-30)
    return relative if relative > rounding else 0.0


def substituted(
    layer: LayerCalls, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """Run a layer again with other values in place of some that its modules read.

    Args:
        layer: the calls of an earlier run.
        args: arguments of the layer.
        kwargs: arguments of the layer by name.
        values: number of a value -> what the modules read instead.

    Returns:
        number of each first output before -> that output now.
    """
    found: dict[int, Tensor] = {}
    expected: dict[nn.Module, Iterator[ModuleCall]] = {}
    for call in layer.calls:  # by module, because experts run in another order for other tokens
        expected.setdefault(call.module, iter([c for c in layer.calls if c.module is call.module]))
    open_calls: list[ModuleCall | None] = []

    def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        call = next(expected[module], None)
        open_calls.append(call)
        if call is None:
            return None
        slots = {slot: values[number] for slot, number in call.inputs.items() if number in values}
        for slot, value in slots.items():
            slots[slot] = value.view_as(given[slot] if isinstance(slot, int) else named[slot])
        if not slots:
            return None
        return tuple(slots.get(i, v) for i, v in enumerate(given)), {k: slots.get(k, v) for k, v in named.items()}

    def after(_: nn.Module, __: Any, result: Any) -> None:
        call = open_calls.pop()
        number = None if call is None else call.first_output
        if number is not None and (out := first_tensor(result)).numel() == layer.values[number].numel():
            found.setdefault(number, out.detach().clone().view_as(layer.values[number]))

    handles = [m.register_forward_pre_hook(before, with_kwargs=True) for m in expected]
    handles += [m.register_forward_hook(after) for m in expected]
    try:
        with torch.no_grad():
            layer.layer.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
