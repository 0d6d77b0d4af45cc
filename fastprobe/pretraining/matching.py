"""Match the parameters or the training compute of a variant to those of BERT."""

from __future__ import annotations

from dataclasses import replace

from fastprobe.errors import InputError
from fastprobe.pretraining.costs import Costs, flops_per_token
from fastprobe.pretraining.variants import Size, Variant

BERT = Variant.parse("bert")
MATCHES = ("none", "parameters", "compute")


def match_bert(variant: Variant, size: Size, steps: int, match: str) -> tuple[Size, int]:
    """Return the size and the number of steps with which a variant matches BERT.

    Args:
        variant: the variant to train. ``attention-for-ffn`` is always matched in parameters.
        size: size of BERT.
        steps: training steps of BERT.
        match: ``"parameters"`` changes the number of layers so that all layers together have as many parameters.
            ``"compute"`` changes the number of steps so that training takes as many FLOPs. ``"none"`` changes nothing.

    Raises:
        InputError: ``match`` is unknown, or more layers do not add parameters.
    """
    if match not in MATCHES:
        raise InputError(f"match: {match!r} is not one of {', '.join(MATCHES)}")
    size.check()
    matched = size
    if match == "parameters" or variant.layers_for_ffn:
        matched = replace(size, layers=_matching_layers(variant, size))
    if match == "compute":
        bert, changed = BERT.config(size), variant.config(matched)
        ratio = flops_per_token(bert, size.max_seq_len) / flops_per_token(changed, size.max_seq_len)
        steps = max(1, round(steps * ratio))
    return matched, steps


def _matching_layers(variant: Variant, size: Size) -> int:
    """Return the number of layers whose parameters are closest to those of all layers of BERT."""
    if variant.changes.get("shared_layers"):
        raise InputError(
            "match: the layers of shared-layers share one set of weights, so more layers do not add parameters; "
            "leave match out, or choose another hidden_size"
        )
    one = replace(size, layers=1)
    bert, changed = (Costs.of(v.config(one)).layer_parameters for v in (BERT, replace(variant, no_skip=())))
    return max(1, round(size.layers * bert / changed))
