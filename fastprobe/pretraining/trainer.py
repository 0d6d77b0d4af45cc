"""Training with Transformers' ``Trainer``. Masking and the held-out loss depend only on the text and the seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from fastprobe.errors import NumericalError
from fastprobe.models.bert_variants import BertVariantForMaskedLM
from fastprobe.pretraining.corpus import Corpus
from fastprobe.pretraining.held_out import held_out_loss
from fastprobe.pretraining.masking import mask_tokens
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.runtime.progress import Bar

COLUMNS = {"loss": "loss", "eval_loss": "held_out_loss", "eval_loss_se": "held_out_loss_se"}
"""Key in the log of the trainer -> column of a row."""


def train(
    config: Any, arguments: TrainingArguments, corpus: Corpus, *, resume: bool, progress: bool
) -> tuple[Any, list[dict[str, Any]]]:
    """Train a masked language model. The first Ctrl-C writes a checkpoint before it raises ``KeyboardInterrupt``.

    Args:
        config: a ``BertVariantConfig``.
        arguments: arguments of the trainer.
        corpus: training and held-out sequences.
        resume: continue from the last checkpoint.
        progress: show a progress bar on standard error.

    Returns:
        the ``BertVariantForMaskedLM``, and the rows of a :class:`fastprobe.Pretraining`.
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
    if rows[arguments.max_steps]["held_out_loss"] is None:  # the last step is no multiple of the evaluation interval
        trainer.evaluate()
        last = trainer.state.log_history[-1]
        rows[arguments.max_steps] |= {name: last[key] for key, name in COLUMNS.items() if key in last}
    return model, list(rows.values())


def save_model(model: Any, tokenizer: Any, folder: Path, *, plain: bool) -> None:
    """Save a model and its tokenizer in the format of Transformers.

    Args:
        model: a ``BertVariantForMaskedLM``.
        tokenizer: the tokenizer of the model.
        folder: destination.
        plain: the model is an unmodified BERT. It is saved as ``BertForMaskedLM``, which loads without remote code.
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
    """A ``Trainer`` of a masked language model on a corpus.

    Args:
        model: a ``BertVariantForMaskedLM``.
        arguments: arguments of the trainer.
        corpus: training and held-out sequences.
        pressed: not empty once Ctrl-C was pressed. Then the trainer writes a checkpoint and stops.
        progress: show a progress bar on standard error.
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
            data_collator=lambda rows: _masked_batch(rows, corpus.tokenizer, arguments.seed),
            train_dataset=corpus.train,
            eval_dataset=corpus.held_out,
            callbacks=[_ProgressAndInterrupt(pressed, progress)],
        )
        self.remove_callback(PrinterCallback)
        self.corpus = corpus

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute and log the held-out loss. Every process computes it on all held-out sequences.

        Raises:
            NumericalError: the loss is NaN or infinite.
        """
        loss, error = held_out_loss(self.model, self.corpus)
        if not math.isfinite(loss):
            step = self.state.global_step
            raise NumericalError(f"pretrain: the held-out loss is {loss} at step {step}; choose a lower learning_rate")
        metrics = {"eval_loss": loss, "eval_loss_se": error}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _masked_batch(rows: list[Tensor], tokenizer: Any, seed: int) -> dict[str, Tensor]:
    masked, labels = mask_tokens(torch.stack(rows).long(), tokenizer, seed)
    return {"input_ids": masked, "labels": labels}


class _ProgressAndInterrupt(TrainerCallback):
    """Progress bar on standard error, and a checkpoint when Ctrl-C is pressed."""

    def __init__(self, pressed: list[int], progress: bool):
        self.pressed, self.progress = pressed, progress
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        disable = not (self.progress and state.is_world_process_zero)
        self.bar = Bar(total=state.max_steps, initial=state.global_step, unit=" steps", leave=False, disable=disable)

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
