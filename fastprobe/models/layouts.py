"""The table of known layer layouts: names of the modules inside one layer, by model family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import nn


@dataclass(frozen=True)
class Layout:
    """Names of the modules inside a layer, relative to it. Families with the same names share one row."""

    family: str
    post_ln: bool  # LayerNorm after each residual sum (2018 encoders), or before each sub-layer
    attn_proj: str  # W_O: concatenated heads -> attention output
    attn_norm: str
    mlp_proj: str  # second matrix of the FFN: activations -> FFN output; "" in a layer without FFN
    mlp_norm: str
    attn_post_norm: str = ""  # norm of the attention output before it is added to the residual stream
    mlp_post_norm: str = ""  # the same for the FFN output
    attn_skip: str = ""  # module that adds the skip connection, where it is no plain sum
    mlp_skip: str = ""

    @property
    def attn(self) -> str:
        """The attention module."""
        return self.attn_proj.rpartition(".")[0]

    @property
    def mlp(self) -> str:
        """The FFN module."""
        return self.mlp_proj.rpartition(".")[0] or self.mlp_proj

    def fits(self, layer: nn.Module) -> bool:
        """Return whether a layer has every module of this layout."""
        names = dict(layer.named_modules())
        return all(getattr(self, field.name) in names for field in fields(self)[2:])


# The first row that fits is taken. A row with more names stands before a row with fewer.
LAYOUTS = (
    Layout(
        "BERT with weighted skips",
        True,
        "attention.output.dense",
        "attention.output.LayerNorm",
        "output.dense",
        "output.LayerNorm",
        attn_skip="attention.output.skip",
        mlp_skip="output.skip",
    ),
    Layout(
        "BERT without FFN",
        True,
        "attention.output.dense",
        "attention.output.LayerNorm",
        "",
        "",
        attn_skip="attention.output.skip",
    ),
    Layout("BERT", True, "attention.output.dense", "attention.output.LayerNorm", "output.dense", "output.LayerNorm"),
    Layout("DistilBERT", True, "attention.out_lin", "sa_layer_norm", "ffn.lin2", "output_layer_norm"),
    Layout("GPT-2", False, "attn.c_proj", "ln_1", "mlp.c_proj", "ln_2"),
    Layout(
        "Gemma",
        False,
        "self_attn.o_proj",
        "input_layernorm",
        "mlp.down_proj",
        "pre_feedforward_layernorm",
        attn_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    Layout("Llama", False, "self_attn.o_proj", "input_layernorm", "mlp.down_proj", "post_attention_layernorm"),
    Layout("GPT-NeoX", False, "attention.dense", "input_layernorm", "mlp.dense_4h_to_h", "post_attention_layernorm"),
    Layout("ModernBERT", False, "attn.Wo", "attn_norm", "mlp.Wo", "mlp_norm"),
)


def layout_of(layers: Iterable[nn.Module]) -> Layout | None:
    """Return the first layout of the table that fits every layer, else ``None``."""
    layers = list(layers)
    return next((layout for layout in LAYOUTS if all(layout.fits(layer) for layer in layers)), None)
