"""``pretrain()``: train BERT or a variant of it, from text to a folder that Transformers can load."""

from __future__ import annotations

import importlib.util
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.pretraining.corpus import Corpus
from fastprobe.pretraining.costs import Costs
from fastprobe.pretraining.matching import BERT, match_bert
from fastprobe.pretraining.result import Pretraining
from fastprobe.pretraining.resume import (
    CHECKPOINTS,
    OPTIONS,
    check_output,
    finished_result,
    is_started,
    keep_options,
)
from fastprobe.pretraining.variants import Size, Variant
from fastprobe.runtime.files import check_folder
from fastprobe.runtime.random_state import random_state_kept


@random_state_kept()
@plain_numbers
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
    overwrite: bool = False,
    progress: bool = True,
    trainer: Mapping[str, Any] | None = None,
) -> Pretraining:
    """Train BERT, or a variant of it, from scratch as a masked language model.

    One sequence in 20 is held out. Compare its loss with ``unigram_loss``, the loss of predicting each masked token by
    its frequency: only a model with a lower loss uses the context. The same seed, machine and number of threads give
    the same numbers. Under ``torchrun`` every process takes ``batch_size`` sequences a step.

    Args:
        text: as for :func:`fastprobe.token_batches`; ``None`` for the documentation that is installed with Python; or a
            :class:`fastprobe.pretraining.Corpus`, which brings its own tokenizer and sequence length.
        out: folder for the model, its tokenizer and the result. It also holds checkpoints until the training is done.
        variant: modification of BERT: ``bert`` (none), ``no-ffn``, ``attention-for-ffn``, ``gelu-attention``,
            ``linear-attention``, ``linear-ffn``, ``no-skip:LAYERS``, ``weighted-skip``, ``shared-layers``, or several
            joined by ``+``.
        layers: number of layers of BERT; see ``match``.
        hidden_size: width of a hidden state.
        heads: number of attention heads; by default heads of width 64.
        ffn_size: width inside the FFN; by default four times ``hidden_size``.
        vocab_size: vocabulary size of the tokenizer that is trained if none is given.
        tokenizer: a Hugging Face tokenizer with a mask token.
        max_seq_len: tokens of every sequence, including special tokens.
        tokens: read at most this many tokens of the text.
        text_column: name of the text column of ``.jsonl`` files and datasets.
        match: match BERT at these sizes in ``"parameters"`` of the layers, by another number of layers; in
            ``"compute"`` of the training, by another number of steps; or in nothing, ``"none"``.
        steps: steps of the optimiser; see ``match``.
        batch_size: sequences a step.
        learning_rate: peak learning rate, reached after ``warmup`` and followed by a linear decay to zero. The default
            is 1e-3, and lower for variants that learn nothing beyond frequencies at 1e-3: 3e-4 for
            ``attention-for-ffn``, which has more layers, 1e-4 for ``linear-attention`` and ``no-skip``.
        warmup: share of the steps in which the learning rate rises.
        dropout: dropout of hidden states and of attention weights.
        seed: seed of weights, data order, masking and dropout.
        device: ``"auto"`` for all GPUs if there are any, or ``"cpu"``.
        resume: continue from the last checkpoint in ``out``, with the same numbers as without the interruption. The
            result of a finished run is returned.
        overwrite: replace the model and the checkpoints that ``out`` holds.
        progress: show a progress bar.
        trainer: further fields of ``transformers.TrainingArguments``, like ``{"bf16": True}``.

    Returns:
        the losses, and the parameters and FLOPs of the model and of BERT. The result is also saved in ``out``.

    Raises:
        InputError: a size, name or text is invalid, ``accelerate`` is not installed, ``out`` holds checkpoints or
            a model and neither ``resume`` nor ``overwrite`` is true, or the run to resume has other options.
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
    check_output(out, resume, overwrite)
    check_folder(out)  # an unusable folder is found before a tokenizer is trained

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
    size, matched_steps = match_bert(chosen, asked, steps, match)
    fields = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = chosen.config(size, pad_token_id=corpus.tokenizer.pad_token_id, **fields)
    costs, bert_costs = Costs.of(config), Costs.of(BERT.config(asked))
    options = {
        "variant": variant,
        **vars(size),
        "match": match,
        "corpus": f"{len(corpus.train)} sequences, {zlib.crc32(corpus.train.numpy().tobytes()):08x}",
        "steps": matched_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "dropout": dropout,
        "seed": seed,
        "trainer": dict(trainer or {}),
    }
    if resume and not is_started(out):
        return finished_result(out, options)

    # Here, because these imports take seconds.
    from fastprobe.pretraining.arguments import training_arguments
    from fastprobe.pretraining.trainer import save_model, train

    arguments = training_arguments(
        out / CHECKPOINTS,
        steps=matched_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        seed=seed,
        use_cpu=device == "cpu",
        more=trainer or {},
    )
    if overwrite and arguments.process_index == 0:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # a later resume must not find those of the former run
    keep_options(out, options, resume)
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
