"""``pretrain()``: a BERT, or a variant of it, from text to a folder that Transformers loads."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastprobe.errors import InputError
from fastprobe.pretraining.corpus import Corpus
from fastprobe.pretraining.costs import BERT, Costs, matched
from fastprobe.pretraining.result import Pretraining
from fastprobe.pretraining.variants import Size, Variant
from fastprobe.results.result import load
from fastprobe.runtime.files import check_folder, write_text
from fastprobe.runtime.journal import differing
from fastprobe.runtime.random_state import random_state_kept

CHECKPOINTS = "checkpoints"
OPTIONS = "options.json"


@random_state_kept()
def pretrain(
    text: Any,
    out: str | Path,
    *,
    variant: str = "bert",
    layers: int = 4,
    hidden_size: int = 128,
    heads: int | None = None,
    ffn_size: int | None = None,
    vocab_size: int = 4096,
    tokenizer: Any = None,
    max_seq_len: int = 128,
    tokens: int | None = None,
    text_column: str = "text",
    match: str = "none",
    steps: int = 8000,
    batch_size: int = 8,
    learning_rate: float | None = None,
    warmup: float = 0.1,
    dropout: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
    trainer: Mapping[str, Any] | None = None,
) -> Pretraining:
    """Train BERT, or a variant of it, from scratch as a masked language model.

    One sequence in 20 is held out. The loss on it is to be read against ``unigram_loss``, that of predicting each
    hidden token by its frequency: what a model learns of words in their context begins below. Same seed, machine and
    number of threads, same numbers. Under ``torchrun`` every process takes ``batch_size`` sequences a step.

    Args:
        text: as for :func:`fastprobe.token_batches`; ``None`` for the documentation that is installed with Python; or a
            :class:`fastprobe.pretraining.Corpus`, which is read already, by a tokenizer and in a length of its own.
        out: folder for the model, its tokenizer and the result; checkpoints are there until the training is done.
        variant: what differs from BERT: ``bert``, ``no-ffn``, ``attention-for-ffn``, ``gelu-attention``,
            ``linear-attention``, ``linear-ffn``, ``no-skip:LAYERS``, ``weighted-skip``, ``shared-layers``; several
            are joined by ``+``.
        layers: of BERT; see ``match``.
        hidden_size: width of a state.
        heads: by default heads of width 64.
        ffn_size: width inside the FFN; by default four times ``hidden_size``.
        vocab_size: of the tokenizer that is trained where none is given.
        tokenizer: a Hugging Face tokenizer with a mask token.
        max_seq_len: tokens of every sequence, special tokens included.
        tokens: read no more than these of the text.
        text_column: where the text of a ``.jsonl`` line or a dataset's row is.
        match: what a variant has as much of as BERT at these sizes: ``"parameters"`` in its layers, by another number
            of layers; ``"compute"``, by another number of steps; or ``"none"``.
        steps: of the optimiser; see ``match``.
        batch_size: sequences a step.
        learning_rate: the highest; it rises over ``warmup`` and falls linearly to zero. By default 1e-3; with
            that some variants learn nothing beyond frequencies: 3e-4 for ``attention-for-ffn``, which has more layers,
            and 1e-4 for ``linear-attention`` and ``no-skip``.
        warmup: share of the steps.
        dropout: of states and of attention weights.
        seed: of weights, order, masks and dropout.
        device: ``"auto"`` for the GPUs where there are any, or ``"cpu"``.
        resume: go on from the last checkpoint in ``out``, to the same numbers; what is finished there is returned.
        progress: show a bar.
        trainer: more fields of ``transformers.TrainingArguments``, like ``{"bf16": True}``.

    Returns:
        the losses, and the costs of the model beside those of BERT; also saved in ``out``.

    Raises:
        InputError: a size, name or text cannot be used, ``accelerate`` is not installed, ``out`` holds checkpoints
            that are not to be gone on with, or what is to be gone on with is of other options.
        NumericalError: the training diverged.

    Example:
        >>> fp.pretrain(Path("text.txt"), "no-ffn", variant="no-ffn", match="parameters")  # doctest: +SKIP
    """
    started = time.perf_counter()
    chosen = Variant.parse(variant)
    learning_rate = chosen.learning_rate if learning_rate is None else learning_rate
    heads = max(1, hidden_size // 64) if heads is None else heads
    ffn_size = 4 * hidden_size if ffn_size is None else ffn_size
    Size(layers, hidden_size, heads, ffn_size, vocab_size, max_seq_len).check()
    for name, value in {"steps": steps, "batch_size": batch_size}.items():
        if value < 1:
            raise InputError(f"{name}: must be 1 or more, got {value}")
    _need_accelerate()
    out = Path(out)
    _refuse_to_overwrite(out, resume)
    check_folder(out)  # before a tokenizer is trained

    if isinstance(text, Corpus):
        corpus = text
    else:
        corpus = Corpus.read(
            text,
            tokenizer,
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            tokens=tokens,
            text_column=text_column,
            seed=seed,
        )
    asked = Size(layers, hidden_size, heads, ffn_size, len(corpus.tokenizer), corpus.train.shape[1])
    size, steps_matched = matched(chosen, asked, steps, match)
    fields = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = chosen.config(size, pad_token_id=corpus.tokenizer.pad_token_id, **fields)
    costs, bert_costs = Costs.of(config), Costs.of(BERT.config(asked))
    options = {
        "variant": variant,
        **vars(size),
        "match": match,
        "corpus": f"{len(corpus.train)} sequences, {zlib.crc32(corpus.train.numpy().tobytes()):08x}",
        "steps": steps_matched,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "dropout": dropout,
        "seed": seed,
        "trainer": dict(trainer or {}),
    }
    if resume and not _begun(out):
        return _finished(out, options)

    from fastprobe.pretraining.loop import arguments_of, save_model, train  # here, as they bring Transformers' trainer

    arguments = arguments_of(
        out / CHECKPOINTS,
        steps=steps_matched,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        seed=seed,
        use_cpu=device == "cpu",
        more=trainer or {},
    )
    _keep_options(out, options, resume)
    model, history = train(config, arguments, corpus, resume=resume, progress=progress)
    result = Pretraining(
        options
        | {
            "tokens": history[-1]["tokens"],
            "held_out_tokens": int((corpus.labels != -100).sum()),
            "unigram_loss": corpus.unigram_loss(),
            "steps_asked": steps,
            "held_out_loss": history[-1]["held_out_loss"],
            "costs": vars(costs),
            "costs_of_bert": vars(bert_costs),
            "training_flops": 3 * costs.flops_per_token * history[-1]["tokens"],
            "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - started, 1),
        },
        history,
    )
    if arguments.process_index == 0:
        save_model(model, corpus.tokenizer, out, plain=not chosen.changes and not chosen.no_skip)
        result.save(out)
        shutil.rmtree(out / CHECKPOINTS)
        (out / OPTIONS).unlink()
    return result


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("pretrain: Transformers' Trainer needs accelerate: pip install 'fastprobe[train]'")


def _refuse_to_overwrite(out: Path, resume: bool) -> None:
    if _begun(out) and not resume:
        raise InputError(f"out: {out} holds checkpoints; go on from them with --resume, or choose another folder")
    if resume and not can_resume(out):
        raise InputError(f"--resume: there are no checkpoints in {out} to go on from; leave it out to start anew")


def can_resume(out: Path) -> bool:
    """Whether a training was begun or finished in a folder."""
    return _begun(out) or (out / "scores.json").exists()


def _begun(out: Path) -> bool:
    return any((out / CHECKPOINTS).glob("checkpoint-*"))


def _finished(out: Path, options: dict[str, Any]) -> Pretraining:
    """The result of a run of these options that came to its end."""
    result = load(out)
    if not isinstance(result, Pretraining):
        raise InputError(f"--resume: {out} holds no model that was trained but a {result.kind}; name another folder")
    _compare(out, options, result.config)
    return result


def _keep_options(out: Path, options: dict[str, Any], resume: bool) -> None:
    """Write down what is run, or compare it with what was."""
    text = json.dumps(options, sort_keys=True)
    if resume:
        _compare(out, options, json.loads((out / OPTIONS).read_text(encoding="utf-8")))
    elif int(os.environ.get("RANK", "0")) == 0:
        write_text(out / OPTIONS, text)


def _compare(out: Path, options: dict[str, Any], before: dict[str, Any]) -> None:
    other = differing(json.loads(json.dumps(options)), {key: before.get(key) for key in options})
    if other:
        raise InputError(f"--resume: {out} is of a run with another {other}; start anew in a new folder")
