"""Probes, compared with ridge classifiers on stored states, and on labels planted in one of them."""

import importlib
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from transformers import AutoTokenizer

import fastprobe as fp
from fastprobe.data.demo import demo_model_path
from fastprobe.errors import InputError
from fastprobe.models.resolve import resolve
from fastprobe.orders import Parallel, parse
from fastprobe.probes.token_labels import FREQUENT, SENTENCES, TokenLabels
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

FOLDS = 4


@torch.no_grad()
def states_of(model, batches, order=(0, 1, 2)):
    """Return every state at the tokens that are not padding, float64, and the fold of each token."""
    states, numbers, first = [[] for _ in range(len(order) + 1)], [], 0
    layers = resolve(model).layers
    for batch in batches:
        mask, seen = batch["attention_mask"].bool(), []
        handles = [layer.register_forward_pre_hook(look(seen), with_kwargs=True) for layer in layers]
        handles.append(layers[-1].register_forward_hook(lambda _, __, out, seen=seen: seen.append(out)))
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for handle in handles:
            handle.remove()
        for kept, state in zip(states, seen, strict=True):
            kept.append((state if isinstance(state, torch.Tensor) else state[0])[mask].double())
        sequence = torch.arange(first, first + len(mask))[:, None].expand(mask.shape)
        numbers.append(sequence[mask])
        first += len(mask)
    return [torch.cat(kept).numpy() for kept in states], torch.cat(numbers).numpy() % FOLDS


def look(seen):
    return lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"])


def column(batches, labels):
    """Return one label a token, without padding."""
    return torch.cat([label[b["attention_mask"].bool()] for b, label in zip(batches, labels, strict=True)]).numpy()


def ridge_classifiers(x, y, fold, alpha):
    """Return accuracy, held-out accuracy and r2_cv of one-hot targets."""
    inside = RidgeClassifier(alpha=alpha).fit(x, y).score(x, y)
    right, rss, tss = 0, 0.0, 0.0
    one_hot = np.eye(y.max() + 1)[y]
    for f in range(FOLDS):
        train, held = fold != f, fold == f
        right += (RidgeClassifier(alpha=alpha).fit(x[train], y[train]).predict(x[held]) == y[held]).sum()
        mean, y_mean = x[train].mean(0), one_hot[train].mean(0)
        gram = (x[train] - mean).T @ (x[train] - mean) + alpha * np.eye(x.shape[1])
        coef = np.linalg.solve(gram, (x[train] - mean).T @ (one_hot[train] - y_mean))
        rss += ((one_hot[held] - y_mean - (x[held] - mean) @ coef) ** 2).sum()
        tss += ((one_hot[held] - y_mean) ** 2).sum()
    return inside, right / len(y), 1 - rss / tss


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_those_of_ridge_classifiers_on_stored_states(family):
    model, batches = tiny_model(family, dtype=torch.float64), tiny_batches(sequences=40, batch_size=7)
    states, fold = states_of(model, batches)
    labels = TokenLabels(["token", "position"], batches)

    found = fp.probe(
        model,
        batches,
        tasks=["token", "position"],
        folds=FOLDS,
        method=fp.LeastSquares(alpha=2.0),
        score_sequences="all",
        progress=False,
    )

    for task in ("token", "position"):
        y = column(batches, [labels(batch)[task] for batch in batches])
        for k, x in enumerate(states):
            row = next(row for row in found.rows if (row["task"], row["state"]) == (task, k))
            accuracy, accuracy_cv, r2_cv = ridge_classifiers(x, y, fold, 2.0)
            assert row["r2_cv"] == pytest.approx(r2_cv, abs=1e-8)
            assert row["accuracy"] == pytest.approx(accuracy, abs=1e-12)
            assert row["accuracy_cv"] == pytest.approx(accuracy_cv, abs=1e-12)
            assert row["majority"] == np.bincount(y).max() / len(y)
            assert (row["tokens"], row["classes"]) == (len(y), len(np.unique(y)))


