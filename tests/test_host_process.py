"""Library calls leave the process as they found it: settings, handlers, random numbers and the model.

Each public function runs once, between two snapshots of process-wide state. ``mallopt`` settings cannot be read, so no
library call may change them at all. Only the command line may.
"""

import ast
import copy
import ctypes
import faulthandler
import gc
import inspect
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

import huggingface_hub
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import fastprobe as fp
from fastprobe.data.demo import demo_model_path, demo_text
from fastprobe.runtime import memory

pytest.importorskip("accelerate")

import accelerate  # noqa: F401  (imported now, since importing these libraries changes settings)
import jinja2  # noqa: F401
import pandas  # noqa: F401
import transformers.trainer

TEXT = list(demo_text().values())[:6]
TOY = {"hidden_size": 16, "vocab_size": 300, "max_seq_len": 24, "batch_size": 4, "steps": 2, "progress": False}
WORDS = [{"tokens": text.split()[:9], "long": [int(len(word) > 4) for word in text.split()[:9]]} for text in TEXT]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def model(tokenizer):
    """A tiny model with one module in training mode and one frozen parameter."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    size |= {"hidden_dropout_prob": 0.0}  # skip_scale refuses dropout inside a sum; that of the attention stays
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **size)).eval()
    model.bert.encoder.layer[1].train()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def batches(tokenizer):
    return fp.token_batches(TEXT, tokenizer, tokens=300, max_seq_len=24, batch_size=8)


def first_batch(batches):
    return {key: value for key, value in next(iter(batches)).items() if isinstance(value, torch.Tensor)}


def within(context, model, batches):
    """Enter a context, run the model in it with random numbers restored after its dropout, and leave it."""
    with context, torch.no_grad(), torch.random.fork_rng():
        model(**first_batch(batches))


def labelled(tokenizer):
    return list(fp.labelled_batches(WORDS, tokenizer, ["long"], batch_size=4))


def scanned(model, batches, folder):
    scan = fp.linearity(model, batches, score_sequences=4, progress=False)
    scan.plot(folder / "scan.png")
    scan.save(folder)
    fp.load(folder)
    return fp.linear_commutator(scan)


def fitted(randn):
    fit = fp.LinearFit(5, 3)
    fit.update(randn(40, 5, dtype=torch.float32), randn(40, 3, dtype=torch.float32))
    return fit.solve()


def written_mlp(model):
    changed = copy.deepcopy(model)
    fp.write_linear_mlp_(changed, 0, fp.Solution(torch.ones(16, 16), torch.ones(16), 16, 1.0, 0.0, 0.0))


CALLS = {
    "token_batches": lambda a: list(fp.token_batches(TEXT, a.tokenizer, tokens=200, max_seq_len=24)),
    "labelled_batches": lambda a: labelled(a.tokenizer),
    "linearity": lambda a: fp.linearity(a.model, a.batches, spans="all", progress=False),
    "linear_commutator": lambda a: scanned(a.model, a.batches, a.folder),
    "load": lambda a: scanned(a.model, a.batches, a.folder),
    "commutativity": lambda a: fp.commutativity(a.model, a.batches, fp.orders.swaps(3), progress=False),
    "commutator": lambda a: fp.commutator(a.model, a.batches, progress=False),
    "ablation": lambda a: fp.ablation(a.model, a.batches, elements=["mlp"], mode="linear", progress=False),
    "probe": lambda a: fp.probe(a.model, a.batches, tokenizer=a.tokenizer, progress=False),
    "pretrain": lambda a: fp.pretrain(TEXT, a.folder, layers=2, **TOY),
    "pretrain_variants": lambda a: fp.pretrain_variants(TEXT, a.folder, ["bert", "no-ffn"], layers=2, **TOY),
    "paper": lambda a: fp.paper(a.model, a.batches, a.folder, tokenizer=a.tokenizer, progress=False),
    "permute_layers": lambda a: within(fp.permute_layers(a.model, (2, 0, 1)), a.model, a.batches),
    "swap_layers": lambda a: within(fp.swap_layers(a.model, 0, 2), a.model, a.batches),
    "skip_layers": lambda a: within(fp.skip_layers(a.model, [1]), a.model, a.batches),
    "repeat_layers": lambda a: within(fp.repeat_layers(a.model, 0, 2), a.model, a.batches),
    "reverse_layers": lambda a: within(fp.reverse_layers(a.model, 0, 3), a.model, a.batches),
    "parallel_layers": lambda a: within(fp.parallel_layers(a.model, 0, 1), a.model, a.batches),
    "skip_scale": lambda a: within(fp.skip_scale(a.model, 0.5), a.model, a.batches),
    "write_linear_mlp_": lambda a: written_mlp(a.model),
    "LinearFit": lambda a: fitted(a.randn),
}


BY_TRANSFORMERS = dict.fromkeys(["pretrain", "pretrain_variants"], ("start method", "threads of Python"))
"""Changes by the bar of ``save_pretrained``: its lock fixes the start method, its monitor is a thread."""


class Arguments:
    """The fixtures of a test by name."""

    def __init__(self, **values):
        vars(self).update(values)


def test_every_public_function_is_called_here():
    functions = {name for name, value in vars(fp).items() if inspect.isfunction(value) and not name.startswith("_")}

    assert functions <= CALLS.keys()


def of_process():
    """Return what is process-wide and can be read."""
    cuda, mkldnn = torch.backends.cuda, torch.backends.mkldnn
    return {
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "defaults of torch": (torch.get_default_dtype(), torch.get_default_device()),
        "precision": (torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "backends": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, mkldnn.enabled),
        "modes": torch.overrides._get_current_function_mode_stack(),
        "warnings": (list(warnings.filters), warnings.formatwarning, warnings.showwarning),
        "verbosity": (transformers.logging.get_verbosity(), huggingface_hub.utils.logging.get_verbosity()),
        "progress bars": transformers.utils.logging.is_progress_bar_enabled(),
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy random": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch random": torch.get_rng_state().tolist(),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, sys.path[:], sys.argv[:]),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), socket.getdefaulttimeout()),
        "garbage": (gc.isenabled(), gc.get_threshold(), faulthandler.is_enabled()),
        "place": (os.getcwd(), locale.setlocale(locale.LC_ALL)),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "threads of Python": threading.enumerate(),
        "matplotlib": (dict(matplotlib.rcParams), plt.get_fignums()),
    }


def of_loggers():
    loggers = [logging.root, *(each for each in logging.root.manager.loggerDict.values() if hasattr(each, "level"))]
    return {each.name: (each.level, list(each.handlers), each.filters[:], each.disabled) for each in loggers}


def of_model(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [dict(getattr(module, kind)) for kind in hooks] for name, module in model.named_modules()},
        "modules": {name: id(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "weights": {name: (id(p), p.data_ptr(), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "config": model.config.to_dict() | {"attention": model.config._attn_implementation},
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_the_process_and_the_model_as_they_were(
    name, model, batches, tokenizer, tmp_path, randn, monkeypatch
):
    calls = []
    fake = ctypes.CDLL(None)
    if hasattr(fake, "mallopt"):
        fake.mallopt = lambda *arguments: calls.append(arguments)
    monkeypatch.setattr(memory, "_LIBC", fake)
    monkeypatch.setenv("FASTPROBE_TEST", "1")
    arguments = Arguments(model=model, batches=batches, tokenizer=tokenizer, folder=tmp_path / "out", randn=randn)
    before = of_process(), of_model(model)
    loggers = of_loggers()

    CALLS[name](arguments)

    for part, other in zip(before, (of_process(), of_model(model)), strict=True):
        for what, value in part.items():
            assert other[what] == value or what in BY_TRANSFORMERS.get(name, ()), what
    after = of_loggers()
    assert {logger: after[logger] for logger in loggers} == loggers
    assert not calls


def test_only_the_command_line_changes_how_the_process_keeps_memory():
    for path in Path(fp.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {
            getattr(node.func, "attr", getattr(node.func, "id", ""))
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        place = path.relative_to(Path(fp.__file__).parent).as_posix()
        assert "mallopt" not in called or place == "runtime/memory.py", path
        assert "keep_freed_memory" not in called or place == "cli/app.py", path
