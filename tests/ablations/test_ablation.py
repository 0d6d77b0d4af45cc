"""Ablations, compared with hooks on the Hugging Face model, one sequence at a time."""

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastprobe as fp
from fastprobe.ablations.element_outputs import mean_outputs, sampled_outputs
from fastprobe.ablations.replacements import Resampled
from fastprobe.errors import InputError
from fastprobe.models.calling import first_input, first_tensor
from fastprobe.models.edits import EDITABLE
from fastprobe.models.element_weights import initial_weights, linear_modules
from fastprobe.models.points import ELEMENTS, Element
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.runtime.journal import FILE, Journal
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.models.test_bert_variants import CHANGES, variant
from tests.reordering.test_commutativity import final

SETS = [[1], [0, 2]]
VARIANTS = {name: changes for name, changes in CHANGES.items() if changes}
ALPHA, FOLDS = 0.5, 3


def elements_of(points):
    return [name for name in points.elements if name in EDITABLE]


def sequences_of(batches):
    """Yield every sequence as a batch without padding."""
    for batch in batches:
        for row, mask in enumerate(batch["attention_mask"].bool()):
            yield {key: value[row : row + 1, mask] for key, value in batch.items()}


def hook(stack, layer, place, function):
    module = layer.get_submodule(place.module)
    register = module.register_forward_hook if place.output else module.register_forward_pre_hook
    stack.callback(register(function, with_kwargs=True).remove)


def read(stack, points, layer, name, into):
    """Keep the tensor at a point of a layer in ``into``, a list of one."""

    def look(_, args, kwargs, *result):
        into[:] = [first_tensor(result[0]) if result else first_input(args, kwargs)]

    place = points.found[layer].place(name)
    hook(stack, points.layers[layer], place, look)


