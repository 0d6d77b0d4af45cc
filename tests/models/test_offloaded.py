"""Models that Accelerate placed: weights on disk are found, brought in once, and let go."""

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of
from fastprobe.models.offloaded import offload_hooks, read_ahead, weights_present
from fastprobe.models.placement import placement
from fastprobe.models.resolve import resolve
from fastprobe.testing.peak_memory import peak_memory
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

pytest.importorskip("accelerate")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["bert", "llama", "gpt2"])
def saved(request, tmp_path_factory):
    """Return a model, and the same with its layers on disk."""
    folder, model = tmp_path_factory.mktemp("saved"), tiny_model(request.param)
    model.save_pretrained(folder)
    kind = transformers.AutoModel
    placed = placement(kind, str(folder), CPU, "disk")
    return model, kind.from_pretrained(folder, offload_folder=folder / "offload", **placed).eval()


@pytest.mark.parametrize("schedule", ["batch", "layer"])
def test_a_model_on_disk_has_the_rows_of_the_model_in_memory(saved, schedule):
    model, on_disk = saved
    options = {"elements": ["layer", "ffn", "attn"], "folds": 2, "progress": False}

    found = fp.linearity(on_disk, tiny_batches(), schedule=schedule, **options)

    for one, other in zip(found.rows, fp.linearity(model, tiny_batches(), **options).rows, strict=True):
        assert one["r2_cv"] == pytest.approx(other["r2_cv"], abs=1e-6)
        assert one["cosine_cv"] == pytest.approx(other["cosine_cv"], abs=1e-6)
    for layer in resolve(on_disk).layers:
        assert all(parameter.device.type == "meta" for parameter in layer.parameters())


def test_weights_of_a_layer_are_brought_in_once_for_all_batches(saved, monkeypatch):
    _, on_disk = saved
    loaded = []
    for layer in resolve(on_disk).layers:
        for _, hook in offload_hooks(layer):
            plain = hook.pre_forward

            def pre_forward(module, *args, plain=plain, hook=hook, **kwargs):
                if hook.offload:
                    loaded.append(module)
                return plain(module, *args, **kwargs)

            monkeypatch.setattr(hook, "pre_forward", pre_forward)

    def count(sequences):
        loaded.clear()
        batches = tiny_batches(sequences=sequences, batch_size=2)
        fp.linearity(on_disk, batches, score_sequences=3, progress=False, elements=["ffn"])
        return len(loaded)

    assert count(20) == count(40) > 0


def test_auto_goes_layer_by_layer_when_weights_are_offloaded(saved):
    _, on_disk = saved

    scan = fp.linearity(on_disk, tiny_batches(), elements=["layer"], score_sequences=0, progress=False)

    assert scan.config["schedule"] == "layer"


def test_weights_are_there_inside_the_block_only(saved):
    model, on_disk = saved
    layer, expected = resolve(on_disk).layers[1], resolve(model).layers[1]

    read_ahead(layer)
    with weights_present(layer, layer):
        for one, other in zip(layer.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)

    assert all(parameter.device.type == "meta" for parameter in layer.parameters())
    assert all(hook.offload for _, hook in offload_hooks(layer))


def test_the_device_of_an_offloaded_model_is_the_one_it_runs_on(saved):
    _, on_disk = saved

    assert device_of(resolve(on_disk).layers[0]) == CPU
    assert device_of(on_disk) == CPU


def test_an_unknown_device_map_is_named(tmp_path):
    with pytest.raises(InputError, match="device_map: must be one of auto, disk, got 'everywhere'"):
        placement(transformers.AutoModel, str(tmp_path), CPU, "everywhere")


def test_auto_leaves_room(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)

    full, less = (placement(transformers.AutoModel, str(tmp_path), CPU, "auto", room) for room in (0, 10**9))

    assert full["device_map"] == less["device_map"] == "auto"
    assert 0.5e9 < full["max_memory"]["cpu"] - less["max_memory"]["cpu"] < 1.5e9


def test_a_scan_holds_less_than_the_weights_of_a_model_on_disk(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 3072, "num_attention_heads": 4, "vocab_size": 100}
    config = transformers.LlamaConfig(num_hidden_layers=12, **sizes)
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    weights = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    batches = tiny_batches(sequences=8, batch_size=4)
    options = {"elements": ["layer"], "folds": 0, "score_sequences": 2, "progress": False}
    fp.linearity(tiny_model("llama"), batches, schedule="layer", **options)  # libraries load what they need
    kind = transformers.AutoModel

    def scan():
        placed = placement(kind, str(tmp_path), CPU, "disk")
        model = kind.from_pretrained(tmp_path, offload_folder=tmp_path / "offload", **placed).eval()
        assert len(fp.linearity(model, batches, memory="30MB", **options).rows) == 12

    assert peak_memory(scan) < weights / 2
