"""Transformers' ``Trainer``, with masks and a held-out loss that depend on nothing but the seed."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from fastprobe.errors import InputError, NumericalError
from fastprobe.models.bert_variants import BertVariantForMaskedLM
from fastprobe.models.calling import device_of, evaluating
from fastprobe.pretraining.corpus import Corpus, hide
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.runtime.progress import Bar

HELD_OUT_BATCH = 64
RECORDS = 10
APART = 2000
"""Steps between two rows of a result, and two checkpoints, are a tenth of all, and no more than this."""


def arguments_of(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    seed: int,
    use_cpu: bool,
    more: Mapping[str, Any],
) -> TrainingArguments:
    """The arguments of the training.

    Args:
        folder: for checkpoints.
        steps: of the optimiser.
        batch_size: sequences a step and process.
        learning_rate: the highest.
        warmup: share of the steps.
        seed: of weights, order, masks and dropout.
        use_cpu: even where there is a GPU.
        more: other fields, which come before those above.

    Raises:
        InputError: a field is unknown, or a value cannot be used.
    """
    apart = max(1, min(steps // RECORDS, APART))
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": math.ceil(warmup * steps),
        "weight_decay": 0.01,
        "seed": seed,
        "use_cpu": use_cpu,
        "logging_steps": apart,
        "eval_strategy": "steps",
        "eval_steps": apart,
        "eval_on_start": True,
        "save_steps": apart,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not use_cpu and torch.cuda.is_available(),
    }
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in more.keys() - known:
        like = ", ".join(difflib.get_close_matches(name, known)) or "bf16, gradient_accumulation_steps"
        raise InputError(f"trainer: {name!r} is no field of transformers.TrainingArguments; some are {like}")
    try:
        return TrainingArguments(**(fields | dict(more)))
    except (TypeError, ValueError) as error:
        raise InputError(f"trainer: {str(error).splitlines()[0]}") from None


def train(
    config: Any, arguments: TrainingArguments, corpus: Corpus, *, resume: bool, progress: bool
) -> tuple[Any, list[dict[str, Any]]]:
    """A ``BertVariantForMaskedLM`` of a configuration, trained, and the rows of a result.

    A first Ctrl-C writes a checkpoint before it is let through.
    """
    set_seed(arguments.seed)
    model = BertVariantForMaskedLM(config)
    with uninterrupted() as pressed:
        trainer = MaskedTrainer(model, arguments, corpus, pressed, progress)
        trainer.train(resume_from_checkpoint=resume)
    per_step = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    rows: dict[int, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        step = int(entry["step"])
        row = rows.setdefault(
            step, {"step": step, "tokens": step * per_step * corpus.train.shape[1]} | dict.fromkeys(COLUMNS.values())
        )
        row |= {name: entry[key] for key, name in COLUMNS.items() if key in entry}
    if rows[arguments.max_steps]["held_out_loss"] is None:  # the number of records does not divide that of the steps
        trainer.evaluate()
        last = trainer.state.log_history[-1]
        rows[arguments.max_steps] |= {name: last[key] for key, name in COLUMNS.items() if key in last}
    return model, list(rows.values())


COLUMNS = {"loss": "loss", "eval_loss": "held_out_loss", "eval_loss_se": "held_out_loss_se"}
"""Key of a log of the trainer -> column of a row."""


def save_model(model: Any, tokenizer: Any, folder: Path, *, plain: bool) -> None:
    """Write a model and its tokenizer as Transformers loads them.

    Args:
        model: a ``BertVariantForMaskedLM``.
        tokenizer: what it was trained with.
        folder: where they go.
        plain: the model is BERT and is saved as such, so that nothing else is needed to load it.
    """
    if plain:
        known = BertConfig().to_dict().keys() - {"model_type", "architectures"}
        bert = BertForMaskedLM(
            BertConfig(**{key: value for key, value in model.config.to_dict().items() if key in known})
        )
        bert.load_state_dict(model.state_dict())
        model = bert
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class MaskedTrainer(Trainer):
    """The trainer of a masked language model on a corpus.

    Args:
        model: a ``BertVariantForMaskedLM``.
        arguments: of the training.
        corpus: what is trained on and what is held out.
        pressed: has something in it once a Ctrl-C waits; then a checkpoint is written and the training stops.
        progress: show a bar.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        corpus: Corpus,
        pressed: list[int],
        progress: bool,
    ):
        super().__init__(
            model,
            arguments,
            data_collator=lambda rows: _batch(rows, corpus.tokenizer, arguments.seed),
            train_dataset=corpus.train,
            eval_dataset=corpus.held_out,
            callbacks=[_Watch(pressed, progress)],
        )
        self.remove_callback(PrinterCallback)
        self.corpus = corpus

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out loss, over every hidden token; each process computes all of it."""
        loss, error = held_out_loss(self.model, self.corpus)
        if not math.isfinite(loss):
            step = self.state.global_step
            raise NumericalError(f"pretrain: the held-out loss is {loss} at step {step}; choose a lower learning_rate")
        metrics = {"eval_loss": loss, "eval_loss_se": error}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _batch(rows: list[Tensor], tokenizer: Any, seed: int) -> dict[str, Tensor]:
    hidden, labels = hide(torch.stack(rows).long(), tokenizer, seed)
    return {"input_ids": hidden, "labels": labels}


@torch.no_grad()
def held_out_loss(model: Any, corpus: Corpus) -> tuple[float, float]:
    """Mean cross-entropy of the hidden tokens, in nats, and its standard error over sequences."""
    losses, counts = [], []
    with evaluating(model):
        for ids, labels in zip(corpus.held_out.split(HELD_OUT_BATCH), corpus.labels.split(HELD_OUT_BATCH), strict=True):
            at = (labels != -100).to(device_of(model))
            logits = model.predict(labels.to(at.device), input_ids=ids.to(at.device))
            each = torch.zeros(at.shape, device=at.device)
            each[at] = F.cross_entropy(logits.float(), labels.to(at.device)[at], reduction="none")
            losses.append(each.sum(1).double())
            counts.append(at.sum(1).double())
    loss, count = torch.cat(losses), torch.cat(counts)
    mean = loss.sum() / count.sum()
    sequences = len(loss)
    error = (loss - mean * count).square().sum().sqrt() / count.sum() * (sequences / max(1, sequences - 1)) ** 0.5
    return float(mean), float(error)


class _Watch(TrainerCallback):
    """A bar on standard error, and a checkpoint before a Ctrl-C is let through."""

    def __init__(self, pressed: list[int], progress: bool):
        self.pressed, self.progress = pressed, progress
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = not (self.progress and state.is_world_process_zero)
        self.bar = Bar(total=state.max_steps, initial=state.global_step, unit=" steps", leave=False, disable=hidden)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        if self.pressed:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        logs = more["logs"]
        names = {"loss": "loss", "eval_loss": "held-out"}
        self.shown |= {names[key]: f"{logs[key]:.3f}" for key in names.keys() & logs.keys()}
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
