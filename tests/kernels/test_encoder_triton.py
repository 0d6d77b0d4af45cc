"""The Triton kernels of an encoder's layers and head in every way they may be cut, in Triton's interpreter."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from fastprobe.kernels import add_norm, bias_gelu, vocabulary_scores
from fastprobe.ops.encoder import triton as encoder_triton
from fastprobe.ops.encoder.add_norm import add_norm as add_norm_operation
from fastprobe.ops.encoder.bias_gelu import bias_gelu_ as bias_gelu_operation
from fastprobe.ops.vocabulary_scores import triton as vocabulary_triton
from fastprobe.ops.vocabulary_scores import vocabulary_scores as vocabulary_operation

GPUS = [(8, 0), (9, 0), (10, 0), None]
CPU = torch.device("cpu")


def every(module):
    """Every configuration that some GPU may run a kernel in."""
    return list(dict.fromkeys(config for capability in GPUS for config in module.configs(capability)))


@pytest.mark.parametrize("config", every(add_norm), ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 385)], ids=str)
def test_add_norm_however_it_is_cut(config, shape, residual_rows, randn):
    x, residual = residual_rows(*shape), randn(*shape, dtype=torch.float32)
    weight, bias = randn(2, shape[1], dtype=torch.float32)

    out = add_norm.launch_add_norm(x, residual, weight, bias, 1e-5, config=config)

    wide = [t.double() for t in (x, residual, weight, bias)]
    exact = F.layer_norm(wide[0] + wide[1], shape[1:], wide[2], wide[3], 1e-5)
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("config", every(bias_gelu), ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 1100)], ids=str)
def test_bias_gelu_however_it_is_cut(config, shape, randn):
    x, (bias,) = randn(*shape, dtype=torch.float32), randn(1, shape[1], dtype=torch.float32)
    exact = F.gelu((x + bias).double())

    bias_gelu.launch_bias_gelu(x, bias, config=config)

    torch.testing.assert_close(x.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", every(vocabulary_scores), ids=str)
@pytest.mark.parametrize("processors", [1, 1000])
def test_vocabulary_scores_however_they_are_cut(config, processors, randn, generator):
    n, words, width = 130, 300, 33
    x, weight = randn(n, width, dtype=torch.bfloat16), randn(words, width, dtype=torch.bfloat16) / 4
    bias, target = randn(words, dtype=torch.bfloat16), torch.randint(-1, words, (n,), generator=generator)

    log_sum_exp, at_target, top = vocabulary_scores.launch_vocabulary_scores(
        x, weight, bias, target, processors=processors, config=config
    )

    logits = x.double() @ weight.double().mT + bias.double()
    torch.testing.assert_close(log_sum_exp.double(), logits.logsumexp(1), rtol=0, atol=1e-5)
    expected = logits.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target >= 0)
    torch.testing.assert_close(at_target.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits.gather(1, top[:, None])[:, 0], logits.amax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("processors", [1, 100])  # tiles of one program, and programs
def test_the_first_of_equal_words_is_the_top_one(processors):
    x, weight, target = torch.ones(3, 8), torch.ones(600, 8), torch.zeros(3, dtype=torch.int64)
    config = vocabulary_scores.VocabularyConfig(block_n=16, most_tiles=2)

    _, _, top = vocabulary_scores.launch_vocabulary_scores(
        x, weight, None, target, processors=processors, config=config
    )

    assert not top.any()


@pytest.mark.parametrize("rows", [1, 128, 129, 40_000])
def test_few_rows_leave_a_program_few_words_and_many_rows_many(rows):
    config, processors = vocabulary_scores.VocabularyConfig(), 132

    tiles = config.tiles(rows, 30_522, processors)

    programs = -(-rows // config.block_n) * -(-30_522 // (config.block_v * tiles))
    assert 1 <= tiles <= config.most_tiles
    assert tiles == 1 or programs >= vocabulary_scores.PROGRAMS * processors
    assert tiles == config.most_tiles or rows < 40_000


TRIALS = {
    "add_norm": encoder_triton.add_norm_agrees,
    "bias_gelu_": encoder_triton.bias_gelu_agrees,
    "vocabulary_scores": vocabulary_triton.vocabulary_scores_agree,
}
OPERATORS = {
    "add_norm": (encoder_triton, "add_norm_operator"),
    "bias_gelu_": (encoder_triton, "bias_gelu_operator"),
    "vocabulary_scores": (vocabulary_triton, "vocabulary_scores_operator"),
}
OPERATIONS = {
    "add_norm": add_norm_operation,
    "bias_gelu_": bias_gelu_operation,
    "vocabulary_scores": vocabulary_operation,
}


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_passes_what_is_right_and_nothing_else(name, monkeypatch):
    assert TRIALS[name](CPU)

    right = getattr(*OPERATORS[name])

    def wrong(*args):
        out = right(*args)
        for tensor in [args[0]] if out is None else [out] if isinstance(out, torch.Tensor) else out[:1]:
            tensor[-1] *= 1.001
        return out

    monkeypatch.setattr(*OPERATORS[name], wrong)
    assert not TRIALS[name](CPU)


def arguments(name):
    x, vector = torch.linspace(-1, 1, 40).reshape(8, 5), torch.linspace(0, 1, 5)
    return {
        "add_norm": (x, x.flip(0), vector, vector, 1e-5),
        "bias_gelu_": (x, vector),
        "vocabulary_scores": (x, x[:6] + 1, None, torch.arange(8) % 6),
    }[name]


@pytest.mark.parametrize("name", TRIALS)
def test_they_are_operators_that_torch_can_trust(name):
    torch.library.opcheck(getattr(*OPERATORS[name]), arguments(name), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", TRIALS)
def test_auto_leaves_the_interpreter_to_those_who_ask_for_it(name):
    chosen = OPERATIONS[name]

    assert chosen.choose(*arguments(name)) != "triton"
    assert chosen.on("triton").choose(*arguments(name)) == "triton"
