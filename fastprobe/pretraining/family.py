"""The small set of variants that the paper's questions on FFNs and skip connections need, trained side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError, NumericalError
from fastprobe.pretraining.corpus import Corpus
from fastprobe.pretraining.result import Pretraining
from fastprobe.pretraining.run import can_resume, pretrain
from fastprobe.pretraining.variants import Variant
from fastprobe.runtime.files import write_text

BERT = "bert"
SMALL_SET = (
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
HELD_OUT = "held-out.jsonl"


@dataclass(frozen=True)
class Trained:
    """One variant, and what came of its training."""

    variant: str
    folder: Path
    """Where the model is, if there is one."""
    command: str
    """What trains it again."""
    result: Pretraining | None
    failure: str = ""
    """Why there is none."""


def pretrain_variants(
    text: Any,
    folder: str | Path,
    variants: Iterable[str] = SMALL_SET,
    *,
    vocab_size: int = 4096,
    max_seq_len: int = 128,
    tokens: int | None = None,
    text_column: str = "text",
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    words: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> list[Trained]:
    """Train BERT and variants of it on one text, each by :func:`pretrain` and into a folder of its name.

    All get the same tokenizer, sequences and held-out tokens, so that their losses can be compared. The sequences that
    none of them was trained on are left as text in ``folder/held-out.jsonl``. A training that diverges is reported by
    its :class:`Trained`, and the others go on.

    Args:
        text: as for :func:`pretrain`, and read once.
        folder: where the folders of the models go.
        variants: what to train, as for :func:`pretrain`; ``bert`` is trained first in any case.
        vocab_size: of the tokenizer that is trained on the text.
        max_seq_len: tokens of every sequence, special tokens included.
        tokens: read no more than these of the text.
        text_column: where the text of a ``.jsonl`` line or a dataset's row is.
        seed: of weights, order, masks and dropout.
        resume: go on with the models that are finished or begun in ``folder``; those of other options are refused.
        progress: show bars.
        words: the text as it is typed behind ``fastprobe pretrain``, for the commands.
        say: is told which variant is trained.
        options: sizes and rates, as for :func:`pretrain`.

    Returns:
        one entry a variant, ``bert`` first.

    Raises:
        InputError: as for :func:`pretrain`; or ``folder`` holds models and ``resume`` is not asked for.

    Example:
        >>> trained = fp.pretrain_variants(None, "models", ["no-ffn", "no-skip:1"], steps=4000)  # doctest: +SKIP
    """
    names = list(dict.fromkeys([BERT, *variants]))
    for name in names:
        Variant.parse(name)
    folders = {name: Path(folder) / name for name in names}
    begun = {name for name, path in folders.items() if can_resume(path)}
    if begun and not resume:
        raise InputError(f"out: {folder} holds models; go on with them with --resume, or choose another folder")
    corpus = Corpus.read(
        text, vocab_size=vocab_size, max_seq_len=max_seq_len, tokens=tokens, text_column=text_column, seed=seed
    )
    sizes = {"vocab_size": vocab_size, "max_seq_len": max_seq_len, "seed": seed} | options
    trained = []
    for number, name in enumerate(names, 1):
        say(f"{number}/{len(names)} {'taking' if name in begun else 'training'} {name}")
        command = _command(name, folders[name], words, sizes)
        result, failure = None, ""
        try:
            result = pretrain(
                corpus, folders[name], variant=name, seed=seed, resume=name in begun, progress=progress, **options
            )
        except NumericalError as error:
            failure = str(error)
        trained.append(Trained(name, folders[name], command, result, failure))
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