@torch.no_grad()
def with_a_wild_layer():
    """Return an encoder whose layer 1 is far from linear."""
    model = tiny_model("bert")
    model.encoder.layer[1].intermediate.dense.weight.mul_(10)
    model.encoder.layer[1].output.dense.weight.mul_(3)
    return model


def planted(model, batches):
    """Add labels: the sign of the direction of state 2 that states 0 and 1 predict worst; none if it is near 0."""
    states, _ = states_of(model, batches)
    before = np.concatenate([states[0], states[1], np.ones((len(states[0]), 1))], 1)
    after = states[2] - states[2].mean(0)
    left = after - before @ np.linalg.lstsq(before, after, rcond=None)[0]
    scale, basis = np.linalg.eigh(after.T @ after)
    whiten = basis[:, 1:] / np.sqrt(scale[1:])  # a LayerNorm leaves the first one out
    direction = whiten @ np.linalg.eigh(whiten.T @ left.T @ left @ whiten)[1][:, -1]
    along = after @ direction
    sign = torch.from_numpy((along > 0).astype(int))
    sign[np.abs(along) < np.quantile(np.abs(along), 0.4)] = -100
    labelled, start = [], 0
    for batch in batches:
        mask = batch["attention_mask"].bool()
        label = torch.full(mask.shape, 7)  # padding, which nobody looks at
        label[mask] = sign[start : start + int(mask.sum())]
        start += int(mask.sum())
        labelled.append(batch | {"sign": label})
    return labelled


def test_planted_labels_are_found_in_their_state_and_not_before():
    model = with_a_wild_layer()
    batches = planted(model, tiny_batches(sequences=300, batch_size=50))

    found = fp.probe(model, batches, tasks=["sign"], score_sequences="all", progress=False)

    accuracy = found.matrix("accuracy_cv")[0]
    assert accuracy[2] > 0.95
    assert accuracy[:2].max() < 0.75
    assert found.rows[0]["tokens"] == sum(int((b["sign"][b["attention_mask"].bool()] >= 0).sum()) for b in batches)
    assert found.rows[0]["classes"] == 2
    assert 1.5 < found.expected_state()["sign"] <= 2.0


def test_planted_labels_move_with_their_layer():
    model = with_a_wild_layer()
    batches = planted(model, tiny_batches(sequences=300, batch_size=50))

    found = fp.probe(model, batches, tasks=["sign"], orders=[[0], [1, 0, 2]], progress=False)

    assert found.orders == ["0,1,2", "0", "1,0,2"]
    alone, baseline = found.matrix("r2_cv", "0"), found.matrix("r2_cv")
    assert np.array_equal(alone, baseline[:, :2])
    assert found.matrix("r2_cv", "1,0,2")[0, 2] < baseline[0, 2]
    assert found.config["layer_forwards"] == 6


@torch.no_grad()
def test_states_of_an_order_equal_those_of_the_stack():
    model, batches = tiny_model("llama"), tiny_batches(sequences=60)
    order = parse("2,(0+1)")

    found = fp.probe(model, batches, tasks=["position"], orders=[order], progress=False)

    alone = fp.probe(model, batches, tasks=["position"], progress=False)
    assert order.steps[1] == Parallel((0, 1))
    assert [row["step"] for row in found.rows if row["order"] == "2,(0+1)"] == ["", "2", "(0+1)"]
    assert found.matrix("r2_cv", "2,(0+1)")[0, 0] == alone.matrix()[0, 0]


def test_batches_and_memory_do_not_change_numbers():
    model = tiny_model("gpt2")
    whole = fp.probe(model, tiny_batches(sequences=40, batch_size=40), progress=False)

    parts = fp.probe(model, tiny_batches(sequences=40, batch_size=7), memory=1, progress=False)

    for row, other in zip(whole.rows, parts.rows, strict=True):
        assert row["r2_cv"] == pytest.approx(other["r2_cv"], abs=1e-5)
        assert row["accuracy_cv"] == pytest.approx(other["accuracy_cv"], abs=0.01)


