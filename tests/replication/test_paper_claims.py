"""Claims about trained variants: each criterion met, missed and undecided, on made-up numbers."""

from pathlib import Path

import pytest

from fastprobe.pretraining import Pretraining, TrainedVariant
from fastprobe.reordering.commutativity import OrderEffects
from fastprobe.reordering.commutator import Commutators
from fastprobe.replication import trained_without_skips, variants
from fastprobe.replication.losses import VariantLosses, losses_of
from fastprobe.replication.section import Subject

UNIGRAM, ERROR = 7.0, 0.01
LAYERS = {
    "bert": 300,
    "no-ffn": 100,
    "linear-ffn": 300,
    "attention-for-ffn": 300,
    "shared-layers": 75,
    "no-skip:1": 300,
}


def trained(**losses):
    """Return variants with these final losses. A loss of ``None`` is a failed training."""
    models = []
    for name, loss in losses.items():
        name = {"no_skip": "no-skip:1"}.get(name, name.replace("_", "-"))
        costs = {"parameters": 1000, "layer_parameters": LAYERS[name], "flops_per_token": 10}
        config = {"unigram_loss": UNIGRAM, "layers": 3, "steps": 9, "learning_rate": 3e-4, "seed": 4, "threads": 1}
        config |= {"held_out_tokens": 500}
        config |= {"training_flops": 90, "costs": costs}
        rows = [{"held_out_loss": loss, "held_out_loss_se": ERROR}]
        result = None if loss is None else Pretraining(config, rows)
        failure = "the held-out loss is nan" if loss is None else ""
        models.append(TrainedVariant(name, Path(name), f"fastprobe pretrain --variant {name}", result, failure))
    return models


def planted(models):
    return losses_of(Subject(None, (), (), None, False, variants=models))


def finding(beginning, models):
    """Check the claim whose text begins with these words."""
    claims = [claim for claim in variants.section(models).claims if claim.text.startswith(beginning)]
    assert len(claims) == 1
    return claims[0].check({variants.NAME: planted(models)})


@pytest.mark.parametrize(
    ("claim", "losses", "holds"),
    [
        # two standard errors of a difference are 2 * sqrt(2) * 0.01 = 0.028
        ("FFNs are an important", {"bert": 6.0, "no_ffn": 6.03}, True),
        ("FFNs are an important", {"bert": 6.0, "no_ffn": 5.97}, False),
        ("FFNs are an important", {"bert": 6.0, "no_ffn": 6.02}, None),
        ("FFNs cannot simply", {"bert": 6.0, "attention_for_ffn": 6.03}, True),
        ("FFNs cannot simply", {"bert": 6.0, "attention_for_ffn": 5.97}, False),
        ("FFNs cannot simply", {"bert": 6.0, "attention_for_ffn": 5.98}, None),
        # no-ffn saves 2/3 of the parameters; bert gains 1.0, so no-ffn may lose 0.667
        ("FFNs use their", {"bert": 6.0, "no_ffn": 6.63}, True),
        ("FFNs use their", {"bert": 6.0, "no_ffn": 6.70}, False),
        ("FFNs use their", {"bert": 6.0, "no_ffn": 6.66}, None),
        ("Weight-shared", {"bert": 6.0, "shared_layers": 6.72}, True),
        ("Weight-shared", {"bert": 6.0, "shared_layers": 6.78}, False),
        ("Weight-shared", {"bert": 6.0, "shared_layers": 6.76}, None),
        # removal does a damage of 0.5, so linear-ffn may repair 0.1
        ("Linear MLPs", {"bert": 6.0, "no_ffn": 6.5, "linear_ffn": 6.45}, True),
        ("Linear MLPs", {"bert": 6.0, "no_ffn": 6.5, "linear_ffn": 6.35}, False),
        ("Linear MLPs", {"bert": 6.0, "no_ffn": 6.5, "linear_ffn": 6.40}, None),
        ("Linear MLPs", {"bert": 6.0, "no_ffn": 6.01, "linear_ffn": 6.3}, None),
        ("no-ffn learns more", {"bert": 6.0, "no_ffn": 6.97}, True),
        ("no-ffn learns more", {"bert": 6.0, "no_ffn": 7.03}, False),
        ("no-ffn learns more", {"bert": 6.0, "no_ffn": 6.99}, None),
        ("no-ffn learns more", {"bert": 6.0, "no_ffn": None}, False),
    ],
)
def test_losses_decide_a_claim_by_its_criterion(claim, losses, holds):
    found = finding(claim, trained(**losses))
    assert found.holds is holds
    assert ("This cannot be said with 500 tokens; at least" in found.numbers) is (holds is None)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ({"bert": 6.0}, "no-ffn was not trained."),
        ({"bert": 6.0, "no_ffn": None}, "The training of no-ffn failed: the held-out loss is nan."),
        ({"bert": 6.0, "no_ffn": 7.5}, "no-ffn learnt too little for a comparison: no-ffn 7.500"),
        ({"bert": 6.99, "no_ffn": 7.5}, "bert learnt too little for a comparison"),
    ],
)
def test_a_claim_is_undecided_if_a_model_failed_or_learnt_nothing(losses, reason):
    models = trained(**losses)

    for claim in ("FFNs are an important", "FFNs use their"):
        found = finding(claim, models)
        assert found.holds is None
        assert found.numbers.startswith(reason)


