"""Variants of BERT by name, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastprobe.errors import InputError
from fastprobe.models.points import parse_range

VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "no-ffn": {"ffn": "none"},
    "attention-for-ffn": {"ffn": "none"},
    "gelu-attention": {"attention_gelu": True},
    "linear-attention": {"attention": "linear"},
    "linear-ffn": {"ffn": "linear"},
    "no-skip": {},
    "weighted-skip": {"weighted_skip": True},
    "shared-layers": {"shared_layers": True},
}
"""Name -> changed fields of a ``BertVariantConfig``. ``attention-for-ffn`` also has more layers."""

LEARNING_RATE = 1e-3
"""The default learning rate."""
LEARNING_RATES = {"attention-for-ffn": 3e-4, "linear-attention": 1e-4, "no-skip": 1e-4}
"""Learning rates of variants that do not get below the unigram loss at 1e-3 (4 layers of width 128, 8,000 steps)."""


@dataclass(frozen=True)
class Size:
    """Sizes of a BERT model."""

    layers: int = 4
    hidden_size: int = 128
    heads: int = 2
    ffn_size: int = 512
    vocab_size: int = 8192
    max_seq_len: int = 128

    def check(self) -> None:
        """Raise an error if no BERT can have this size.

        Raises:
            InputError: a number is below 1, or ``heads`` does not divide ``hidden_size``.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name}: must be 1 or more, got {value}")
        if self.hidden_size % self.heads:
            raise InputError(f"heads: {self.heads} do not divide a hidden_size of {self.hidden_size} evenly")


@dataclass(frozen=True)
class Variant:
    """A modification of BERT."""

    name: str
    changes: dict[str, Any]
    no_skip: tuple[int, ...] = ()
    layers_for_ffn: bool = False  # more layers, in place of the parameters of the FFNs
    learning_rate: float = LEARNING_RATE

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Parse the name of a variant: ``bert``, ``no-skip:1,3-5``, ``no-ffn+gelu-attention``.

        Args:
            text: a name of :data:`VARIANTS`, or several joined by ``+``. The layers of ``no-skip`` follow a colon.

        Raises:
            InputError: a name is unknown, or two variants change the same field.
        """
        changes: dict[str, Any] = {}
        no_skip: list[int] = []
        parts = text.split("+")
        for part in parts:
            name, colon, layers = part.partition(":")
            if name not in VARIANTS:
                raise InputError(f"variant: {name!r} is not one of {', '.join(VARIANTS)}")
            if bool(colon) != (name == "no-skip"):
                raise InputError(
                    f"variant: {part!r}: no-skip must have layers, as in no-skip:0,2-4, and no other variant"
                )
            if colon:
                no_skip += [layer for piece in layers.split(",") for layer in range(*parse_range(piece))]
            for key in VARIANTS[name].keys() & changes.keys():
                raise InputError(f"variant: {text!r} changes {key.replace('_', ' ')} twice; leave one of the two out")
            changes |= VARIANTS[name]
        rate = min(LEARNING_RATES.get(part.partition(":")[0], LEARNING_RATE) for part in parts)
        return cls(text, changes, tuple(sorted(set(no_skip))), "attention-for-ffn" in parts, rate)

    def config(self, size: Size, **options: Any) -> Any:
        """Return the ``BertVariantConfig`` of this variant at a size.

        Args:
            size: layers, widths and vocabulary.
            options: further fields of the configuration.

        Raises:
            InputError: a layer of ``no-skip`` does not exist.
        """
        from fastprobe.models.bert_variants import BertVariantConfig  # here, because it imports Transformers

        for layer in self.no_skip:
            if not 0 <= layer < size.layers:
                raise InputError(f"variant: {self.name!r}: there is no layer {layer} among 0 to {size.layers - 1}")
        return BertVariantConfig(
            **self.changes,
            no_skip_layers=self.no_skip,
            num_hidden_layers=size.layers,
            hidden_size=size.hidden_size,
            num_attention_heads=size.heads,
            intermediate_size=size.ffn_size,
            vocab_size=size.vocab_size,
            max_position_embeddings=size.max_seq_len,
            initializer_range=0.02 * (768 / size.hidden_size) ** 0.5,  # products have the same variance as in BERT-base
            **options,
        )
