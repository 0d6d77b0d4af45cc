"""Effects of orders, compared with models whose modules are moved, one order and one sequence at a time."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastprobe as fp
from fastprobe import orders
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.orders import Order
from fastprobe.runtime.journal import FILE, Journal
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

ORDERS = [*orders.swaps(3), *orders.drops(3)]
MLM = "bert-mlm"


def batches_of(family):
    batches = tiny_batches(sequences=9, batch_size=4)
    if family == MLM:
        for batch in batches:
            chosen = torch.arange(batch["input_ids"].shape[1]) % 3 == 1
            batch["labels"] = torch.where(chosen & batch["attention_mask"].bool(), batch["input_ids"] + 1, -100)
    return batches


def moved(model, order):
    """Return a copy of a model with its list of layers, and its configuration, in another order."""
    model = copy.deepcopy(model)
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == 3:
                setattr(parent, name, torch.nn.ModuleList(child[layer] for layer in order))
    model.config.num_hidden_layers = len(order)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[layer] for layer in order]
    return model


@torch.no_grad()
def final(model, batch):
    """Return the final states and logits of a batch."""
    seen = []
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    last = max(lists, key=len)[-1]  # a moved layer may be in the list twice
    handle = last.register_forward_hook(lambda *args: seen.append(args[2]))
    model.config.use_cache = False  # a cache has one slot a layer of the original order
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    return seen[-1], getattr(out, "logits", None)


def expected_row(model, batches, order):
    """Return every column, sequence by sequence, from models that run one order each."""
    sums = dict.fromkeys(("cosine", "error", "norm", "tokens", "loss", "correct", "agree", "kl", "seen"), 0.0)
    changed = moved(model, order)
    for batch in batches:
        mask = batch["attention_mask"].bool()
        (a, baseline), (b, logits) = final(model, batch), final(changed, batch)
        sums["cosine"] += float(F.cosine_similarity(a[mask], b[mask]).sum())
        sums["error"] += float((a - b)[mask].square().sum())
        sums["norm"] += float(a[mask].square().sum())
        sums["tokens"] += int(mask.sum())
        if logits is None:
            continue
        for s in range(len(mask)):
            n = int(mask[s].sum())
            if "labels" in batch:
                at = [t for t in range(n) if batch["labels"][s, t] != -100]
                target = batch["labels"][s, at]
            else:
                at, target = list(range(n - 1)), batch["input_ids"][s, 1:n]
            p, q = baseline[s, at].log_softmax(-1), logits[s, at].log_softmax(-1)
            sums["loss"] += float(F.cross_entropy(logits[s, at], target, reduction="sum"))
            sums["correct"] += int((q.argmax(1) == target).sum())
            sums["agree"] += int((q.argmax(1) == p.argmax(1)).sum())
            sums["kl"] += float(F.kl_div(q, p, log_target=True, reduction="sum"))
            sums["seen"] += len(at)
    row = {"cosine": sums["cosine"] / sums["tokens"], "relative_l2": (sums["error"] / sums["norm"]) ** 0.5}
    if sums["seen"]:
        names = {"loss": "loss", "accuracy": "correct", "top1_agreement": "agree", "kl": "kl"}
        row |= {column: sums[name] / sums["seen"] for column, name in names.items()}
    return row | {"tokens": sums["tokens"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_those_of_models_with_moved_modules(family):
    model, batches = tiny_model(family), batches_of(family)

    effects = fp.commutativity(model, batches, ORDERS, progress=False)

    assert [row["order"] for row in effects.rows] == ["0,1,2", *map(str, ORDERS)]
    assert effects.config["layer_forwards"] == 12
    assert effects.config["layer_forwards_naive"] == 18
    for order, row in zip([orders.identity(3), *ORDERS], effects.rows, strict=True):
        expected = expected_row(model, batches, order)
        assert (row["loss"] is None) == ("loss" not in expected)
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, abs=1e-5, rel=1e-5), (row["name"], column)


@pytest.mark.parametrize("memory", [1, 40_000, 10**9])
def test_the_memory_limit_does_not_change_numbers(memory):
    model, batches = tiny_model("gpt2"), tiny_batches()

    effects = fp.commutativity(model, batches, orders.shuffles(3) + ORDERS, memory=memory, progress=False)

    usual = fp.commutativity(model, batches, orders.shuffles(3) + ORDERS, progress=False)
    for row, other in zip(effects.rows, usual.rows, strict=True):
        assert row["relative_l2"] == pytest.approx(other["relative_l2"], abs=1e-6)
    assert effects.config["layer_forwards_run"] == usual.config["layer_forwards_run"]


def test_the_baseline_has_no_effect():
    row = fp.commutativity(tiny_model("gpt2"), tiny_batches(), [], progress=False).rows[0]

    assert (row["name"], row["relative_l2"], row["kl"], row["top1_agreement"]) == ("identity", 0.0, 0.0, 1.0)


def test_standard_errors_match_the_spread_of_new_samples():
    model = tiny_model("bert")
    row = fp.commutativity(model, tiny_batches(sequences=300, batch_size=50), [(1, 0, 2)], progress=False).rows[1]

    parts = [
        fp.commutativity(model, tiny_batches(sequences=30, batch_size=30, seed=s), [(1, 0, 2)], progress=False).rows[1]
        for s in range(30)
    ]

    for column in ("cosine", "relative_l2"):
        spread = np.std([part[column] for part in parts], ddof=1) / 10**0.5  # of 300 sequences instead of 30
        assert row[f"{column}_se"] == pytest.approx(spread, rel=0.5)


def test_a_user_metric_is_a_column():
    effects = fp.commutativity(
        tiny_model("bert"),
        tiny_batches(),
        [(0, 1)],
        metrics={"largest": lambda state, baseline: (state - baseline).abs().amax(-1)},
        progress=False,
    )

    assert effects.rows[0]["largest"] == 0
    assert effects.rows[1]["largest"] > 0


@pytest.mark.parametrize("name", ["kl", "kept"])
def test_a_user_metric_cannot_replace_a_column(name):
    with pytest.raises(InputError, match=f"metrics: {name} is a column already"):
        fp.commutativity(tiny_model("bert"), tiny_batches(), [], metrics={name: max}, progress=False)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([(0, 3)], "order 0,3: there is no layer 3; the model has 0 to 2"),
        ([()], "order: it is empty"),
        ([Order((0, -1))], "there is no layer -1"),
    ],
)
def test_an_impossible_order_is_refused_by_name(wanted, message):
    with pytest.raises(InputError, match=message):
        fp.commutativity(tiny_model("bert"), tiny_batches(), wanted, progress=False)


def test_an_empty_stream_is_refused():
    with pytest.raises(InputError, match="batches: there are none"):
        fp.commutativity(tiny_model("bert"), [], ORDERS, progress=False)


def test_a_model_that_changes_states_between_layers_is_refused():
    model = tiny_model("bert")
    embeddings = model.embeddings.forward
    counter = iter(range(1000))
    model.embeddings.forward = lambda *args, **kwargs: embeddings(*args, **kwargs) + next(counter)

    with pytest.raises(UnsupportedModelError, match="run one after another, differ from the model by"):
        fp.commutativity(model, tiny_batches(), ORDERS, progress=False)


def test_an_interrupted_run_resumes_and_runs_nothing_twice(tmp_path, monkeypatch):
    model, batches = tiny_model("gpt2"), tiny_batches()
    whole = fp.commutativity(model, batches, ORDERS, progress=False)
    real, calls = Journal.add, []

    def add(self, *args):
        real(self, *args)
        calls.append(args[:2])
        if len(calls) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(KeyboardInterrupt):
        fp.commutativity(model, batches, ORDERS, progress=False, journal=Journal(tmp_path))
    with (tmp_path / FILE).open("a") as file:
        file.write('[2, 0, {"tok')  # cut off while it was written

    again = fp.commutativity(model, batches, ORDERS, progress=False, journal=Journal(tmp_path, resume=True))

    assert len(calls) == len(set(calls)) == 3 * 7
    assert json.dumps(again.rows) == json.dumps(whole.rows)


def test_a_run_does_not_resume_from_a_different_run(tmp_path):
    model, batches = tiny_model("bert"), tiny_batches()
    with pytest.raises(InputError, match=r"--resume: there is no .*orders.jsonl"):
        fp.commutativity(model, batches, ORDERS, progress=False, journal=Journal(tmp_path, resume=True))
    fp.commutativity(model, batches, ORDERS, progress=False, journal=Journal(tmp_path))
    before = (tmp_path / FILE).read_text()

    with pytest.raises(InputError, match="of a run with another orders; start anew"):
        fp.commutativity(model, batches, ORDERS[:2], progress=False, journal=Journal(tmp_path, resume=True))

    assert (tmp_path / FILE).read_text() == before


def test_results_are_saved_loaded_and_drawn(tmp_path):
    effects = fp.commutativity(tiny_model("bert"), tiny_batches(), orders.swaps(3), progress=False)
    effects.save(tmp_path)

    loaded = fp.load(tmp_path)

    assert loaded == effects
    matrix = loaded.matrix("cosine")
    assert np.array_equal(matrix, matrix.T, equal_nan=True)
    assert matrix[0, 1] == effects.rows[1]["cosine"]
    loaded.plot(tmp_path / "swaps.png")
    fp.commutativity(tiny_model("bert"), tiny_batches(), ORDERS, progress=False).plot(tmp_path / "all.png", "cosine")
    assert {path.name for path in tmp_path.glob("*.png")} == {"swaps.png", "all.png"}


@pytest.mark.parametrize("family", ["bert-mlm", "gemma2", "neox"])
def test_states_after_each_step_equal_those_of_shorter_models(family):
    model, batches = tiny_model(family), tiny_batches(sequences=5, batch_size=3)
    wanted = [orders.parse("2,0,1"), orders.parse("0,1"), orders.parse("1,1,0,2,2")]

    effects = fp.commutativity(model, batches, wanted, depths=True, progress=False)

    for row, order in zip(effects.rows[1:], wanted, strict=True):
        steps = order.layers[:3]
        for depth in range(1, len(steps) + 1):
            expected = expected_state(model, batches, steps[:depth], depth)
            for column, value in expected.items():
                assert row[f"{column}_by_depth"][depth - 1] == pytest.approx(value, abs=1e-5), (order, depth, column)
        assert len(row["relative_l2_by_depth"]) == len(row["cosine_se_by_depth"]) == len(steps)
    assert effects.rows[0]["relative_l2_by_depth"] == [0.0] * 3
    assert np.isnan(effects.profile()[2]).tolist() == [False, False, True]


@torch.no_grad()
def expected_state(model, batches, steps, depth):
    """Return the columns of the state after ``depth`` steps, from models that have only these layers."""
    error = norm = cosine = tokens = 0.0
    one, other = moved(model, range(depth)), moved(model, steps)
    for batch in batches:
        mask = batch["attention_mask"].bool()
        a, b = (final(m, batch)[0][mask] for m in (one, other))
        error, norm = error + float((a - b).square().sum()), norm + float(a.square().sum())
        cosine, tokens = cosine + float(F.cosine_similarity(a, b).sum()), tokens + len(a)
    return {"relative_l2": (error / norm) ** 0.5, "cosine": cosine / tokens}


def test_an_interrupted_run_keeps_the_states_after_each_step(tmp_path):
    model, batches = tiny_model("gpt2"), tiny_batches()
    whole = fp.commutativity(model, batches, ORDERS, depths=True, progress=False, journal=Journal(tmp_path))
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text("".join(lines[:5]))

    again = fp.commutativity(
        model, batches, ORDERS, depths=True, progress=False, journal=Journal(tmp_path, resume=True)
    )

    assert again.rows == whole.rows
    with pytest.raises(InputError, match="another depths"):
        fp.commutativity(model, batches, ORDERS, progress=False, journal=Journal(tmp_path, resume=True))


def test_profiles_are_drawn_and_refused_without_depths(tmp_path):
    model, batches = tiny_model("gpt2"), tiny_batches()

    fp.commutativity(model, batches, ORDERS, depths=True, progress=False).plot(
        tmp_path / "profiles.png", "cosine_by_depth"
    )

    assert (tmp_path / "profiles.png").stat().st_size > 10_000
    with pytest.raises(InputError, match=r"no row has 'cosine_by_depth'; run commutativity\(..., depths=True\)"):
        fp.commutativity(model, batches, ORDERS, progress=False).plot(metric="cosine_by_depth")


def test_labels_without_a_head_are_refused():
    batches = [batch | {"labels": batch["input_ids"]} for batch in tiny_batches()]

    with pytest.raises(InputError, match="BertModel has no language-model head to predict their labels with; load it"):
        fp.commutativity(tiny_model("bert"), batches, ORDERS, progress=False)


def test_states_that_do_not_fit_in_memory_are_refused_before_they_run(monkeypatch):
    monkeypatch.setattr("fastprobe.reordering.order_runs.free_bytes", lambda device: 3 * 6 * 14 * 32 * 4 - 1)

    with pytest.raises(InputError, match=r"take 43.0 kB at a time and 32.3 kB are free; use smaller batches"):
        fp.commutativity(tiny_model("gpt2"), tiny_batches(), ORDERS, progress=False)


def test_an_unknown_metric_is_refused_by_name():
    effects = fp.commutativity(tiny_model("bert"), tiny_batches(), ORDERS, progress=False)

    with pytest.raises(InputError, match="no row has 'loss'; the rows have"):
        effects.matrix("loss")


@pytest.mark.parametrize("call", [fp.linearity, lambda model, batches: fp.commutativity(model, batches, ORDERS)])
def test_the_name_of_a_model_is_refused(call):
    with pytest.raises(InputError, match="must be a Hugging Face model, got 'gpt2'; load one with"):
        call("gpt2", tiny_batches())


def test_a_result_has_a_repr_of_one_line():
    effects = fp.commutativity(tiny_model("bert"), tiny_batches(), ORDERS, progress=False)

    assert repr(effects) == f"<OrderEffects: 7 rows, {effects.config['tokens']} tokens>"


def test_rows_say_what_their_order_changes():
    wanted = [(1, 0, 2), (1, 2, 0), *orders.drops(3)[:1], *orders.sublayer_swaps(3, "ffn")[1:2]]

    rows = fp.commutativity(tiny_model("bert"), tiny_batches(), wanted, progress=False).rows

    assert [*rows[0]][-4:] == ["i", "j", "kept", "dropped"]
    assert [(row["i"], row["j"], row["kept"], row["dropped"]) for row in rows] == [
        (None, None, 3, []),
        (0, 1, 1, []),
        (None, None, 0, []),
        (None, None, None, [0]),
        (0, 2, None, []),
    ]


@pytest.mark.parametrize(
    ("wanted", "picture"),
    [
        (orders.swaps(3), "heatmap"),
        ([(1, 0, 2)], "heatmap"),
        (orders.sublayer_swaps(3, "attention"), "heatmap"),
        ([*orders.swaps(3), *orders.shuffles(3)], "curve"),
        (orders.shuffles(3), "dots"),
        (ORDERS, "dots"),
        ([*orders.swaps(3), *orders.sublayer_swaps(3, "ffn")], "dots"),
    ],
)
def test_the_picture_depends_on_what_the_orders_change(wanted, picture):
    effects = fp.commutativity(tiny_model("bert"), tiny_batches(), wanted, progress=False)

    axes = effects.plot().axes[0]

    x_labels = {"heatmap": "layer", "curve": "layers kept in place", "dots": "relative_l2"}
    assert axes.get_xlabel() == x_labels[picture]
    assert bool(axes.images) == (picture == "heatmap")


def test_the_old_name_of_orders_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match="commutativity: the argument which is now orders"):
        effects = fp.commutativity(tiny_model("bert"), tiny_batches(), which=[(0, 1)], progress=False)

    assert [row["order"] for row in effects.rows] == ["0,1,2", "0,1"]
