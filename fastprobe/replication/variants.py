"""The section on variants trained from scratch: without FFNs, with linear FFNs, with shared weights and others."""

from __future__ import annotations

from collections.abc import Callable

from fastprobe.pretraining import TrainedVariant
from fastprobe.pretraining.variant_set import BERT
from fastprobe.replication.ffns import REPAIRED
from fastprobe.replication.losses import UNIGRAM, VariantLosses, losses_of
from fastprobe.replication.section import (
    NOISE,
    Analysis,
    Claim,
    Finding,
    Results,
    Section,
    Subject,
    Table,
    number,
)

NAME = "variants"
BEYOND_NOISE = f"by more than {NOISE} standard errors"


def _learns(variant: str) -> Callable[[Results], Finding]:
    """Return the check that a variant ends below the unigram loss."""

    def check(results: Results) -> Finding:
        losses: VariantLosses = results[NAME]
        row = losses.row(variant)
        if row is None or row["failure"]:
            return Finding(False, losses.not_comparable(variant))
        found = f"{losses.format_loss(variant)}, unigram {number(losses.unigram)}."
        return losses.decide(*losses.contrast({UNIGRAM: 1, variant: -1}), found)

    return check


def _worse(variant: str) -> Callable[[Results], Finding]:
    """Return the check that a variant ends at a higher loss than BERT."""

    def check(results: Results) -> Finding:
        losses: VariantLosses = results[NAME]
        if reason := losses.not_comparable(BERT, variant):
            return Finding(None, reason)
        more, error = losses.contrast({variant: 1, BERT: -1})
        found = f"{losses.format_loss(variant)}, {losses.format_loss(BERT)}: {number(more)} ± {number(error)} higher."
        return losses.decide(more, error, found)

    return check


def _loses_less_than_it_saves(variant: str) -> Callable[[Results], Finding]:
    """Return the check that a variant loses a smaller share of BERT's gain than it saves of the parameters.

    With U = unigram loss, B = loss of BERT, V = loss of the variant and P = parameters of the layers:

        (V - B) / (U - B) < 1 - P_V / P_B
    """

    def check(results: Results) -> Finding:
        losses: VariantLosses = results[NAME]
        if reason := losses.not_comparable(BERT, variant):
            return Finding(None, reason)
        before, after = (losses.row(name)["layer_parameters"] for name in (BERT, variant))  # type: ignore[index]
        share = 1 - after / before
        spared, error = losses.contrast({UNIGRAM: share, BERT: 1 - share, variant: -1})
        gain = losses.unigram - losses.contrast({BERT: 1})[0]
        lost = losses.contrast({variant: 1, BERT: -1})[0] / gain
        found = (
            f"Saved: {number(share)} of the parameters of the layers. Lost: {number(lost)} ± {number(error / gain)} of "
            f"the gain of {BERT} over frequencies "
            f"({losses.format_loss(variant)}, {losses.format_loss(BERT)}, unigram {number(losses.unigram)})."
        )
        return losses.decide(spared, error, found)

    return check


def _linear_ffn_repairs_little(results: Results) -> Finding:
    losses: VariantLosses = results[NAME]
    if reason := losses.not_comparable(BERT, "no-ffn", "linear-ffn"):
        return Finding(None, reason)
    cost, cost_error = losses.contrast({"no-ffn": 1, BERT: -1})
    written = ", ".join(map(losses.format_loss, (BERT, "linear-ffn", "no-ffn")))
    damaged = losses.decide(cost, cost_error, f"The damage of removing FFNs is within the noise ({written}).")
    if damaged.holds is not True:
        return Finding(None, damaged.numbers if damaged.holds is None else f"Removing FFNs does no damage ({written}).")
    left, error = losses.contrast({"linear-ffn": 1, "no-ffn": REPAIRED - 1, BERT: -REPAIRED})
    repaired = 1 - losses.contrast({"linear-ffn": 1, BERT: -1})[0] / cost
    found = f"{written}: {number(repaired)} ± {number(error / cost)} of the damage is repaired."
    return losses.decide(left, error, found)


