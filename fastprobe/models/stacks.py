"""Find the stacks of layers of a model by running it once.

A stack is a list of modules that run once each, in turn, each handed the state that the one before gave. Nothing
depends on their names or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastprobe.models.calling import with_decoder_inputs, without_cache
from fastprobe.models.examples import example_batches, input_of, reads_inputs
from fastprobe.models.trace import ModuleCall, Trace

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""Containers that hold layers. Modules with layers as attributes are searched only if no list has a stack."""


@dataclass(frozen=True)
class FoundStack:
    """A stack of layers as one forward pass showed it."""

    path: str
    """Path of the module that holds the layers."""
    layers: tuple[nn.Module, ...]
    shape: tuple[int, ...]
    """Shape of the states between the layers."""
    span: tuple[int, int]
    """Times at which the first layer began and the last one ended."""
    in_list: bool
    loops: bool = False
    """The layers run several times in one pass, all of them in turn each time."""
    carries: str = ""
    """Other tensors that a layer hands to the next one: "" for none, "one" for the same all along, else "another"."""


@dataclass(frozen=True)
class Observation:
    """The stacks that one forward pass showed, in the order in which they ran, and the reason where it failed."""

    stacks: tuple[FoundStack, ...]
    near_misses: tuple[str, ...]
    """Reasons why a list of modules that ran is no stack."""
    error: str


@torch.no_grad()
def observe(model: nn.Module, call: Any) -> Observation:
    """Run a model once and return the stacks that it has.

    Args:
        model: in evaluation mode.
        call: runs it on a batch. If it raises an error, the stacks that ran before are found.
    """
    modules = [(path, module) for path, module in model.named_modules() if next(module.children(), None) is not None]
    error = ""
    with Trace(modules) as trace:
        try:
            call()
        except Exception as raised:  # of the model's code, which may raise anything
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
    by_module: dict[nn.Module, list[ModuleCall]] = {}
    for one in trace.calls:
        by_module.setdefault(one.module, []).append(one)
    found, near = [], []
    for path, container in modules:
        children = [_uncompiled(child) for child in container.children()]
        calls = [by_module.get(child, []) for child in children]
        ran = sorted((c[0] for c in calls if len(c) == 1 and c[0].end > 0), key=lambda one: one.start)
        if isinstance(container, LISTS):
            firsts = sorted((c[0] for c in calls if c and c[0].end > 0), key=lambda one: one.start)
            rounds = {len(c) for c in calls}
            loops = len(rounds) == 1 and rounds.pop() > 1 and len(children) > 1
            again = [*_chains(path, firsts, trace, in_list=True)] if loops and len(firsts) == len(children) else []
            if len(again) == 1 and again[0].layers == tuple(children):
                found.append(replace(again[0], loops=True))
            elif 0 < len(firsts) < len(children) and _keeps_shape(firsts[0], trace) and _is_batch(firsts[0], trace):
                near.append(
                    f"{path}: {len(firsts)} of its {len(children)} modules ran; turn off what skips layers (early "
                    "exit, layer drop, a smaller num_hidden_layers)"
                )
            elif any(len(c) > 1 for c in calls) and any(next(child.children(), None) is not None for child in children):
                most = max(calls, key=len)
                near.append(f"{path}: {type(most[0].module).__name__} runs {len(most)} times in one pass")
            elif ran and len(ran) == len(children):
                chains = [*_chains(path, ran, trace, in_list=True)]
                if len(chains) == 1 and chains[0].layers == tuple(children):
                    found.append(chains[0])
                elif len(ran) > 1:
                    name = type(ran[0].module).__name__
                    near.append(f"{path}: a {name} does not receive what the one before returns")
        else:
            found += [chain for chain in _chains(path, ran, trace, in_list=False) if len(chain.layers) > 1]
    listed = [stack for stack in found if stack.in_list]
    if not listed and not near:  # modules with layers as attributes
        listed = found
    return Observation(tuple(_outermost(listed)), tuple(near), error)


def _uncompiled(layer: nn.Module) -> nn.Module:
    """Return the module inside one that was compiled by itself."""
    return getattr(layer, "_orig_mod", layer)


