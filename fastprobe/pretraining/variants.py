"""What is trained: the variants by name, and their size."""

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
"""Name -> what it changes in a ``BertVariantConfig``; ``attention-for-ffn`` has more layers besides."""

LEARNING_RATE = 1e-3
LEARNING_RATES = {"attention-for-ffn": 3e-4, "linear-attention": 1e-4, "no-skip": 1e-4}
"""By default; and of variants that stay at the unigram loss with it (4 layers of width 128, 8,000 steps)."""


@dataclass(frozen=True)
class Size:
    """The size of a BERT."""

    layers: int = 4
    hidden_size: int = 128
    heads: int = 2
    ffn_size: int = 512
    vocab_size: int = 8192
    max_seq_len: int = 128

    def check(self) -> None:
        """Raise for a size that no BERT has.

        Raises:
            InputError: a number is below 1, or the heads do not share the width evenly.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name}: must be 1 or more, got {value}")
        if self.hidden_size % self.heads:
            raise InputError(f"heads: {self.heads} do not divide a hidden_size of {self.hidden_size} evenly")


@dataclass(frozen=True)
class Variant:
    """What differs from BERT."""

    name: str
    changes: dict[str, Any]
    no_skip: tuple[int, ...] = ()
    layers_for_ffn: bool = False  # as many layers as make up for the parameters of the FFNs
    learning_rate: float = LEARNING_RATE

    @classmethod
    def parse(cls, text: str) -> Variant:
        """A variant by name; ``+`` joins several: ``no-ffn+gelu-attention``, ``no-skip:1,3-5``.

        Raises:
            InputError: there is no such variant, or two change the same thing.
        """
        changes: dict[str, Any] = {}
        no_skip: list[int] = []
        parts = text.split("+")
        for part in parts:
            name, colon, layers = part.partition(":")
            if name not in VARIANTS:
                raise InputError(f"variant: {name!r} is not one of {', '.join(VARIANTS)}")
            if bool(colon) != (name == "no-skip"):
                raise InputError(f"variant: {part!r}: layers go with no-skip and only there, as in no-skip:0,2-4")
            if colon:
                no_skip += [layer for piece in layers.split(",") for layer in range(*parse_range(piece))]
            for key in VARIANTS[name].keys() & changes.keys():
                raise InputError(f"variant: {text!r} changes {key.replace('_', ' ')} twice; leave one of the two out")
            changes |= VARIANTS[name]
        rate = min(LEARNING_RATES.get(part.partition(":")[0], LEARNING_RATE) for part in parts)
        return cls(text, changes, tuple(sorted(set(no_skip))), "attention-for-ffn" in parts, rate)

    def config(self, size: Size, **options: Any) -> Any:
        """The ``BertVariantConfig`` of this variant at a size.

        Args:
            size: layers, widths and vocabulary.
            options: more fields of the configuration.

        Raises:
            InputError: a layer that is to lose its skip connections is not there.
        """
        from fastprobe.models.bert_variants import BertVariantConfig  # here, as it brings Transformers

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
            initializer_range=0.02 * (768 / size.hidden_size) ** 0.5,  # as spread after a product as in BERT-base
            **options,
        )