def test_a_finding_states_the_losses():
    models = trained(bert=6.0, no_ffn=6.5, shared_layers=6.25)

    assert (
        finding("FFNs are an important", models).numbers
        == "no-ffn 6.500 ± 0.010, bert 6.000 ± 0.010: 0.500 ± 0.014 higher."
    )
    shared = finding("Weight-shared", models).numbers
    assert shared.startswith(
        "Saved: 0.750 of the parameters of the layers. Lost: 0.250 ± 0.010 of the gain of bert over frequencies "
    )


def test_the_table_has_every_variant_and_failed_ones_too():
    models = trained(bert=6.0, no_ffn=None, shared_layers=6.25)

    table = variants.section(models).table({variants.NAME: planted(models)})

    assert [row[0] for row in table.rows] == ["bert", "no-ffn", "shared-layers"]
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table.rows[1][1] == "the held-out loss is nan"
    assert table.rows[0][1:4] == (6.0, 0.01, 0.0)
    assert table.rows[2][1:] == (6.25, 0.01, pytest.approx(0.25), "1,000", "75", "10", "9", "3e-4", 4)


def test_losses_are_saved_and_plotted(tmp_path):
    losses = planted(trained(bert=6.0, no_ffn=None, shared_layers=6.25))

    losses.save(tmp_path)
    figure = losses.plot(tmp_path / "losses.png")

    assert VariantLosses(losses.config, losses.rows) == losses
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["bert", "shared-layers"]


def swaps(damage, error):
    """Return swaps of three layers. Swaps of layer 1 have this damage, the other swap has none."""
    rows = [{"order": "0,1,2", "name": "identity", "delta_loss": 0.0, "delta_loss_se": 0.0}]
    rows += [
        {"order": order, "name": name, "delta_loss": damage * (1 in pair), "delta_loss_se": error}
        for order, name, pair in (
            ("1,0,2", "first two", (0, 1)),
            ("2,1,0", "ends", (0, 2)),
            ("0,2,1", "last two", (1, 2)),
        )
    ]
    return OrderEffects({"layers": 3, "tokens": 1000}, rows)


def commutators(size, error):
    pairs = ((0, 1), (0, 2), (1, 2))
    rows = [{"i": i, "j": j, "relative_l2": size * (1 in (i, j)), "relative_l2_se": error} for i, j in pairs]
    return Commutators({"layers": 3, "tokens": 1000}, rows)


@pytest.mark.parametrize(
    ("cut", "holds"),
    [(2.5, True), (1.5, False), (2.4, None), (1.6, None)],  # the threshold is 2 * 1.0 ± 2 * hypot(0.1, 0.2)
)
def test_the_claim_on_skips_holds_from_twice_the_damage_and_commutator(cut, holds):
    models = trained(bert=6.0, no_skip=6.1)
    section = trained_without_skips.section(models)
    results = {variants.NAME: planted(models), "swaps": swaps(1.0, 0.1), "commutators": commutators(1.0, 0.1)}
    results |= {"swaps-no-skip:1": swaps(cut, 0.1), "commutators-no-skip:1": commutators(cut, 0.1)}

    found = [claim.check(results) for claim in section.claims]

    assert [one.holds for one in found] == [holds, holds]
    numbers = f"no-skip:1 {cut:.3f} ± 0.100, bert 1.000 ± 0.100: {cut:.3f} times as large."
    assert [one.numbers.partition(" This")[0] for one in found] == [numbers, numbers]
    assert all(("This cannot be said with 1,000 tokens" in one.numbers) is (holds is None) for one in found)
    assert section.table(results).rows[0] == ("0 1", 1.0, 0.1, cut, 0.1, 1.0, 0.1, cut, 0.1)


def test_the_claim_on_skips_is_undecided_if_the_training_failed():
    section = trained_without_skips.section(trained(bert=6.0, no_skip=None))

    assert [analysis.name for analysis in section.analyses] == ["swaps", "commutators"]
    found = section.claims[0].check({variants.NAME: planted(trained(bert=6.0, no_skip=None))})
    assert found == (None, "The training of no-skip:1 failed: the held-out loss is nan.")


def test_without_a_no_skip_variant_there_is_no_section_on_skips():
    assert trained_without_skips.section(trained(bert=6.0, no_ffn=6.1)) is None