def _table(results: Results) -> Table:
    losses: VariantLosses = results[NAME]
    header = (
        "variant",
        "held-out loss",
        "± se",
        f"over {BERT}",
        "parameters",
        "in layers",
        "FLOP/token",
        "steps",
        "rate",
        "seed",
    )
    bert, rows = losses.row(BERT), []
    for row in losses.rows:
        if row["failure"]:
            rows.append((row["variant"], row["failure"], *[None] * (len(header) - 2)))
            continue
        over = None if bert is None or bert["failure"] else row["held_out_loss"] - bert["held_out_loss"]
        counts = (f"{row[key]:,}" for key in ("parameters", "layer_parameters", "flops_per_token", "steps"))
        rate = f"{row['learning_rate']:.0e}".replace("e-0", "e-")
        rows.append((row["variant"], row["held_out_loss"], row["held_out_loss_se"], over, *counts, rate, row["seed"]))
    return Table(header, rows)


def _commands(subject: Subject) -> str:
    return "\n".join(trained.command for trained in subject.variants)


def section(trained: list[TrainedVariant]) -> Section:
    """Return the section on trained variants. Each gets a claim that it learnt more than frequencies."""
    return Section(
        name=NAME,
        title="Models trained without FFNs, with linear FFNs, or with attention instead",
        question="How much does a model lose that is trained without FFNs, and can attention replace them?",
        protocol=(
            "Each variant is trained from scratch on the same text with the same masked tokens. The table gives steps "
            "and learning rates. The loss is measured on held-out text. Some variants learn nothing at the learning "
            "rate of bert and have a lower one, which may explain part of a higher loss. attention-for-ffn uses the "
            "parameters of the FFNs for more layers of attention. One seed of each variant is trained. Standard errors "
            "are over held-out sequences and are taken as independent between variants. A difference within "
            f"{NOISE} standard errors is undecided. The paper trains BERT-small for a million steps and measures "
            "GLUE after fine-tuning. Its findings on weighted skips, GeLU on attention and attention without softmax "
            "are not known to us, so these variants are in the table without a claim."
        ),
        analyses=[Analysis(NAME, "Held-out loss, ± 2 standard errors.", _commands, losses_of, derived=True)],
        claims=[
            Claim(
                "A",
                "FFNs are an important element.",
                f"the loss of no-ffn is above that of bert {BEYOND_NOISE}",
                _worse("no-ffn"),
            ),
            Claim(
                "A",
                "FFNs use their parameters inefficiently.",
                "no-ffn loses a smaller share of the gain of bert over frequencies than it saves of the parameters of "
                f"the layers, {BEYOND_NOISE}",
                _loses_less_than_it_saves("no-ffn"),
            ),
            Claim(
                "A",
                "FFNs cannot simply be replaced by attention blocks without degradation.",
                "the loss of attention-for-ffn, whose layers have about as many parameters, is above that of bert "
                f"{BEYOND_NOISE}",
                _worse("attention-for-ffn"),
            ),
            Claim(
                "N",
                "Linear MLPs do little better than no MLPs: the non-linear part matters.",
                f"linear-ffn repairs less than {REPAIRED} of the damage of no-ffn relative to bert, {BEYOND_NOISE} "
                "(the note is about MLPs replaced in a trained model)",
                _linear_ffn_repairs_little,
            ),
            Claim(
                "A",
                "Weight-shared transformers are justified.",
                "shared-layers loses a smaller share of the gain of bert over frequencies than it saves of the "
                f"parameters of the layers, {BEYOND_NOISE}",
                _loses_less_than_it_saves("shared-layers"),
            ),
            *(
                Claim(
                    "F",
                    f"{one.variant} learns more than the frequencies of tokens.",
                    f"its held-out loss is below the unigram loss {BEYOND_NOISE}",
                    _learns(one.variant),
                )
                for one in trained
            ),
        ],
        table=_table,
    )
