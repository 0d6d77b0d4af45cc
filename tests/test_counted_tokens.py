"""Tokens that count: every verb compared with sums over the tokens of ``token_mask``, computed by hand in float64."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastprobe as fp
from fastprobe.ablations.element_outputs import mean_outputs, sampled_outputs
from fastprobe.data.checks import TOKEN_MASK, counted_mask
from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError
from fastprobe.models.points import Element
from fastprobe.models.resolve import resolve
from fastprobe.probes.token_labels import TokenLabels
from fastprobe.runtime.journal import Journal
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.merging import merge_scans
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.reference import columns, read_points, token_folds
from tests.reordering.test_commutativity import final, moved

FAMILIES = ["bert-mlm", "llama"]  # without padding, and with the modules of the model
ORDERS = [(1, 0, 2), (0, 2)]
QUIET = {"progress": False}
ALL = {"score_sequences": "all", "cka": "all"}
VERBS = {
    "linearity": lambda *args: fp.linearity(*args, spans="all", objective="cosine", cka="all", **QUIET),
    "linearity of all": lambda *args: fp.linearity(*args, score_sequences="all", **QUIET),
    "layer by layer": lambda *args: fp.linearity(*args, spans="all", schedule="layer", **QUIET),
    "commutativity": lambda *args: fp.commutativity(*args, ORDERS, depths=True, **QUIET),
    "commutator": lambda *args: fp.commutator(*args, **QUIET),
    "ablation": lambda *args: fp.ablation(*args, mode=["mean", "resample", "linear"], folds=3, **QUIET),
    "probe": lambda *args: fp.probe(*args, folds=3, tasks=["token", "next", "position", "kind"], **QUIET),
}


def labelled(family, batches):
    """Add labels of the head and of a probe to batches."""
    for batch in batches:
        ids = batch["input_ids"]
        batch["kind"] = torch.where(batch["attention_mask"].bool(), ids % 3, -1)
        if family == "bert-mlm":
            batch["labels"] = torch.where((ids % 2 == 1) & batch["attention_mask"].bool(), ids, -100)
    return batches


def for_verb(verb, batches):
    """Leave out what a verb does not take."""
    unused = {"probe": {"labels"}, "commutativity": {"kind"}, "ablation": {"kind"}}.get(verb, {"kind"})
    return [{key: value for key, value in batch.items() if key not in unused} for batch in batches]


def counted_batches(family, sequences=18, batch_size=4):
    """Return batches with holes in what counts. No token of sequence 1 counts, nor any of the second batch."""
    batches = labelled(family, tiny_batches(sequences, batch_size=batch_size))
    generator = torch.Generator().manual_seed(7)
    for number, batch in enumerate(batches):
        mask = batch["attention_mask"]
        counts = mask.bool() & (torch.rand(mask.shape, generator=generator) < 0.6)
        if number == 0:
            counts[1] = False
        batch[TOKEN_MASK] = counts & (number != 1)
    return batches


def entries(result):
    """Return rows and configuration without what depends on time or on how the batches were described."""
    config = {k: v for k, v in result.config.items() if k not in ("seconds", "counted")}
    return repr(result.rows), repr(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("verb", VERBS)
def test_the_attention_mask_as_token_mask_changes_no_bit(verb, family):
    model, plain = tiny_model(family), for_verb(verb, labelled(family, tiny_batches()))
    masked = [batch | {TOKEN_MASK: batch["attention_mask"]} for batch in plain]

    assert entries(VERBS[verb](model, masked)) == entries(VERBS[verb](model, plain))


@pytest.mark.parametrize("schedule", ["batch", "layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_linearity_equals_fits_on_the_counted_tokens(family, schedule):
    model = tiny_model(family, dtype=torch.float64)
    batches = for_verb("linearity", counted_batches(family, sequences=64))
    ffn = {"bert-mlm": [("attention.output", "out"), ("output.dense", "out")], "llama": [("mlp", "in"), ("mlp", "out")]}
    places = {"layer": [("", "in"), ("", "out")], "mlp": ffn[family]}
    named = {f"{element} {end}": places[element][end] for element in places for end in (0, 1)}
    stored = read_points(model, resolve(model).layers, named, batches)

    scan = fp.linearity(model, batches, elements=["layer", "mlp"], schedule=schedule, **ALL, **QUIET)

    assert scan.config["tokens"] == sum(int(batch[TOKEN_MASK].sum()) for batch in batches)
    assert scan.config["scored_sequences"] == 64 - 5
    assert (scan.config["runner"] == "encoder") == (family == "bert-mlm")
    fold = token_folds(batches, 5)
    for row in scan.rows:
        x, y = (stored[f"{row['element']} {end}.{row['start']}"] for end in (0, 1))
        for column, value in columns(x, y, fold).items():
            assert row[column] == pytest.approx(value, abs=1e-6 * max(1.0, abs(value))), column


@torch.no_grad()
def summed(model, batches, order):
    """Return the sums over counted tokens of a comparison of an order with the baseline."""
    changed, sums = moved(model, order), dict.fromkeys(("error", "norm", "cosine", "n", "loss", "right", "kl", "m"), 0)
    for batch in batches:
        (state, logits), (base, base_logits) = final(changed, batch), final(model, batch)
        at = batch[TOKEN_MASK]
        sums["error"] += float((state - base)[at].square().sum())
        sums["norm"] += float(base[at].square().sum())
        sums["cosine"] += float(F.cosine_similarity(state[at], base[at], dim=-1).sum())
        sums["n"] += int(at.sum())
        if "labels" in batch:
            target = batch["labels"]
        else:  # the next token, if it is none of padding; it need not count
            ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
            target = F.pad(ids[:, 1:], (0, 1), value=-100)
        at = at & (target != -100)
        log_p, base_log_p = logits[at].log_softmax(-1), base_logits[at].log_softmax(-1)
        sums["loss"] += float(F.nll_loss(log_p, target[at], reduction="sum"))
        sums["kl"] += float((base_log_p.exp() * (base_log_p - log_p)).sum())
        sums["right"] += int((log_p.argmax(-1) == target[at]).sum())
        sums["m"] += int(at.sum())
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_orders_are_compared_at_the_counted_tokens(family):
    model, batches = tiny_model(family, dtype=torch.float64), for_verb("commutativity", counted_batches(family))

    effects = fp.commutativity(model, batches, ORDERS, **QUIET)

    for row, order in zip(effects.rows, [(0, 1, 2), *ORDERS], strict=True):
        sums = summed(model, batches, order)
        assert row["tokens"] == sums["n"] == effects.config["tokens"]
        expected = {
            "relative_l2": (sums["error"] / sums["norm"]) ** 0.5,
            "cosine": sums["cosine"] / sums["n"],
            "loss": sums["loss"] / sums["m"],
            "accuracy": sums["right"] / sums["m"],
            "kl": sums["kl"] / sums["m"],
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, abs=1e-5), column


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_commutators_are_measured_at_the_counted_tokens(family):
    model, batches = tiny_model(family, dtype=torch.float64), for_verb("commutator", counted_batches(family))

    found = fp.commutator(model, batches, **QUIET)

    for row in found.rows:
        i, j, error, norm = row["i"], row["j"], 0.0, 0.0
        for batch in batches:
            one, other = (final(moved(model, (*range(i), *pair)), batch)[0] for pair in ((i, j), (j, i)))
            error += float((one - other)[batch[TOKEN_MASK]].square().sum())
            norm += float(one[batch[TOKEN_MASK]].square().sum())
        assert row["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)
    assert found.config["tokens"] == sum(int(batch[TOKEN_MASK].sum()) for batch in batches)


@torch.no_grad()
def ffn_outputs(model, batches):
    """Return the outputs of the FFN of layer 1 of Llama at the counted tokens, and the numbers of their sequences."""
    kept, numbers, first = [], [], 0
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *args: kept.append(args[2]))
    for at, batch in enumerate(batches):
        final(model, batch)
        mask = batch[TOKEN_MASK]
        numbers += (torch.arange(len(mask))[:, None].expand(mask.shape) + first)[mask].tolist()
        kept[at], first = kept[at][mask], first + len(mask)
    handle.remove()
    return torch.cat(kept), torch.tensor(numbers)


@torch.no_grad()
def test_replacements_are_made_and_compared_at_the_counted_tokens():
    model, batches = tiny_model("llama", dtype=torch.float64), for_verb("ablation", counted_batches("llama"))
    outputs, numbers = ffn_outputs(model, batches)
    points, mlp = resolve(model), Element("mlp", 1, 2)

    damage = fp.ablation(model, batches, layers=[1], mode="mean", **QUIET)

    edited = copy.deepcopy(model)
    edited.model.layers[1].mlp.register_forward_hook(lambda *args: outputs.mean(0).expand_as(args[2]))
    error = norm = 0.0
    for batch in batches:
        (state, _), (base, _), at = final(edited, batch), final(model, batch), batch[TOKEN_MASK]
        error, norm = error + float((state - base)[at].square().sum()), norm + float(base[at].square().sum())
    assert damage.rows[1]["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-6)
    assert damage.config["tokens"] == len(outputs)
    torch.testing.assert_close(mean_outputs(model, points, batches, [mlp])[mlp], outputs.mean(0))
    drawn, sequence = sampled_outputs(model, points, batches, [mlp], size=100)
    assert sorted(sequence.tolist()) == numbers.tolist()
    torch.testing.assert_close(drawn[mlp].double().sum(0), outputs.sum(0))


@torch.no_grad()
def test_linear_maps_are_fitted_on_the_counted_tokens():
    model, batches = tiny_model("llama", dtype=torch.float64), for_verb("ablation", counted_batches("llama", 60))
    stored = read_points(model, model.model.layers, {"x": ("mlp", "in"), "y": ("mlp", "out")}, batches)

    damage = fp.ablation(model, batches, layers=[1], mode="linear", folds=0, alpha=0.5, **QUIET)

    x, y = (stored[f"{name}.1"] for name in "xy")
    centred = x - x.mean(0)
    coef = np.linalg.solve(centred.T @ centred + 0.5 * np.eye(32), centred.T @ (y - y.mean(0)))
    np.testing.assert_allclose(damage.maps["mlp.1"].coef, coef, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_probes_are_fitted_on_the_counted_tokens(family):
    model, batches = tiny_model(family, dtype=torch.float64), for_verb("probe", counted_batches(family, 60))
    stored = read_points(model, resolve(model).layers, {"x": ("", "in")}, batches)

    probes = fp.probe(model, batches, tasks=["kind"], folds=4, score_sequences="all", **QUIET)

    x, fold = stored["x.1"], token_folds(batches, 4)
    y = torch.cat([batch["kind"][batch[TOKEN_MASK]] for batch in batches]).numpy()
    one_hot, rss, tss = np.eye(3)[y], 0.0, 0.0
    for held in (fold == f for f in range(4)):
        predict, _ = _fit(x[~held], one_hot[~held])
        rss += ((one_hot[held] - predict(x[held])) ** 2).sum()
        tss += ((one_hot[held] - one_hot[~held].mean(0)) ** 2).sum()
    predict, _ = _fit(x, one_hot)
    row = next(row for row in probes.rows if row["state"] == 1)
    assert row["tokens"] == probes.config["tokens"] == len(y)
    assert row["r2_cv"] == pytest.approx(1 - rss / tss, abs=1e-6)
    assert row["accuracy"] == pytest.approx((predict(x).argmax(1) == y).mean(), abs=1e-9)
    assert row["majority"] == pytest.approx(np.bincount(y).max() / len(y), abs=1e-9)


def _fit(x, y):
    mean = x.mean(0)
    coef = np.linalg.lstsq(x - mean, y - y.mean(0), rcond=None)[0]
    return (lambda rows: (rows - mean) @ coef + y.mean(0)), coef


def test_labels_are_those_of_the_counted_tokens():
    """Positions and neighbours are those of all tokens; classes come from the counted ones."""
    ids = torch.tensor([[5, 6, 7, 8, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), TOKEN_MASK: torch.tensor([[0, 1, 1, 0, 0]])}

    labels = TokenLabels(["position", "token", "next"], [batch])

    assert labels(batch)["position"].tolist() == [[-1, 1, 2, -1, -1]]
    assert labels(batch)["token"].tolist() == [[-1, 1, 2, -1, -1]]
    assert labels(batch)["next"].tolist() == [[-1, 2, 0, -1, -1]]
    assert labels.classes("position") == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("verb", VERBS)
def test_batches_in_which_nothing_counts_are_normal_wherever_they_are(verb, family):
    model = tiny_model(family, dtype=torch.float64)
    silent = labelled(family, tiny_batches(6, seed=3))[0]
    silent[TOKEN_MASK] = torch.zeros_like(silent["input_ids"])
    plain = labelled(family, tiny_batches())
    plain = [batch | {TOKEN_MASK: batch["attention_mask"]} for batch in plain]
    several = VERBS[verb](model, for_verb(verb, [silent, *plain]))
    joined = {key: torch.cat([silent[key], plain[0][key]]) for key in plain[0]}
    one = VERBS[verb](model, for_verb(verb, [joined, *plain[1:]]))

    for found, expected in zip(several.rows, one.rows, strict=True):
        numbers = {key: value for key, value in expected.items() if isinstance(value, float)}
        assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5, nan_ok=True)
    assert several.config["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in plain)


@pytest.mark.parametrize("verb", VERBS)
def test_batches_in_which_no_token_counts_are_refused(verb):
    batches = [
        batch | {TOKEN_MASK: torch.zeros_like(batch["input_ids"])} for batch in labelled("llama", tiny_batches())
    ]

    with pytest.raises(InputError, match="batches: no token of their 18 sequences counts; let token_mask"):
        VERBS[verb](tiny_model("llama"), for_verb(verb, batches))


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
REFUSED = {
    "of another shape": (MASK[:, :3], r"must be a tensor of shape \(2, 4\), one number a token; its shape is \(2, 3\)"),
    "no tensor": (MASK.tolist(), r"must be a tensor of shape \(2, 4\), one number a token; it is a list"),
    "of other numbers": (MASK * 2, "must be 1 at tokens that count and 0 at all others"),
    "of fractions": (MASK * 0.5, "must be 1 at tokens that count and 0 at all others"),
    "with padding": (torch.ones_like(MASK), "counts 3 tokens of padding; it must be 0 where attention_mask is 0"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_token_mask_that_cannot_be_used_is_refused_in_one_line(verb, case):
    mask, message = REFUSED[case]
    batch = {"input_ids": MASK * 5, "attention_mask": MASK, "kind": MASK}

    with pytest.raises(InputError, match=f"batches: token_mask of batch 1 {message}") as caught:
        VERBS[verb](tiny_model("llama"), for_verb(verb, [batch, batch | {TOKEN_MASK: mask}]))

    assert "\n" not in str(caught.value)


def test_a_sample_does_not_depend_on_what_counts_but_needs_tokens_that_do():
    batches, samples = counted_batches("llama"), []
    for key in ("attention_mask", TOKEN_MASK):
        sample = SequenceSample(None)
        for batch in batches:
            sample.add(batch | {TOKEN_MASK: batch[key]}, torch.zeros(len(batch["input_ids"]), dtype=torch.int64))
        samples.append([batch["input_ids"] for batch, _ in sample.batches(1)])
        assert sample.tokens == sum(int(batch[key].sum()) for batch in batches)

    assert len(samples[0]) == 18
    assert len(samples[1]) == 18 - 5
    kept = [ids.tolist() for ids in samples[1]]
    assert [ids.tolist() for ids in samples[0] if ids.tolist() in kept] == kept


def test_a_resumed_scan_with_another_token_mask_is_refused(tmp_path):
    model, batches = tiny_model("llama"), for_verb("linearity", counted_batches("llama"))
    plain = [{key: value for key, value in batch.items() if key != TOKEN_MASK} for batch in batches]
    other = [batch | {TOKEN_MASK: batch["attention_mask"]} for batch in batches]

    def scan(batches, resume=True):
        return fp.linearity(model, batches, checkpoint=Checkpoint(tmp_path, {}, resume=resume), **QUIET)

    first = scan(batches, resume=False)
    assert first.config["counted"] == "token_mask"
    assert scan(batches).rows == first.rows
    with pytest.raises(
        InputError, match=r"--resume: .* holds a run with counted='token_mask', this one has counted=None"
    ):
        scan(plain)
    with pytest.raises(InputError, match=r"--resume: .* holds a run with token_mask='.*', this one has token_mask='"):
        scan(other)
    scan(plain, resume=False)
    with pytest.raises(
        InputError, match=r"--resume: .* holds a run with counted=None, this one has counted='token_mask'"
    ):
        scan(batches)


def test_resumed_orders_with_another_token_mask_are_refused(tmp_path):
    model, batches = tiny_model("llama"), for_verb("commutativity", counted_batches("llama"))
    plain = [{key: value for key, value in batch.items() if key != TOKEN_MASK} for batch in batches]
    fp.commutativity(model, batches, ORDERS, journal=Journal(tmp_path), **QUIET)

    with pytest.raises(InputError, match="of a run with another counted, token_mask; start anew"):
        fp.commutativity(model, plain, ORDERS, journal=Journal(tmp_path, resume=True), **QUIET)


def test_scans_in_which_other_tokens_count_do_not_merge(tmp_path):
    model, batches = tiny_model("llama"), for_verb("linearity", counted_batches("llama"))
    plain = [{key: value for key, value in batch.items() if key != TOKEN_MASK} for batch in batches]
    for name, given in {"one": batches, "two": batches[2:], "plain": plain}.items():
        fp.linearity(model, given, checkpoint=Checkpoint(tmp_path / name), folds=0, **QUIET)

    merged = merge_scans([tmp_path / "one", tmp_path / "two"], fp.LeastSquares())
    assert merged.config["counted"] == "token_mask"
    assert merged.config["tokens"] == sum(int(counted_mask(batch).sum()) for batch in [*batches, *batches[2:]])
    with pytest.raises(InputError, match="differ in counted"):
        merge_scans([tmp_path / "one", tmp_path / "plain"], fp.LeastSquares())
