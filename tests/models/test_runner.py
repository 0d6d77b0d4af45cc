"""Selection of the runner: the unpadded encoder where it agrees with the model, else the model's modules."""

from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import resolve
from fastprobe.models.runner import recorder_for, stack_for
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.recorder import UnpaddedRecorder
from fastprobe.models.unpadded.stack import UnpaddedStack
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.models.unpadded.test_unpadded_stack import model_with_head


def test_an_encoder_that_differs_from_the_model_is_refused(monkeypatch):
    model, batch = tiny_model("bert"), tiny_batches()[0]
    points = resolve(model)
    assert recorder_for(model, points, batch) == (UnpaddedRecorder, "")
    stem = Encoder.stem
    monkeypatch.setattr(Encoder, "stem", lambda *args: stem(*args) * 1.001)

    kind, reason = recorder_for(model, points, batch)

    assert kind is ModuleRecorder
    assert reason.startswith("at resid_pre.0 it is off from the model by 1.0e-03")


def test_a_head_that_is_unknown_or_differs_is_refused(monkeypatch):
    model, batch = model_with_head("bert"), tiny_batches()[0]
    points = resolve(model)
    assert stack_for(model, points, batch) == (UnpaddedStack, "")

    features = MaskedHead.features
    monkeypatch.setattr(MaskedHead, "features", lambda *args: 1.01 * features(*args))
    assert "its head is off from the model's by" in stack_for(model, points, batch)[1]

    monkeypatch.setattr(MaskedHead, "of", classmethod(lambda cls, model: None))
    assert stack_for(model, points, batch)[1] == "the head of BertForMaskedLM is not known"


def test_other_families_run_by_their_modules():
    model, batch = tiny_model("gpt2"), tiny_batches()[0]

    make, reason = stack_for(model, resolve(model), batch)

    assert make == LayerStack.record
    assert "GPT2Model is not one of BertModel" in reason
