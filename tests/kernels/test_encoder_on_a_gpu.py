"""The operations of an encoder on a GPU: what no interpreter shows. ``make gpu`` runs this; elsewhere it is skipped."""

import pytest
import torch
from torch.nn import functional as F

from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.attention_sublayer import attention_sublayer
from fastprobe.ops.encoder.bias_gelu import bias_gelu_
from fastprobe.ops.encoder.ffn_sublayer import ffn_sublayer
from fastprobe.ops.encoder.layers import Norm
from fastprobe.ops.encoder.varlen_attention import varlen_attention
from fastprobe.ops.vocabulary_scores import VocabularyBaseline, vocabulary_scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (70, 65), (9, 1023), (5000, 768), (3, 8192)], ids=str)
def test_add_norm_and_bias_gelu(dtype, shape, residual_rows, randn):
    x, residual = residual_rows(*shape, dtype).cuda(), randn(*shape, dtype=dtype).cuda()
    weight, bias = randn(2, shape[1], dtype=dtype).cuda()
    unit = torch.finfo(dtype).eps

    out = add_norm.on("triton")(x, residual, weight, bias, 1e-5)

    exact = F.layer_norm((x.double() + residual.double()), shape[1:], weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(out.double(), exact, rtol=4 * unit, atol=16 * unit)
    z = residual.double() + bias.double()
    bias_gelu_.on("triton")(residual, bias)
    assert ((residual.double() - F.gelu(z)).abs() <= 4 * unit * z.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 101, 65), (600, 30_522, 384)], ids=str)
def test_vocabulary_scores_and_divergence(dtype, shape, randn, generator):
    n, words, width = shape
    own, x = randn(n, width, dtype=dtype).cuda(), randn(n, width, dtype=dtype).cuda()
    weight, bias = (randn(words, width) * (2 / width**0.5)).to(dtype).cuda(), randn(words, dtype=dtype).cuda()
    target = torch.randint(-1, words, (n,), generator=generator).cuda()

    found = vocabulary_scores.on("triton")(x, weight, bias, target)
    first = vocabulary_scores.on("triton")(own, weight, bias, target)
    kl = VocabularyBaseline.of(own, weight, bias, first.log_sum_exp).divergence(x, found.log_sum_exp)

    logits, before = (rows.double() @ weight.double().mT + bias.double() for rows in (x, own))
    torch.testing.assert_close(found.log_sum_exp.double(), logits.logsumexp(1), rtol=0, atol=2e-5)
    at_target = logits.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target >= 0)
    torch.testing.assert_close(found.at_target.double(), at_target, rtol=0, atol=2e-5)
    torch.testing.assert_close(logits.gather(1, found.top[:, None])[:, 0], logits.amax(1), rtol=0, atol=2e-5)
    log_p = before.log_softmax(1)
    torch.testing.assert_close(
        kl.double(), (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1), rtol=1e-4, atol=5e-5
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [32, 64])
def test_attention_over_every_length_at_once(dtype, width, randn):
    runs = [(3, 1), (2, 33), (1, 100), (2, 515)]
    q, k, v = (randn(sum(c * n for c, n in runs), 4 * width, dtype=dtype).cuda() for _ in range(3))

    out = varlen_attention.on("cuda")(q, k, v, runs, 4)

    exact = varlen_attention.on("torch")(q.double(), k.double(), v.double(), runs, 4)
    unit = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=unit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_halves_of_a_layer(dtype, randn):
    runs, sizes = [(3, 33), (2, 100)], [(64, 64)] * 4 + [(200, 64), (64, 200)]
    x = randn(299, 64, dtype=dtype).cuda()
    layers = [((randn(e, d) / d**0.5).to(dtype).cuda(), randn(e, dtype=dtype).cuda()) for e, d in sizes]
    norm = Norm(*randn(2, 64, dtype=dtype).cuda(), 1e-5)

    mid = attention_sublayer.on("triton")(x, tuple(layers[:4]), runs, 2, norm, (True, True)).state
    post = ffn_sublayer.on("triton")(mid, layers[4:], mid, norm, [True, True]).state

    wide = [(weight.double(), bias.double()) for weight, bias in layers]
    wide_norm = Norm(norm.weight.double(), norm.bias.double(), norm.eps)
    exact = attention_sublayer.on("torch")(x.double(), tuple(wide[:4]), runs, 2, wide_norm, (False, False)).state
    exact = ffn_sublayer.on("torch")(exact, wide[4:], exact, wide_norm, [False, False]).state
    unit = {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 4e-2}[dtype]
    torch.testing.assert_close(post.double(), exact, rtol=0, atol=unit)


def test_a_cuda_graph_runs_a_layers_operations_on_the_rows_of_the_moment(randn):
    x, residual, q = (randn(300, 64, dtype=torch.bfloat16).cuda() for _ in range(3))
    weight, bias = randn(2, 64, dtype=torch.bfloat16).cuda()

    def layer():
        heads = varlen_attention.on("cuda")(q, q, q, [(3, 100)], 2)
        out = add_norm.on("triton")(heads, residual, weight, bias, 1e-5)
        bias_gelu_.on("triton")(out, bias)
        return out

    layer()  # compiles, and keeps where sequences begin
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer()
    q.copy_(x)

    graph.replay()

    torch.testing.assert_close(out, layer())
