"""Weights that Accelerate keeps in host memory or on disk: bring them in once for many calls, and read them ahead.

Accelerate puts a hook on each module of an offloaded layer. The hook loads the weights of the module before every call
and drops them after it. Accelerate itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


def offload_hooks(module: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Yield the modules inside a module whose weights are offloaded, each with its hook."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # a SequentialHook holds several
            if getattr(one, "offload", False) and getattr(one, "weights_map", None) is not None:
                yield part, one


@contextmanager
def weights_present(*modules: nn.Module) -> Iterator[None]:
    """Load the offloaded weights of some modules for the time of a block, instead of once for every call.

    Modules without offloaded weights stay as they are.
    """
    with ExitStack() as on_exit:
        for module in modules:
            for part, hook in offload_hooks(module):
                hook.pre_forward(part)
                hook.offload = False  # so that calls inside the block neither load nor drop the weights
                on_exit.callback(_drop, part, hook)
        yield


def read_ahead(module: nn.Module) -> None:
    """Read the offloaded weights of a module once, so that the system has their files in memory when they are used."""
    for part, hook in offload_hooks(module):
        for name, _ in part.named_parameters(recurse=bool(hook.place_submodules)):
            hook.weights_map[name].clone()


def _drop(module: nn.Module, hook: Any) -> None:
    hook.offload = True
    hook.post_forward(module, None)
