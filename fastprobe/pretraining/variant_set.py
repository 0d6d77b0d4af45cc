"""``pretrain_variants()``: train BERT and a set of variants on the same text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError, NumericalError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.pretraining.corpus import Corpus
from fastprobe.pretraining.result import Pretraining
from fastprobe.pretraining.resume import can_resume
from fastprobe.pretraining.run import pretrain
from fastprobe.pretraining.variants import Variant
from fastprobe.runtime.files import write_text

BERT = "bert"
DEFAULT_VARIANTS = (
    BERT,
    "no-ffn",
    "linear-ffn",
    "attention-for-ffn",
    "gelu-attention",
    "linear-attention",
    "no-skip:1",
    "no-skip:1,2",
    "weighted-skip",
    "shared-layers",
)
"""The variants that test the paper's claims about FFNs, skip connections and shared weights."""
HELD_OUT = "held-out.jsonl"
"""File with the held-out text."""


@dataclass(frozen=True)
class TrainedVariant:
    """A variant and the outcome of its training."""

    variant: str
    folder: Path
    """Folder of the model, if the training succeeded."""
    command: str
    """Command that repeats the training."""
    result: Pretraining | None
    """The losses; ``None`` if the training failed."""
    failure: str = ""
    """Reason of the failure; empty if the training succeeded."""


@plain_numbers
def pretrain_variants(
    text: Any,
    folder: str | Path,
    variants: Iterable[str] = DEFAULT_VARIANTS,
    *,
    vocab_size: int = 4096,
    max_seq_len: int = 128,
    tokens: int | None = None,
    text_column: str = "text",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    words: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> list[TrainedVariant]:
    """Train BERT and variants of it on one text, each by :func:`pretrain` into a folder of its name.

    All models get the same tokenizer, sequences and masked tokens, so their losses can be compared. The held-out
    sequences are written as text to ``folder/held-out.jsonl``. If one training diverges, the others continue, and its
    :class:`fastprobe.pretraining.TrainedVariant` gives the reason.

    Args:
        text: as for :func:`pretrain`. It is read once.
        folder: parent folder of the models.
        variants: names of variants, as for :func:`pretrain`. ``bert`` is always trained, and first.
        vocab_size: vocabulary size of the tokenizer that is trained on the text.
        max_seq_len: tokens of every sequence, including special tokens.
        tokens: read at most this many tokens of the text.
        text_column: name of the text column of ``.jsonl`` files and datasets.
        seed: seed of weights, data order, masking and dropout.
        resume: load finished models in ``folder`` and continue unfinished ones. Their options must be the same.
        overwrite: replace the models that ``folder`` holds.
        progress: show progress bars.
        words: the text as arguments of ``fastprobe pretrain``, for the commands.
        say: called with a line of text before each training.
        options: sizes and rates, as for :func:`pretrain`.

    Returns:
        one entry for each variant, ``bert`` first.

    Raises:
        InputError: as for :func:`pretrain`; or ``folder`` holds models, and neither ``resume`` nor ``overwrite`` is
            true.

    Example:
        >>> trained = fp.pretrain_variants(None, "models", ["no-ffn", "no-skip:1"], steps=4000)  # doctest: +SKIP
    """
    names = list(dict.fromkeys([BERT, *variants]))
    for name in names:
        Variant.parse(name)
    folders = {name: Path(folder) / name for name in names}
    present = {name for name, path in folders.items() if can_resume(path)}
    if present and not resume and not overwrite:
        other = "replace them with --overwrite, or choose another folder"
        raise InputError(f"out: {folder} holds models; continue with --resume, {other}")
    corpus = Corpus.read(
        text, vocab_size=vocab_size, max_seq_len=max_seq_len, tokens=tokens, text_column=text_column, seed=seed
    )
    sizes = {"vocab_size": vocab_size, "max_seq_len": max_seq_len, "seed": seed} | options
    trained = []
    for number, name in enumerate(names, 1):
        say(f"{number}/{len(names)} {'loading' if resume and name in present else 'training'} {name}")
        command = _command(name, folders[name], words, sizes)
        result, failure = None, ""
        try:
            result = pretrain(
                corpus,
                folders[name],
                variant=name,
                seed=seed,
                resume=resume and name in present,
                overwrite=overwrite,
                progress=progress,
                **options,
            )
        except NumericalError as error:
            failure = str(error)
        trained.append(TrainedVariant(name, folders[name], command, result, failure))
    held_out = (json.dumps({"text": words}) + "\n" for words in corpus.held_out_text() if words)
    write_text(Path(folder) / HELD_OUT, "".join(held_out))
    return trained


def _command(variant: str, folder: Path, text: Sequence[str], options: Mapping[str, Any]) -> str:
    words = ["fastprobe", "pretrain", *text, "--variant", variant]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name == "trainer":
            words += [word for field, v in (value or {}).items() for word in (option, f"{field}={json.dumps(v)}")]
        elif value not in (None, "auto"):
            words += [option, str(value)]
    return shlex.join([*words, "-o", str(folder)])