def edit(stack, points, element, layer, function):
    """Add hooks that replace y of an element by ``function(x)``; a sum through the part that is added last."""
    layout, block = points.layouts[layer], points.layers[layer]
    x, state = [], []
    read(stack, points, layer, ELEMENTS[element][0], x)
    place = points.found[layer].place(ELEMENTS[element][1])
    if element in ("attention", "ffn") and not layout.attn.sum_norm:
        read(stack, points, layer, ELEMENTS[element][0], state)
        added = {"attention": layout.attn.added, "ffn": layout.mlp.added}
        place = type(place)(added[element], True)

    def put(_, args, kwargs, *result):
        out = function(x[0]) - (state[0] if state else 0)
        if not result:
            return ((out, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": out})
        return out if isinstance(result[0], torch.Tensor) else (out, *result[0][1:])

    hook(stack, block, place, put)


@torch.no_grad()
def rows_of(model, points, batches, element, layer):
    """Return x and y of an element for every sequence."""
    rows = []
    for batch in sequences_of(batches):
        x, y = [], []
        with ExitStack() as stack:
            read(stack, points, layer, ELEMENTS[element][0], x)
            read(stack, points, layer, ELEMENTS[element][1], y)
            final(model, batch)
        rows.append((x[0][0], y[0][0]))
    return rows


def ridge(x, y):
    centred = x - x.mean(0)
    coef = torch.linalg.solve(centred.mT @ centred + ALPHA * torch.eye(x.shape[1]).to(x), centred.mT @ (y - y.mean(0)))
    return lambda rows: (rows - x.mean(0)) @ coef + y.mean(0)


def function_for(mode, rows, sequence):
    """Return the replacement of an element in a sequence, from stored activations of the unedited model."""
    y = torch.cat([y for _, y in rows])
    if mode == "zero":
        return lambda x: x.new_zeros(*x.shape[:-1], y.shape[1])
    if mode == "mean":
        return lambda x: y.mean(0).expand(*x.shape[:-1], -1)
    if mode == "identity":
        return lambda x: x
    train = [pair for s, pair in enumerate(rows) if s % FOLDS != sequence % FOLDS]
    return ridge(*(torch.cat(side) for side in zip(*train, strict=True)))


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
@torch.no_grad()
def test_rows_equal_those_of_plain_hooks(family):
    changes = VARIANTS.get(family)
    model = tiny_model(family, dtype=torch.float64) if changes is None else variant(changes, torch.float64)
    batches = tiny_batches(sequences=9, batch_size=4)
    points = resolve(model)
    owns = [final(model, batch) for batch in sequences_of(batches)]

    for element in elements_of(points):
        rows = {layer: rows_of(model, points, batches, element, layer) for layer in range(3)}
        square = rows[0][0][0].shape == rows[0][0][1].shape
        modes = ["zero", "mean", "linear"] + ["identity"] * square
        damage = fp.ablation(
            model, batches, elements=[element], mode=modes, layers=SETS, folds=FOLDS, alpha=ALPHA, progress=False
        )
        assert [(row["mode"], row["layers"]) for row in damage.rows[1:]] == [
            (mode, text) for mode in modes for text in ("1", "0,2")
        ]
        for row in damage.rows[1:]:
            error = norm = cosine = kl = tokens = seen = 0.0
            for number, batch in enumerate(sequences_of(batches)):
                with ExitStack() as stack:
                    for layer in map(int, row["layers"].split(",")):
                        edit(stack, points, element, layer, function_for(row["mode"], rows[layer], number))
                    state, logits = final(model, batch)
                own, own_logits = owns[number]
                error, norm = error + float((state - own).square().sum()), norm + float(own.square().sum())
                cosine, tokens = cosine + float(F.cosine_similarity(state, own, dim=-1).sum()), tokens + state.shape[1]
                if logits is not None:
                    last = logits.shape[1] - model.can_generate()  # a decoder predicts no token after the last
                    p, q = own_logits[0, :last].log_softmax(-1), logits[0, :last].log_softmax(-1)
                    kl, seen = kl + float(F.kl_div(q, p, log_target=True, reduction="sum")), seen + last
            where = (element, row["mode"], row["layers"])
            assert row["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-6, rel=1e-6), where
            assert row["cosine"] == pytest.approx(cosine / tokens, abs=1e-6), where
            if seen:
                assert row["kl"] == pytest.approx(kl / seen, abs=1e-6), where


@pytest.mark.parametrize("family", FAMILIES)
def test_replacing_an_affine_element_by_its_map_has_no_effect(family):
    damage = fp.ablation(
        tiny_model(family),
        tiny_batches(sequences=40),
        elements=["attn_proj"],
        mode="linear",
        layers="forward",
        progress=False,
    )

    assert all(row["relative_l2"] < 1e-4 for row in damage.rows)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "gpt2", "neox"])
def test_replacing_a_linear_ffn_by_its_map_has_no_effect(family):
    model = tiny_model(family)
    for layer in resolve(model).layers:
        owner, name = (layer.mlp, "act") if hasattr(layer, "mlp") else (layer.intermediate, "intermediate_act_fn")
        assert hasattr(owner, name)
        setattr(owner, name, torch.nn.Identity())

    damage = fp.ablation(
        model, tiny_batches(sequences=40), elements=["mlp"], mode="linear", layers="backward", progress=False
    )

    assert all(row["relative_l2"] < 1e-4 for row in damage.rows)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_maps_of_a_bfloat16_model_are_float32(family):
    model, batches = tiny_model(family, dtype=torch.bfloat16), tiny_batches(sequences=40)

    damage = fp.ablation(model, batches, elements="attn_proj", mode="linear", layers="forward", progress=False)

    assert all(row["relative_l2"] < 0.02 for row in damage.rows)  # three layers that round to eight bits


def test_layers_before_an_edit_run_once():
    model, batches = tiny_model("gpt2"), tiny_batches()

    each = fp.ablation(model, batches, mode=["zero", "identity"], progress=False)
    forward = fp.ablation(model, batches, layers="forward", progress=False)
    backward = fp.ablation(model, batches, layers="backward", progress=False)

    assert each.config["layer_forwards"] == 3 + 2 * (3 + 2 + 1)
    assert (forward.config["layer_forwards"], backward.config["layer_forwards"]) == (3 + 3 + 2 + 1, 3 + 3 + 2 + 1)
    assert forward.config["sets"] == ["0", "0-2", "0-3"]
    assert backward.config["sets"] == ["0-3", "1-3", "2"]
    assert forward.rows[-1]["relative_l2"] == backward.rows[1]["relative_l2"]


@pytest.mark.parametrize("mode", ["mean", "resample", "random_init", "linear"])
def test_the_split_into_batches_does_not_change_numbers(mode):
    model, options = tiny_model("gpt2"), {"elements": ["mlp", "attn"], "mode": mode, "progress": False}
    whole = fp.ablation(model, tiny_batches(batch_size=18), **options)

    parts = fp.ablation(model, tiny_batches(batch_size=4), memory=1, **options)

    for row, other in zip(whole.rows, parts.rows, strict=True):
        assert row["relative_l2"] == pytest.approx(other["relative_l2"], abs=1e-5)


@torch.no_grad()
def test_means_and_samples_exclude_padding():
    model, batches = tiny_model("llama"), tiny_batches()
    points, element = resolve(model), Element("mlp", 1, 2)
    outputs = [y for _, y in rows_of(model, points, batches, "mlp", 1)]

    mean = mean_outputs(model, points, batches, [element])[element]
    sampled, sequence = sampled_outputs(model, points, batches, [element], size=7)

    torch.testing.assert_close(mean, torch.cat(outputs).double().mean(0), rtol=0, atol=1e-6)
    assert len(sequence.unique()) == 7
    for number in sequence.unique():
        torch.testing.assert_close(sampled[element][sequence == number], outputs[number], rtol=0, atol=1e-5)


@torch.no_grad()
def test_resampled_outputs_come_from_other_sequences():
    model, batch = tiny_model("bert"), tiny_batches()[0]
    stack = LayerStack.record(model, resolve(model), batch, first=2)
    sequence = torch.arange(8).repeat_interleave(5)
    resampled = Resampled(sequence[:, None] * 1.0, sequence, seed=0)

    drawn = resampled(torch.zeros(12, 14, 1), stack)

    own = torch.arange(2, 8)[:, None]
    assert drawn.shape == (12, 14, 1)
    assert torch.equal(drawn[:6], drawn[6:])
    assert (drawn[:6, :, 0] != own).all()
    assert len(drawn.unique()) == 8
    other = Resampled(sequence[:, None] * 1.0, sequence, seed=1)
    assert not torch.equal(other(torch.zeros(6, 14, 1), stack), drawn[:6])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_initial_weights_equal_those_of_the_published_script(family):
    model, batches = tiny_model(family), tiny_batches(sequences=6)
    points = resolve(model)
    for element in elements_of(points):
        damage = fp.ablation(model, batches, elements=[element], mode="random_init", layers=[1], seed=3, progress=False)

        changed = copy.deepcopy(model)
        layer = resolve(changed).layers[1]
        paths = linear_modules(layer, points.layouts[1], element)
        weights = initial_weights(layer, points.layouts[1], element, (3, 1))
        assert all("norm" not in name.lower() and "ln" not in name for name in weights)
        layer.load_state_dict(weights, strict=False)
        matrices = torch.cat([weights[f"{path}.weight"].flatten() for path in paths])
        other = initial_weights(layer, points.layouts[1], element, (4, 1))
        assert not any(torch.equal(weights[f"{path}.weight"], other[f"{path}.weight"]) for path in paths)
        assert float(matrices.std()) == pytest.approx(0.0176, rel=0.05)
        assert float(matrices.abs().max()) <= 0.04
        assert all((value == 0).all() for name, value in weights.items() if value.ndim == 1)
        error = norm = 0.0
        for batch in batches:
            mask = batch["attention_mask"].bool()
            own, state = final(model, batch)[0][mask], final(changed, batch)[0][mask]
            error, norm = error + float((state - own).square().sum()), norm + float(own.square().sum())
        assert damage.rows[1]["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)


def test_matrices_are_assigned_to_attention_or_ffn():
    layout, layer = resolve(tiny_model("bert")).layouts[0], tiny_model("bert").encoder.layer[0]

    found = {element: linear_modules(layer, layout, element) for element in EDITABLE}

    heads = [f"attention.self.{name}" for name in ("query", "key", "value")]
    assert found["attn"] == found["attention"] == [*heads, "attention.output.dense"]
    assert found["attn_heads"] == heads
    assert found["attn_proj"] == ["attention.output.dense"]
    assert found["mlp"] == found["ffn"] == ["intermediate.dense", "output.dense"]
    assert found["mlp_act"] == ["intermediate.dense"]
    assert found["layer"] == [*found["attn"], *found["mlp"]]


@torch.no_grad()
def test_the_model_does_not_change():
    model, batches = tiny_model("gpt2"), tiny_batches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    fp.ablation(model, batches, elements=list(EDITABLE), mode=["zero", "random_init"], progress=False)
    with pytest.raises(ZeroDivisionError):
        fp.ablation(model, batches, mode="random_init", metrics={"bad": lambda *_: 1 / 0}, progress=False)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_the_result_has_its_linear_maps():
    model, batches = tiny_model("gpt2"), tiny_batches(sequences=40)

    damage = fp.ablation(model, batches, elements=["mlp"], mode="linear", layers=[0, 2], progress=False)

    assert set(damage.maps) == {"mlp.0", "mlp.2"}
    assert damage.config["alpha"] == {name: solution.alpha for name, solution in damage.maps.items()}
    x, y = (torch.cat(side) for side in zip(*rows_of(model, resolve(model), batches, "mlp", 2), strict=True))
    left = (y - damage.maps["mlp.2"](x)).square().sum() / (y - y.mean(0)).square().sum()
    assert float(left) < 0.9


def test_an_interrupted_run_resumes(tmp_path):
    model, batches = tiny_model("gpt2"), tiny_batches()
    options = {"mode": ["zero", "linear"], "progress": False}
    whole = fp.ablation(model, batches, **options, journal=Journal(tmp_path))
    lines = (tmp_path / FILE).read_text().splitlines()
    (tmp_path / FILE).write_text("\n".join(lines[:9]) + "\n")

    resumed = fp.ablation(model, batches, **options, journal=Journal(tmp_path, resume=True))

    assert resumed.config["layer_forwards_run"] < whole.config["layer_forwards_run"]
    for row, other in zip(resumed.rows, whole.rows, strict=True):
        assert row["relative_l2"] == pytest.approx(other["relative_l2"], abs=1e-6)
    with pytest.raises(InputError, match="--resume"):
        fp.ablation(model, batches, **options, folds=2, journal=Journal(tmp_path, resume=True))


def test_results_are_saved_loaded_and_drawn(tmp_path):
    damage = fp.ablation(
        tiny_model("gpt2"), tiny_batches(), elements=["mlp", "attn"], mode=["zero", "mean"], progress=False
    )
    damage.save(tmp_path)

    loaded = fp.load(tmp_path)
    loaded.plot(tmp_path / "damage.png", "kl")

    assert loaded == damage
    assert loaded.lines == [("mlp", "zero"), ("mlp", "mean"), ("attn", "zero"), ("attn", "mean")]
    assert loaded.matrix().shape == (4, 3)
    assert loaded.matrix()[2, 1] == damage.rows[8]["relative_l2"]
    assert not np.isnan(loaded.matrix("kl")).any()
    assert list(damage.rows[0])[:3] == ["element", "layers", "mode"]
    assert list(damage.rows[0])[-1] == "edited_layers"


@pytest.mark.parametrize(
    ("layers", "label", "ticks", "edited"),
    [
        ("each", "layer", ["0", "1", "2"], [[0], [1], [2]]),
        ("forward", "layers 0 to", ["0", "1", "2"], [[0], [0, 1], [0, 1, 2]]),
        ("backward", "layers to the last, from", ["0", "1", "2"], [[0, 1, 2], [1, 2], [2]]),
        ([[0, 1], [2]], "layers", ["0-2", "2"], [[0, 1], [2]]),
    ],
)
def test_rows_and_picture_have_the_edited_layers(layers, label, ticks, edited):
    damage = fp.ablation(tiny_model("gpt2"), tiny_batches(), mode=["zero", "mean"], layers=layers, progress=False)

    axes = damage.plot().axes[0]

    assert [row["edited_layers"] for row in damage.rows] == [[], *edited, *edited]
    assert axes.get_xlabel() == label
    assert [text.get_text() for text in axes.get_xticklabels()] == ticks
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mlp, zero", "mlp, mean"]
    assert np.array_equal([line.get_ydata() for line in axes.lines], damage.matrix())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": ["head"]}, "unknown element 'head'"),
        ({"elements": ["ffn_sum"]}, "'ffn_sum' has no output of its own to replace; those that have are layer"),
        ({"elements": []}, "there is nothing to ablate"),
        ({"mode": "none"}, "mode: 'none' is not one of zero, mean"),
        ({"mode": []}, "mode: there is none"),
        ({"layers": "all"}, "layers: 'all' is not one of each, forward, backward"),
        ({"layers": [3]}, "there is no layer 3"),
        ({"layers": [[0], []]}, "a set of layers is empty"),
        ({"elements": ["mlp_act"], "mode": "identity"}, "identity needs an output as wide as its input; mlp_act.0"),
        ({"folds": -1, "mode": "linear"}, "folds: must be 0 or more"),
        ({"seed": -1}, "seed: must be 0 or more, got -1"),
        ({"alpha": -1.0, "mode": "linear"}, "alpha: must be 0 or more"),
    ],
)
def test_unusable_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fp.ablation(tiny_model("gpt2"), tiny_batches(), progress=False, **options)


def test_unusable_batches_are_refused():
    model, batches = tiny_model("gpt2"), tiny_batches()
    with pytest.raises(InputError, match="a list_iterator can be read only once"):
        fp.ablation(model, iter(batches), progress=False)
    with pytest.raises(InputError, match="batches: there are none"):
        fp.ablation(model, [], progress=False)
    with pytest.raises(InputError, match="mode: resample needs 2 sequences or more, got 1"):
        fp.ablation(model, tiny_batches(sequences=1), mode="resample", progress=False)
    with pytest.raises(InputError, match="this model has no 'ffn'"):
        fp.ablation(tiny_model("neox"), batches, elements=["ffn"], progress=False)