def test_state_0_predicts_token_and_position_best():
    expected = fp.probe(tiny_model("gpt2"), tiny_batches(sequences=60), progress=False).expected_state()

    assert expected["token"] == 0
    assert expected["position"] < 0.5


def test_labels_of_every_task():
    ids = torch.tensor([[5, 6, 5, 7, 0], [5, 9, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "mine": torch.tensor([[3, -100, 0, 1, 9], [2] * 5])}
    labels = TokenLabels(["token", "previous", "next", "position", "mine"], [batch])

    found = labels(batch)

    kinds = found["token"][0, :4].tolist()
    assert kinds[0] == kinds[2] == 1  # the most frequent one
    assert len(set(kinds)) == 3
    none = labels.classes("next") - 1
    assert found["previous"][0].tolist() == [none, *kinds[:3], -1]
    assert found["next"][0].tolist() == [*kinds[1:], none, -1]
    assert found["next"][1].tolist() == [found["token"][1, 1], none, -1, -1, -1]
    assert found["position"].tolist() == [[0, 1, 2, 3, -1], [0, 1, -1, -1, -1]]
    assert found["mine"].tolist() == [[3, -1, 0, 1, -1], [2, 2, -1, -1, -1]]
    assert [labels.classes(task) for task in ("token", "position", "mine")] == [5, 4, 4]


def test_left_padding_is_not_a_neighbour():
    ids = torch.tensor([[0, 5, 6]])
    labels = TokenLabels(["previous", "position"], [{"input_ids": ids, "attention_mask": (ids > 0).long()}])

    found = labels({"input_ids": ids, "attention_mask": (ids > 0).long()})

    assert found["previous"][0].tolist() == [-1, labels.classes("previous") - 1, 1]
    assert found["position"][0].tolist() == [-1, 0, 1]


def test_rare_tokens_are_one_class():
    ids = torch.arange(3 * FREQUENT).repeat(2)[: 3 * FREQUENT + 50][None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = TokenLabels(["token"], [batch])

    kinds = labels(batch)["token"][0]

    assert labels.classes("token") == FREQUENT + 1
    assert set(kinds[:50].tolist()) <= set(range(1, 51))  # seen twice
    assert (kinds == 0).sum() == 3 * FREQUENT - FREQUENT


def test_word_pieces_and_sentences_follow_from_the_text():
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    batch = dict(tokenizer(["Tokenizers split. Is it so? Yes!"], return_tensors="pt"))
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])

    found = TokenLabels(["word_piece", "sentence"], [batch], tokenizer)(batch)

    assert found["word_piece"][0].tolist() == [int(word.startswith("##")) for word in words]
    assert found["word_piece"].sum() > 0
    ends = np.cumsum([word in (".", "?", "!") for word in words])
    assert found["sentence"][0].tolist() == [0, *ends[:-1].tolist()]
    many = dict(tokenizer(["a. " * 40], return_tensors="pt"))
    assert int(TokenLabels(["sentence"], [many], tokenizer)(many)["sentence"].max()) == SENTENCES - 1


def test_results_are_saved_loaded_and_drawn(tmp_path):
    found = fp.probe(tiny_model("gpt2"), tiny_batches(sequences=60), orders=[[1, 0, 2]], progress=False)
    found.save(tmp_path)

    loaded = fp.load(tmp_path)
    loaded.plot(tmp_path / "probe.png", "accuracy_cv")

    assert loaded == found
    assert json.loads((tmp_path / "scores.json").read_text())["rows"] == found.rows
    assert loaded.tasks == ["token", "previous", "next", "position"]
    assert loaded.config["expected_state"]["1,0,2"] == found.expected_state("1,0,2")
    assert loaded.matrix().shape == (4, 4)


def test_the_picture_has_a_solid_line_a_task_and_dashed_ones_for_other_orders():
    found = fp.probe(
        tiny_model("gpt2"),
        tiny_batches(),
        tasks=["token", "position"],
        orders=[[1, 0, 2]],
        score_sequences=0,
        progress=False,
    )

    axes = found.plot().axes[0]

    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--", "--"]
    assert np.array_equal([line.get_ydata() for line in axes.lines[2:]], found.matrix(order="1,0,2"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["token", "position"]
    assert axes.get_xlabel() == "layers run (dashed: 1,0,2)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "tasks: there is none; name some of token, previous"),
        ({"tasks": ["pos"]}, r"tasks: 'pos' is not one of token, .*, and batch 0 has no \(batch, length\) tensor"),
        ({"tasks": ["sentence"]}, "sentence needs the text of tokens; pass the tokenizer"),
        ({"orders": [[3]]}, "there is no layer 3"),
        ({"folds": -1}, "folds: must be 0 or more, got -1"),
        ({"score_sequences": "some"}, "score_sequences: must be a number of sequences or 'all', got 'some'"),
    ],
)
def test_unusable_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fp.probe(tiny_model("gpt2"), tiny_batches(), progress=False, **options)


def test_unusable_batches_are_refused(monkeypatch):
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="a list_iterator can be read only once"):
        fp.probe(model, iter(tiny_batches()), progress=False)
    with pytest.raises(InputError, match="batches: there are none"):
        fp.probe(model, [], progress=False)
    unlabelled = [batch | {"pos": torch.full_like(batch["input_ids"], -100)} for batch in tiny_batches()]
    with pytest.raises(InputError, match="no token has a label of 'pos'"):
        fp.probe(model, unlabelled, tasks=["pos"], progress=False)
    found = fp.probe(model, tiny_batches(), tasks=["position"], progress=False)
    with pytest.raises(InputError, match="order: '9' was not run; the orders of this result are 0,1,2"):
        found.matrix(order="9")
    monkeypatch.setattr(importlib.import_module("fastprobe.probes.sums"), "free_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"memory: the moments of 4 states take .* and 1.0 kB are free"):
        fp.probe(model, tiny_batches(), progress=False)


@pytest.mark.parametrize(("family", "runner"), [("bert", "encoder"), ("gpt2", "modules of the model (GPT2Model")])
def test_the_configuration_names_the_runner(family, runner):
    found = fp.probe(tiny_model(family), tiny_batches(), tasks=["token"], score_sequences=0, progress=False)

    assert found.config["runner"].startswith(runner)


def test_unpadded_tokens_give_the_rows_of_the_modules():
    model = tiny_model("bert")
    batches = planted(model, tiny_batches(sequences=60, batch_size=11))
    tasks, orders = ["token", "position", "sign"], [[1, 0, 2], [Parallel((0, 2)), 1]]

    def rows():
        found = fp.probe(model, batches, tasks=tasks, orders=orders, score_sequences="all", progress=False)
        return found.config["runner"], found.rows

    runner, unpadded = rows()
    handle = model.encoder.layer[0].register_forward_hook(lambda *_: None)  # a model with hooks runs its own modules
    other, padded = rows()
    handle.remove()

    assert runner == "encoder"
    assert other.startswith("modules")
    for row, reference in zip(unpadded, padded, strict=True):
        for column, value in reference.items():
            if not isinstance(value, float):
                assert row[column] == value, column
            elif "accuracy" in column:  # a token between two classes may get either
                assert row[column] == pytest.approx(value, abs=2 / reference["tokens"]), column
            else:
                assert row[column] == pytest.approx(value, abs=1e-5), column


def test_the_old_names_of_orders_and_method_are_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"probe: the argument (which|fit) is now (orders|method)") as caught:
        found = fp.probe(
            tiny_model("gpt2"),
            tiny_batches(),
            tasks=["token"],
            which=[[0]],
            fit=fp.LeastSquares(alpha=2.0),
            score_sequences=0,
            progress=False,
        )

    assert len(caught) == 2
    assert (found.orders, found.config["alpha"]) == (["0,1,2", "0"], 2.0)
