"""Encoders of images and sound: every verb against hooks and moved modules; masks that are longer than the states."""

import copy

import pytest
import torch
import transformers
from torch.nn import functional as F

import fastprobe as fp
from fastprobe.data.checks import ATTENDED, TOKEN_MASK
from fastprobe.errors import InputError
from fastprobe.models.resolve import resolve
from tests.reference import columns, read_points, token_folds

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_IMAGES = _SMALL | {"image_size": 16, "patch_size": 4}
_SOUND = _SMALL | {
    "conv_dim": (32, 32),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
_WHISPER = {
    **{"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64},
    **{"num_mel_bins": 8, "max_source_positions": 20, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    **{"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
_TOWERS = {"vision_config": _IMAGES, "text_config": _SMALL | {"vocab_size": 50}}
_CLIP = {
    "attn": [("layer_norm1", "out"), ("self_attn", "out")],
    "mlp": [("layer_norm2", "out"), ("mlp", "out")],
}
_POST_NORM = {
    "attn": [("attention", "in"), ("attention", "out")],
    "mlp": [("layer_norm", "out"), ("feed_forward", "out")],
}
_WHISPER_PLACES = {
    "attn": [("self_attn_layer_norm", "out"), ("self_attn", "out")],
    "mlp": [("final_layer_norm", "out"), ("fc2", "out")],
}
# name -> class, configuration, its fields, the stack, the modules of its elements
ENCODERS = {
    "vit": (
        "ViTModel",
        _IMAGES,
        None,
        {
            "attn": [("layernorm_before", "out"), ("attention", "out")],
            "mlp": [("layernorm_after", "out"), ("mlp", "out")],
        },
    ),
    "dinov2": (
        "Dinov2Model",
        _IMAGES,
        None,
        {"attn": [("norm1", "out"), ("layer_scale1", "out")], "mlp": [("norm2", "out"), ("layer_scale2", "out")]},
    ),
    "clip vision": ("CLIPVisionModel", _IMAGES, None, _CLIP),
    "clip": ("CLIPModel", _TOWERS, "vision", _CLIP),
    "siglip vision": ("SiglipVisionModel", _IMAGES, None, _CLIP),
    "siglip": ("SiglipModel", _TOWERS, "vision", _CLIP),
    "wav2vec2": ("Wav2Vec2Model", _SOUND, None, _POST_NORM),
    "wav2vec2 stable": (
        "Wav2Vec2Model",
        _SOUND | _STABLE,
        None,
        {
            "attn": [("layer_norm", "out"), ("attention", "out")],
            "mlp": [("final_layer_norm", "out"), ("feed_forward", "out")],
        },
    ),
    "hubert": ("HubertModel", _SOUND, None, _POST_NORM),
    "whisper": ("WhisperModel", _WHISPER, None, _WHISPER_PLACES),
}
SOUND = ["wav2vec2", "wav2vec2 stable", "hubert"]
ORDERS = [(1, 0, 2), (0, 2), (2, 1, 0)]
QUIET = {"progress": False}


def encoder(name):
    """Return a random model in float64, its stack, and the part of it that runs the stack."""
    kind, fields, stack, _ = ENCODERS[name]
    config = getattr(transformers, kind.replace("Model", "Config"))(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = model.double()
    return model, stack, resolve(model, stack).part_of(model)


def batches_of(name, count=4, size=5, masked=False):
    """Return batches for an encoder, with the masks of their states for the references."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(count):
        if name in SOUND:
            samples = 153  # 14 states
            values = torch.randn(size, samples, generator=generator, dtype=torch.float64)
            lengths = torch.randint(60, samples + 1, (size,), generator=generator)
            mask = (torch.arange(samples) < lengths[:, None]).long()
            states = ((lengths - 10) // 5 + 1 - 3) // 2 + 1
            batch = {"input_values": values}
            length = ((samples - 10) // 5 + 1 - 3) // 2 + 1
        elif name == "whisper":
            batch = {"input_features": torch.randn(size, 8, 40, generator=generator, dtype=torch.float64)}
            lengths, length = torch.randint(8, 41, (size,), generator=generator), 20
            mask, states = (torch.arange(40) < lengths[:, None]).long(), (lengths - 1) // 2 + 1
        else:
            batch = {"pixel_values": torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)}
            length = 16 if "siglip" in name else 17
        if masked:
            batch["attention_mask"] = mask
            batch[ATTENDED] = torch.arange(length) < states[:, None]
        else:
            batch[ATTENDED] = torch.ones(size, length, dtype=torch.bool)
        found.append(batch)
    return found


def given(batches):
    """Return batches as a user passes them."""
    return [{key: value for key, value in batch.items() if key != ATTENDED} for batch in batches]


CASES = [(name, False) for name in ENCODERS] + [(name, True) for name in (*SOUND, "whisper")]


@pytest.mark.parametrize("schedule", ["batch", "layer"])
@pytest.mark.parametrize(("name", "masked"), CASES)
def test_rows_equal_fits_on_what_hooks_read(name, masked, schedule):
    model, stack, part = encoder(name)
    batches = batches_of(name, masked=masked, count=8)
    places = {"layer": [("", "in"), ("", "out")], **ENCODERS[name][3]}
    named = {f"{element} {end}": places[element][end] for element in places for end in (0, 1)}
    stored = read_points(part, resolve(model, stack).layers, named, batches)

    scan = fp.linearity(
        model, given(batches), elements=[*places], stack=stack, schedule=schedule, score_sequences="all", **QUIET
    )

    assert scan.config["tokens"] == sum(int(batch[ATTENDED].sum()) for batch in batches)
    assert len(scan.rows) == 9
    for row in scan.rows:
        x, y = (stored[f"{row['element']} {end}.{row['layer']}"] for end in (0, 1))
        expected = columns(x, y, token_folds(batches, 5))
        for column in ("r2", "r2_cv", "cosine", "cosine_cv", "anisotropy"):
            allowed = max(1e-5, row["error_bound"])
            assert row[column] == pytest.approx(expected[column], abs=allowed), (row["element"], column)


def moved(part, layers, order):
    """Return a copy of a model with its layers in another order."""
    part = copy.deepcopy(part)
    for parent in part.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == 3:
                setattr(parent, name, torch.nn.ModuleList(child[layer] for layer in order))
                last = getattr(parent, name)[-1]
    for config in (module.config for module in part.modules() if hasattr(module, "config")):
        config.num_hidden_layers = len(order)
    return part, last


@torch.no_grad()
def final(part, last, batch):
    """Return the output of the last layer."""
    seen = []
    handle = last.register_forward_hook(lambda *args: seen.append(args[2]))
    part(**{key: value for key, value in batch.items() if key != ATTENDED})
    handle.remove()
    return seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]


@pytest.mark.parametrize(("name", "masked"), CASES)
def test_orders_equal_models_with_moved_modules(name, masked):
    model, stack, part = encoder(name)
    batches, layers = batches_of(name, masked=masked), resolve(model, stack).layers

    effects = fp.commutativity(model, given(batches), ORDERS, stack=stack, **QUIET)
    pairs = fp.commutator(model, given(batches), state=0, stack=stack, **QUIET)

    for order, row in zip([(0, 1, 2), *ORDERS], effects.rows, strict=True):
        error = norm = cosine = tokens = 0.0
        for batch in batches:
            base, state = final(part, layers[-1], batch), final(*moved(part, layers, order), batch)
            at = batch[ATTENDED]
            error, norm = error + float((state - base)[at].square().sum()), norm + float(base[at].square().sum())
            cosine, tokens = cosine + float(F.cosine_similarity(state[at], base[at]).sum()), tokens + int(at.sum())
        assert row["tokens"] == tokens
        assert row["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)
        assert row["cosine"] == pytest.approx(cosine / tokens, abs=1e-5)
    for row in pairs.rows:
        error = norm = 0.0
        for batch in batches:
            ends = [(row["i"], row["j"]), (row["j"], row["i"])]
            base, state = (final(*moved(part, layers, order), batch)[batch[ATTENDED]] for order in ends)
            error, norm = error + float((state - base).square().sum()), norm + float(base.square().sum())
        assert row["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_live_model_runs_its_layers_in_another_order(name):
    model, stack, part = encoder(name)
    (batch,), layers = batches_of(name, count=1), resolve(model, stack).layers
    if stack is None:
        with fp.permute_layers(model, [2, 0, 1]):
            state = final(part, layers[1], batch)

        torch.testing.assert_close(state, final(*moved(part, layers, (2, 0, 1)), batch), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ENCODERS)
def test_probes_read_labels_of_positions(name):
    model, stack, _ = encoder(name)
    batches = batches_of(name)
    for batch in batches:  # whether the position is an even one, and where it is
        batch["even"] = torch.arange(batch[ATTENDED].shape[1]).expand(batch[ATTENDED].shape) % 2

    probes = fp.probe(model, given(batches), tasks=["even", "position"], orders=[(1, 0, 2)], stack=stack, **QUIET)

    assert probes.config["tokens"] == sum(batch[ATTENDED].numel() for batch in batches)
    assert {row["task"] for row in probes.rows} == {"even", "position"}
    with pytest.raises(InputError, match="tasks: token needs input_ids, and batch 0 has none; name position"):
        fp.probe(model, given(batches), tasks=["token"], stack=stack, **QUIET)


def test_an_ablation_of_an_encoder_of_images_equals_a_hook():
    model, _, _ = encoder("vit")
    batches, layers = batches_of("vit"), resolve(model).layers

    damage = fp.ablation(model, given(batches), layers=[1], mode=["zero", "mean", "linear"], **QUIET)

    edited = copy.deepcopy(model)
    resolve(edited).layers[1].mlp.register_forward_hook(lambda *args: torch.zeros_like(args[2]))
    error = norm = 0.0
    for batch in batches:
        base, state = final(model, layers[-1], batch), final(edited, resolve(edited).layers[-1], batch)
        error, norm = error + float((state - base).square().sum()), norm + float(base.square().sum())
    assert damage.rows[1]["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-6)
    assert all(row["relative_l2"] > 0 for row in damage.rows[1:])


def test_a_token_mask_leaves_out_positions_of_images():
    model, _, _ = encoder("vit")
    batches = batches_of("vit", count=8)
    for batch in batches:
        batch[TOKEN_MASK] = torch.ones(5, 17)
        batch[TOKEN_MASK][:, 0] = 0  # the class token
    stored = read_points(model, resolve(model).layers, {"x": ("", "in"), "y": ("", "out")}, batches)

    scan = fp.linearity(model, given(batches), elements=["layer"], **QUIET)

    assert scan.config["tokens"] == 8 * 5 * 16
    for row in scan.rows:
        expected = columns(*(stored[f"{end}.{row['layer']}"] for end in "xy"), token_folds(batches, 5))
        assert row["r2_cv"] == pytest.approx(expected["r2_cv"], abs=1e-5)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "vit"])
def test_batches_of_another_size_change_no_column(name):
    model, _, _ = encoder(name)
    masked = name != "vit"
    (whole,) = given(batches_of(name, count=1, size=12, masked=masked))
    parts = [{key: value[start : start + 5] for key, value in whole.items()} for start in (0, 5, 10)]

    one, other = (fp.linearity(model, batches, score_sequences=4, **QUIET) for batches in ([whole], parts))

    for row, same in zip(one.rows, other.rows, strict=True):
        for column in ("r2", "r2_cv", "cosine_cv"):
            assert row[column] == pytest.approx(same[column], abs=1e-6)


WRONG = {
    "no input": ("vit", {"input_ids": torch.ones(2, 3)}, "must have 'pixel_values', the floating tensor that ViTModel"),
    "integers": ("vit", {"pixel_values": torch.ones(2, 3, 16, 16).long()}, "must have 'pixel_values', the floating"),
    "another size": ("vit", {"pixel_values": torch.ones(2, 3, 8, 8)}, "ViTModel: its forward pass fails on this batch"),
    "a mask of pixels": (
        "vit",
        {"pixel_values": torch.ones(2, 3, 16, 16), "attention_mask": torch.ones(2, 256)},
        "must have the length that ViTModel reads, 17, that of the states, got 256; leave it out if there is no",
    ),
    "padding on the left": (
        "wav2vec2",
        {"input_values": torch.ones(2, 153), "attention_mask": (torch.arange(153) > 40).long().expand(2, -1)},
        "attention_mask of batch 0 must be 1 up to the end of each input and 0 after it",
    ),
    "a mask of states": (  # the model would take it for one of samples
        "wav2vec2",
        {"input_values": torch.ones(2, 153), "attention_mask": torch.ones(2, 14)},
        r"must have the length that Wav2Vec2Model reads, that of input_values, \(2, 153\), got 14; leave it out",
    ),
    "another mask": (
        "wav2vec2",
        {"input_values": torch.ones(2, 153), "attention_mask": torch.ones(3, 153)},
        r"attention_mask of batch 0 must be a tensor of shape \(2, length\)",
    ),
    "a token mask of another length": (
        "clip vision",
        {"pixel_values": torch.ones(2, 3, 16, 16), TOKEN_MASK: torch.ones(2, 16)},
        r"token_mask of batch 0 must be a tensor of shape \(2, 17\)",
    ),
    "no dict": ("vit", torch.ones(2, 3, 16, 16), "batch 0 must be a dict of tensors, got a Tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_that_cannot_be_used_is_refused_in_one_line(case):
    name, batch, message = WRONG[case]
    model, _, _ = encoder(name)
    if isinstance(batch, dict):
        batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}

    with pytest.raises(fp.errors.FastprobeError, match=message) as caught:
        fp.linearity(model, [batch], **QUIET)

    assert "\n" not in str(caught.value)


def test_a_tower_is_chosen_by_name():
    model, _, _ = encoder("clip")

    assert resolve(model).stack == "text_model.encoder.layers"
    assert resolve(model, "vision").stack == "vision_model.encoder.layers"
    with pytest.raises(InputError, match=r"'sound' is no stack of this model; it has text_model\S+, vision_model\S+"):
        resolve(model, "sound")


def test_a_model_whose_states_change_their_shape_has_one_stack_for_each():
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 3], num_heads=[2, 2], window_size=2
    )
    model = transformers.SwinModel(config).eval()

    assert resolve(model).stack == "encoder.layers.1.blocks"
    assert resolve(model).others == ("encoder.layers.0.blocks",)


def test_a_model_that_draws_its_patches_is_refused():
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**_IMAGES)).eval()

    with pytest.raises(fp.errors.UnsupportedModelError, match="ViTMAEModel: its layers, run one after another, differ"):
        fp.commutativity(model, [{"pixel_values": torch.randn(4, 3, 16, 16)}], ORDERS, **QUIET)
