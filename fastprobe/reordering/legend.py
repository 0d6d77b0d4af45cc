"""Meaning and unit of the columns of orders, ablations and pairs of layers."""

from __future__ import annotations

from fastprobe.results.legend import Meaning, place, with_errors
from fastprobe.results.result import BY_DEPTH

STATES = {
    "relative_l2": Meaning("distance of the final states from the baseline's, over their length", "ratio"),
    "cosine": Meaning("mean cosine of the final states and the baseline's", "cosine, -1 to 1"),
}
LOSSES = {
    "loss": Meaning("mean cross-entropy of the tokens to be predicted", "nats"),
    "delta_loss": Meaning("loss minus that of the baseline", "nats"),
    "accuracy": Meaning("tokens that are predicted correctly", "share of tokens"),
    "top1_agreement": Meaning("tokens with the same most likely token as the baseline", "share of tokens"),
    "kl": Meaning("mean KL divergence from the baseline's predictions", "nats"),
}
TOKENS = {"tokens": place("tokens that were compared", "tokens")}

EFFECTS = (
    with_errors(STATES | LOSSES)
    | TOKENS
    | {
        f"{name}{error}{BY_DEPTH}": place(f"{name}{error} after each step of the order", meaning.unit)
        for name, meaning in STATES.items()
        for error in ("", "_se")
    }
)
"""Columns that an effect on the output has, whatever was changed."""

ORDERS = {
    "order": place("the order of the layers"),
    "name": place("its name"),
    "i": place("first of the two layers that the order swaps"),
    "j": place("second of the two layers that the order swaps"),
    "kept": place("layers that a permutation leaves in place", "layers"),
    "dropped": place("layers that do not run"),
} | EFFECTS

PAIRS = {
    "i": place("first layer of the pair"),
    "j": place("second layer of the pair"),
    "state": place("the state x that both orders start from"),
} | with_errors(
    {
        "relative_l2": Meaning("norm of f_j f_i x - f_i f_j x over that of f_j f_i x", "ratio"),
        "cosine": Meaning("mean cosine of f_j f_i x and f_i f_j x", "cosine, -1 to 1"),
    }
)
