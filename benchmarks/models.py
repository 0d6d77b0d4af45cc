"""Data that looks like models': the widths of real ones, and rows as their residual streams have them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe import token_batches
from fastprobe.data.demo import demo_text

Batch = dict[str, Tensor]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WIDTHS = {"MiniLM-L6": 384, "BERT-base": 768}
"""Width of the residual stream. On a GPU the larger ones are added: a CPU would take more than 2 s a contestant."""
if DEVICE.type == "cuda":
    WIDTHS |= {"BERT-large": 1024, "Llama-3.2-1B": 2048, "Llama-3.1-8B": 4096}

TOKENS = 16_384 if DEVICE.type == "cpu" else 262_144


def residual_rows(tokens: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows like the states after a LayerNorm.

    A quarter as many strong directions as columns make the columns correlated; gains differ from column to column;
    every 128th column has its mean at 30, as the massive activations of trained models; and since a LayerNorm takes the
    mean off, one direction, ``1 / gain``, has no variance at all but for the rounding of the rows.

    Args:
        tokens: number of rows.
        width: number of columns.
        generator: of the random numbers; the rows are on its device.

    Returns:
        ``(tokens, width)`` float32.
    """
    strong = max(1, width // 4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    rows = normal(tokens, strong) @ normal(strong, width) / strong**0.5 + 0.3 * normal(tokens, width)
    gain = (0.4 * normal(width)).exp()
    bias = 0.1 * normal(width)
    bias[::128] = 30
    return F.layer_norm(rows, (width,), gain, bias)


def nearly_affine(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Targets (tokens, width) that an affine map of ``x`` explains for the most part: an affine and a GELU part.

    Args:
        x: ``(tokens, D)`` float32.
        width: of the targets.
        generator: of the two maps, on the device of ``x``.

    Returns:
        ``(tokens, width)`` float32.
    """
    maps = torch.randn(2, x.shape[1], width, generator=generator, device=x.device) / x.shape[1] ** 0.5
    z = x - x.mean(0)
    return z @ maps[0] + F.gelu(z @ maps[1]) + 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def natural_batches(tokenizer: Any, tokens: int, length: int = 128, size: int = 32) -> list[Batch]:
    """Paragraphs of the demo text, one a sequence cut at ``length``, in batches as they come."""
    paragraphs = (p for text in demo_text().values() for p in re.split(r"\n\s*\n", text) if p.strip())
    sequences: list[list[int]] = []
    for paragraph in paragraphs:
        if tokens <= 0:
            break
        sequences.append(tokenizer(paragraph, truncation=True, max_length=length)["input_ids"])
        tokens -= len(sequences[-1])
    return [*_padded(sequences, size)]


def full_batches(tokenizer: Any, tokens: int, length: int = 128, size: int = 32) -> list[Batch]:
    """The demo text in sequences of exactly ``length`` tokens."""
    text = "\n".join(demo_text().values())
    batches = token_batches(text, tokenizer, tokens=tokens // length * length, max_seq_len=length, batch_size=size)
    return [{name: tensor.to(DEVICE) for name, tensor in batch.items()} for batch in batches]


def sorted_by_length(batches: Iterable[Batch]) -> list[Batch]:
    """The same sequences in batches of like lengths."""
    batches = list(batches)
    rows = [zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True) for batch in batches]
    sequences = [ids[mask].tolist() for ids, mask in itertools.chain(*rows)]
    return [*_padded(sorted(sequences, key=len), len(batches[0]["input_ids"]))]


def _padded(sequences: list[list[int]], size: int) -> Iterator[Batch]:
    for start in range(0, len(sequences), size):
        rows = [torch.tensor(ids, device=DEVICE) for ids in sequences[start : start + size]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=DEVICE)
        mask = torch.arange(ids.shape[1], device=DEVICE) < lengths[:, None]
        yield {"input_ids": ids, "attention_mask": mask.long()}
