"""Where each point of a model is: layers found by structure, the places inside one by a small table, both checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.points import ELEMENTS, POINTS, Point


@dataclass(frozen=True)
class Layout:
    """Names of the modules of one layer, relative to it. Every family that names them alike is one row."""

    family: str
    post_ln: bool  # LayerNorm after each residual sum (2018 encoders) or before each sub-layer
    attn_proj: str  # W_O: heads side by side -> attention output
    attn_norm: str
    mlp_proj: str  # second product of the FFN: activations -> FFN output; "" in a layer that has none
    mlp_norm: str
    attn_post_norm: str = ""  # norm of a sub-layer's output before it is added (sandwich)
    mlp_post_norm: str = ""
    attn_skip: str = ""  # what adds the state to a sub-layer's output where that is no plain sum
    mlp_skip: str = ""

    @property
    def attn(self) -> str:
        return self.attn_proj.rpartition(".")[0]

    @property
    def mlp(self) -> str:
        return self.mlp_proj.rpartition(".")[0] or self.mlp_proj

    def fits(self, layer: nn.Module) -> bool:
        names = dict(layer.named_modules())
        return all(getattr(self, field.name) in names for field in fields(self)[2:])


# The first row that fits is taken, so a row with more names stands before one with fewer.
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
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    Layout("Llama", False, "self_attn.o_proj", "input_layernorm", "mlp.down_proj", "post_attention_layernorm"),
    Layout("GPT-NeoX", False, "attention.dense", "input_layernorm", "mlp.dense_4h_to_h", "post_attention_layernorm"),
    Layout("ModernBERT", False, "attn.Wo", "attn_norm", "mlp.Wo", "mlp_norm"),
)


@dataclass(frozen=True)
class Place:
    """A side of a module: what goes in or what comes out."""

    module: str  # relative to its layer; "" is the layer
    output: bool


@dataclass(frozen=True)
class ModelPoints:
    """Where the points of a model are, and which of them are one tensor or the sum of two."""

    layers: tuple[nn.Module, ...]
    layout: Layout
    places: Mapping[str, Place]  # of the points that are read
    aliases: Mapping[str, str]  # of points that are another point of the same layer
    sums: Mapping[str, tuple[str, str]]  # of points that are the sum of two others
    parallel: bool = False  # attention and FFN read the same state: there is no state between them

    @property
    def has_ffn(self) -> bool:
        """Whether a layer has an FFN; without one it ends with its attention."""
        return bool(self.layout.mlp_proj)

    @property
    def elements(self) -> list[str]:
        """The elements that this model has: pairs of known points that are not one tensor."""
        known = {*self.places, *self.aliases, *self.sums}
        pairs = {name: pair for name, pair in ELEMENTS.items() if known.issuperset(pair)}
        return [name for name, pair in pairs.items() if len({self.canonical(Point(point, 0)) for point in pair}) == 2]

    def canonical(self, point: Point) -> Point:
        """The one name of a tensor that has several: a layer's input is the output of the layer before it."""
        name = self.aliases.get(point.name, point.name)
        if name == "resid_pre" and point.layer > 0:
            return Point("resid_post", point.layer - 1)
        return Point(name, point.layer)

    def parts(self, point: Point) -> tuple[Point, Point] | None:
        """The two canonical points whose sum a canonical point is; ``None`` if it is read."""
        if point.name not in self.sums:
            return None
        first, second = self.sums[point.name]
        return self.canonical(Point(first, point.layer)), self.canonical(Point(second, point.layer))


def resolve(model: nn.Module) -> ModelPoints:
    """Find the layers of a Hugging Face model and the points inside them.

    Raises:
        InputError: it is no model.
        UnsupportedModelError: no list of layers has a structure of the table, or the model has two stacks.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: must be a Hugging Face model, got {model!r}; load one with transformers' AutoModel.from_pretrained"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{_name(model)}: encoder-decoder models have two stacks of layers; pass one of them"
        )
    layers, layout = _find_layers(model)
    proj, down = layout.attn_proj, layout.mlp_proj
    places = {
        "resid_pre": Place("", False),
        "attn_heads": Place(proj, False),
        "mlp_act": Place(down, False),
        "resid_post": Place("", True),
    }
    if layout.post_ln:
        places |= {
            "attn_out": Place(proj, True),
            "resid_mid": Place(layout.attn_norm, True),
            "mlp_out": Place(down, True),
        }
        aliases = {"attn_in": "resid_pre", "mlp_in": "resid_mid"}
        sums = {"attn_sum": ("attn_out", "resid_pre"), "mlp_sum": ("mlp_out", "resid_mid")}
        for name, skip in (("attn_sum", layout.attn_skip), ("mlp_sum", layout.mlp_skip)):
            if skip:
                places[name] = Place(skip, True)
                del sums[name]
        if not layout.mlp_proj:
            for name in ("resid_mid", "mlp_act", "mlp_out"):
                del places[name]
            aliases, sums = {"attn_in": "resid_pre", "resid_mid": "resid_post"}, {}
    else:
        places |= {
            "attn_in": Place(layout.attn_norm, True),
            "attn_out": Place(layout.attn, True),
            "resid_mid": Place(layout.mlp_norm, False),
            "mlp_in": Place(layout.mlp_norm, True),
            "mlp_out": Place(layout.mlp, True),
        }
        aliases = {"attn_sum": "resid_mid", "mlp_sum": "resid_post"}
        sums = {}
    parallel = bool(getattr(layers[0], "use_parallel_residual", False))
    if parallel:
        del places["resid_mid"]
        aliases = {"mlp_sum": "resid_post"}
    order = {name: places[name] for name in POINTS if name in places}
    return ModelPoints(layers, layout, order, aliases, sums, parallel)


def _find_layers(model: nn.Module) -> tuple[tuple[nn.Module, ...], Layout]:
    found = []
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            for layout in LAYOUTS:
                if all(layout.fits(layer) for layer in module):
                    found.append((tuple(module), layout))
                    break
    if not found:
        families = ", ".join(layout.family for layout in LAYOUTS)
        raise UnsupportedModelError(
            f"{_name(model)}: no list of layers with a known structure was found; the structures known are {families}"
        )
    return max(found, key=lambda pair: len(pair[0]))


def _name(model: nn.Module) -> str:
    return getattr(model.config, "name_or_path", "") or type(model).__name__