def _chains(path: str, calls: Sequence[ModuleCall], trace: Trace, *, in_list: bool) -> Iterator[FoundStack]:
    """Yield the longest runs of calls in which each receives, first, what the one before returns first."""
    run: list[ModuleCall] = []
    for call in [*calls, None]:
        handed = call is not None and bool(run) and call.first_input == run[-1].first_output
        if call is not None and handed and _keeps_shape(call, trace):
            run.append(call)
            continue
        if run:
            yield FoundStack(
                path,
                tuple(one.module for one in run),
                trace.values.shapes[run[0].first_input or 0],
                (run[0].start, run[-1].end),
                in_list,
                carries=_carried(run),
            )
        run = [call] if call is not None and _keeps_shape(call, trace) else []


def _carried(run: Sequence[ModuleCall]) -> str:
    """Return whether layers hand on other tensors than the state; see :attr:`FoundStack.carries`."""
    handed = [
        ({*before.outputs} - {before.first_output}) & ({*call.inputs.values()} - {call.first_input})
        for before, call in pairwise(run)
    ]
    if not any(handed):
        return ""
    return "one" if len({frozenset(numbers) for numbers in handed}) == 1 else "another"


def _is_batch(call: ModuleCall, trace: Trace) -> bool:
    """Return whether a call receives states, (batch, length, width)."""
    return len(trace.values.shapes[call.first_input or 0]) == 3


def _keeps_shape(call: ModuleCall, trace: Trace) -> bool:
    """Return whether a call returns first a tensor of the shape of the first one that it receives."""
    shapes, x, y = trace.values.shapes, call.first_input, call.first_output
    return x is not None and y is not None and shapes[x] == shapes[y]


def _outermost(found: Sequence[FoundStack]) -> list[FoundStack]:
    """Return the stacks that do not run inside a layer of another stack, in the order in which they ran."""
    inside = {inner for stack in found for layer in stack.layers for inner in layer.modules() if inner is not layer}
    return sorted((stack for stack in found if not inside.intersection(stack.layers)), key=lambda stack: stack.span)


def observations(
    body: nn.Module, name: str | None = None
) -> tuple[list[tuple[str, Callable[[], Any], tuple[FoundStack, ...]]], list[str]]:
    """Run a model on a small batch, or those of its parts that take one, and return the stacks found.

    What reads the main input of the model comes first, and the first that runs is enough if it has the named stack.

    Args:
        body: a model without its head, in evaluation mode.
        name: path of the stack to find, or a part of it; any by default.

    Returns:
        path of what ran, what runs it again, and its stacks; and reasons why there are no others.
    """
    runs, reasons, main = list[tuple[str, Callable[[], Any], tuple[FoundStack, ...]]](), [], input_of(body)
    known: set[nn.Module] = set()
    for path, part in sorted((("", body), *_parts(body)), key=lambda one: input_of(one[1]) != main):
        for batch in example_batches(part):
            call = partial(_run, part, with_decoder_inputs(part, batch))
            seen = observe(part, call)
            stacks = tuple(stack for stack in seen.stacks if known.isdisjoint(stack.layers))
            reasons += [*seen.near_misses, *([seen.error] if seen.error else [])]
            if seen.error or not stacks:
                continue
            runs.append((path, call, stacks))
            known.update(layer for stack in stacks for layer in stack.layers)
            if name is None or any(name in ".".join(filter(None, (path, stack.path))) for stack in stacks):
                return runs, [*seen.near_misses]
            break
    return runs, reasons


def alone(body: nn.Module, stack: FoundStack) -> tuple[str, Callable[[], Any]] | None:
    """Return the outermost part of a model that runs a stack by itself, with its path; ``None`` if there is none."""
    for path, part in _parts(body):
        inside = {*part.modules()}
        for batch in example_batches(part) if all(layer in inside for layer in stack.layers) else ():
            call = partial(_run, part, batch)
            if not observe(part, call).error:
                return path, call
    return None


def _parts(body: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a model that take inputs of a batch by themselves, the outermost first."""
    return [(path, module) for path, module in body.named_modules() if path and reads_inputs(module)]


def _run(part: nn.Module, batch: Mapping[str, Any]) -> Any:
    return part(**batch, **without_cache(part))
