"""Layers whose modules do not multiply by the weight that they show, as adapters and quantisation leave them."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from fastprobe.models.resolve import resolve


class Adapter(nn.Module):
    """Low-rank product beside a linear layer, without a ``weight`` of its own."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.down, self.up = nn.Linear(linear.in_features, 2), nn.Linear(2, linear.out_features)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


class RawAdapter(nn.Module):
    """Low-rank product whose matrices are parameters beside a linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(2, linear.in_features))
        self.B = nn.Parameter(torch.randn(linear.out_features, 2))

    def forward(self, x):
        return self.linear(x) + x @ self.A.mT @ self.B.mT


class Cached(nn.Linear):
    """Linear layer that multiplies by a copy of its weight."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())
        self._weight_cached = self.weight.detach().clone()

    def forward(self, x):
        return F.linear(x, self._weight_cached, self.bias)


class Packed(nn.Linear):
    """Linear layer whose weight holds one number of 8 bits in a byte."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        scale = linear.weight.detach().abs().max() / 127
        packed = (linear.weight.detach() / scale).round().to(torch.int8)
        self.scale, self.weight = float(scale), nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class InBuffers(nn.Module):
    """Linear layer without a parameter: its matrix is a buffer."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("qweight", linear.weight.detach().clone())

    def forward(self, x):
        return x @ self.qweight.mT


class ReplacedForward(nn.Linear):
    """Linear layer whose ``forward`` was replaced by a function of the old weight."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        weight = linear.weight.detach().clone()
        self.forward = lambda x: F.linear(x, weight)


def modules(wrap):
    """Return a function that wraps all linear modules of layer 1 of a model."""

    def change(model):
        layer = resolve(model).layers[1]
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                owner, _, name = path.rpartition(".")
                setattr(layer.get_submodule(owner), name, wrap(module))
        return model.eval()

    return change


def quantized(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def offloaded(model):
    """Return a model whose weights Accelerate loads for each call of a module."""
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device="cpu")


WRAPPED = {
    "adapter": modules(Adapter),
    "raw adapter": modules(RawAdapter),
    "cached": modules(Cached),
    "packed": modules(Packed),
    "in buffers": modules(InBuffers),
    "replaced forward": modules(ReplacedForward),
    "pruned": modules(lambda linear: prune.l1_unstructured(linear, "weight", 0.5)),
    "weight norm": modules(parametrizations.weight_norm),
    "spectral norm": modules(parametrizations.spectral_norm),
    "orthogonal": modules(parametrizations.orthogonal),
    "old weight norm": modules(nn.utils.weight_norm),
    "old spectral norm": modules(nn.utils.spectral_norm),
    "dynamic quantisation": quantized,
}
