"""The section on models trained from scratch without FFNs, or with something else in their place."""

from __future__ import annotations

from collections.abc import Callable

from fastprobe.pretraining import TrainedVariant
from fastprobe.pretraining.variant_set import BERT
from fastprobe.replication.ffns import REPAIRED
from fastprobe.replication.losses import UNIGRAM, VariantLosses, losses_of
from fastprobe.replication.section import (
    SURE,
    Analysis,
    Claim,
    Finding,
    Results,
    Section,
    Subject,
    Table,
    decided,
    number,
)

NAME = "variants"
BEYOND = f"by more than {SURE} standard errors"


def _learns(variant: str) -> Callable[[Results], Finding]:
    def check(results: Results) -> Finding:
        losses: VariantLosses = results[NAME]
        row = losses.row(variant)
        if row is None or row["failure"]:
            return Finding(False, losses.unfit(variant))
        met = losses.learnt(variant) is True  # a model that learns nothing ends at the unigram loss, not above it
        return Finding(met, f"{losses.written(variant)}, unigram {number(losses.unigram)}.")

    return check


def _worse(variant: str) -> Callable[[Results], Finding]:
    """Whether a variant ends at a higher loss than BERT."""

    def check(results: Results) -> Finding:
        losses: VariantLosses = results[NAME]
        if reason := losses.unfit(BERT, variant):
            return Finding(None, reason)
        more, error = losses.contrast({variant: 1, BERT: -1})
        found = f"{losses.written(variant)}, {losses.written(BERT)}: {number(more)} ± {number(error)} more."
        return Finding(decided(more, error), found)

    return check


def _costs_less_than_its_share(variant: str) -> Callable[[Results], Finding]:
    """Whether BERT loses a smaller share of what it learnt than of the parameters of its layers."""

    def check(results: Results) -> Finding:
        losses: VariantLosses = results[NAME]
        if reason := losses.unfit(BERT, variant):
            return Finding(None, reason)
        before, after = (losses.row(name)["layer_parameters"] for name in (BERT, variant))  # type: ignore[index]
        share = 1 - after / before
        spared, error = losses.contrast({UNIGRAM: share, BERT: 1 - share, variant: -1})
        gain = losses.unigram - losses.contrast({BERT: 1})[0]
        lost = losses.contrast({variant: 1, BERT: -1})[0] / gain
        found = (
            f"{number(share)} of the parameters of the layers saved; of what {BERT} learnt beyond "
            f"frequencies {number(lost)} ± {number(error / gain)} lost "
            f"({losses.written(variant)}, {losses.written(BERT)}, unigram {number(losses.unigram)})."
        )
        return Finding(decided(spared, error), found)

    return check


def _linear_is_as_none(results: Results) -> Finding:
    losses: VariantLosses = results[NAME]
    if reason := losses.unfit(BERT, "no-ffn", "linear-ffn"):
        return Finding(None, reason)
    cost, cost_error = losses.contrast({"no-ffn": 1, BERT: -1})
    written = ", ".join(map(losses.written, (BERT, "linear-ffn", "no-ffn")))
    if not decided(cost, cost_error):
        return Finding(None, f"Going without FFNs costs nothing that can be told from noise ({written}).")
    left, error = losses.contrast({"linear-ffn": 1, "no-ffn": REPAIRED - 1, BERT: -REPAIRED})
    repaired = 1 - losses.contrast({"linear-ffn": 1, BERT: -1})[0] / cost
    return Finding(decided(left, error), f"{written}: {number(repaired)} ± {number(error / cost)} is repaired.")


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
    """The section for these variants; each has to have learnt something."""
    return Section(
        name=NAME,
        title="TrainedVariant without FFNs, with linear ones, or with attention in their place",
        question="What does a model lose that never had FFNs, and can attention make up for them?",
        protocol=(
            "Each variant is trained from scratch on the same text, with the same tokens hidden, for as many steps and "
            "at the learning rate of the table, and its loss is taken on text that is held out. Where that is below "
            "bert's, because nothing is learnt with bert's, some of a higher loss may be the rate's. attention-for-ffn "
            "spends the parameters of the FFNs on more layers of attention. One seed each: standard errors are over "
            f"held-out sequences, taken as independent between variants; what is within {SURE} of them is undecided. "
            "The paper trains BERT-small for a million steps and measures GLUE after fine-tuning. What it found for "
            "weighted skips, GeLU on attention and attention without softmax is not known here, so they are in the "
            "table without a claim."
        ),
        analyses=[Analysis(NAME, "Held-out loss, ± 2 standard errors.", _commands, losses_of, derived=True)],
        claims=[
            Claim(
                "A",
                "FFNs are an important element.",
                f"the loss of no-ffn is above that of bert {BEYOND}",
                _worse("no-ffn"),
            ),
            Claim(
                "A",
                "FFNs are inefficient for the parameters that they hold.",
                "without FFNs the share of what bert learnt beyond frequencies that is lost is below the share of the "
                f"parameters of its layers that is saved, {BEYOND}",
                _costs_less_than_its_share("no-ffn"),
            ),
            Claim(
                "A",
                "FFNs cannot simply be replaced by attention blocks without degradation.",
                "the loss of attention-for-ffn, of as many parameters in its layers as whole layers allow, is above "
                f"that of bert {BEYOND}",
                _worse("attention-for-ffn"),
            ),
            Claim(
                "N",
                "MLPs made linear do about as well as none: what matters is the non-linear part.",
                f"linear-ffn repairs less than {REPAIRED} of what no-ffn loses against bert, {BEYOND} (the note is on "
                "MLPs replaced in a trained model)",
                _linear_is_as_none,
            ),
            Claim(
                "A",
                "Weight-shared transformers are justified.",
                "with shared-layers the share of what bert learnt beyond frequencies that is lost is below the share "
                f"of the parameters of its layers that is saved, {BEYOND}",
                _costs_less_than_its_share("shared-layers"),
            ),
            *(
                Claim(
                    "F",
                    f"{one.variant} learns more than the frequencies of tokens.",
                    f"its held-out loss is below the unigram loss {BEYOND}",
                    _learns(one.variant),
                )
                for one in trained
            ),
        ],
        table=_table,
    )
