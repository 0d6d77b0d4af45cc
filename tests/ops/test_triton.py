"""The Triton kernels as operators of torch: refusals, ``torch.compile`` and measured configurations."""

import functools
import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from fastprobe.errors import BackendError
from fastprobe.ops import tune
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.gram import triton as gram_triton
from fastprobe.ops.score import ResidualSums, score
from fastprobe.ops.score import triton as score_triton
from fastprobe.ops.tune import tuning

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

CPU = torch.device("cpu")


def arguments(dtype=torch.float32, n=40, device=CPU):
    x, y = (torch.linspace(-1, 2, n * width, device=device).reshape(n, width).to(dtype) for width in (5, 3))
    zeros = functools.partial(torch.zeros, dtype=torch.float64)
    blocks = [Block(rows, zeros(d), zeros(1, d), zeros(1, d)) for rows, d in ((x, 5), (y, 3))]
    pairs = [Pair(0, 0, zeros(1, 5, 5)), Pair(0, 1, zeros(1, 5, 3))]
    return blocks, pairs, torch.zeros(n, dtype=torch.int64)


def test_auto_does_not_choose_the_interpreter():
    assert gram_.refusals(*arguments())["triton"] is None
    assert gram_.choose(*arguments()) != "triton"
    assert gram_.on("triton").choose(*arguments()) == "triton"


def test_without_the_interpreter_a_cpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")

    with pytest.raises(BackendError, match=r"backend 'triton': a tensor is on cpu; .*TRITON_INTERPRET=1; .* run on: "):
        gram_.on("triton")(*arguments())


def test_float64_rows_are_refused_by_name():
    with pytest.raises(BackendError, match="it takes bfloat16, float16 and float32 rows, not float64"):
        gram_.on("triton")(*arguments(torch.float64))


def test_tensors_on_several_devices_are_refused():
    blocks, pairs, fold = arguments()
    elsewhere = [pair._replace(gram=pair.gram.to("meta")) for pair in pairs]

    assert "several devices: cpu, meta" in gram_.refusals(blocks, elsewhere, fold)["triton"]


def test_a_missing_triton_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert gram_.refusals(*arguments())["triton"] == "Triton is not installed; `pip install triton`"


@pytest.mark.parametrize(("capability", "reason"), [((7, 5), "compute capability 7.5 is below 8.0"), ((9, 0), None)])
def test_a_gpu_without_bfloat16_is_refused(capability, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)

    assert _triton._device_refuses.__wrapped__(torch.device("cuda")) == reason


def test_layouts_that_the_kernel_cannot_write_are_refused():
    blocks, pairs, fold = arguments()

    by_column = [pair._replace(gram=pair.gram.mT.contiguous().mT) for pair in pairs]
    assert gram_.refusals(blocks, by_column, fold)["triton"] == "the columns of a gram must be adjacent"
    strided = [blocks[0]._replace(sum=torch.zeros(1, 10).double()[:, ::2]), blocks[1]]
    reason = gram_.refusals(strided, pairs, fold)["triton"]
    assert reason == "sums and squares must be contiguous"


def test_gram_passes_the_checks_of_torch_for_operators():
    blocks, pairs, fold = arguments()
    rows, origins, sums, squares = map(list, zip(*blocks, strict=True))

    torch.library.opcheck(
        gram_triton.gram_operator,
        (rows, origins, [sums[1]], squares, [1], [0, 1], [pair.gram for pair in pairs], [0, 0, 0, 1], fold),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("residual", [False, True])
def test_score_passes_the_checks_of_torch_for_operators(residual):
    x, y = (block.rows for block in arguments()[0])
    sums = list(ResidualSums.zero(5, 3)) if residual else []

    torch.library.opcheck(
        score_triton.score_operator,
        (x, torch.ones(5, 3), torch.ones(3), y, sums),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_torch_compile_puts_both_in_one_graph():
    def both(args, coef, intercept):
        gram_.on("triton")(*args)
        return score.on("triton")(args[0][0].rows, coef, intercept, args[0][1].rows).error

    coef, intercept = torch.full((5, 3), 0.5), torch.ones(3)
    eager, compiled = arguments(), arguments()

    expected = both(eager, coef, intercept)
    got = torch.compile(both, fullgraph=True, backend="aot_eager")(compiled, coef, intercept)

    assert torch.equal(got, expected)
    assert all(torch.equal(ours.gram, theirs.gram) for ours, theirs in zip(compiled[1], eager[1], strict=True))


@dataclass(frozen=True)
class Config:
    size: int


CONFIGS = [Config(1), Config(2), Config(3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Path of the file of measurements, in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastprobe" / "tuning.json"


def choose(sizes=(1000, 384), run=lambda config: None):
    return tune.choose("gram_ bfloat16", sizes, CPU, CONFIGS, run)


def test_nothing_is_measured_outside_tuning(cache):
    assert choose(run=None) == Config(1)
    assert not cache.exists()


def test_the_fastest_is_measured_once_and_kept_for_other_processes(cache):
    clock = {1: 3.0, 2: 1.0, 3: 2.0}
    ran = []

    def seconds(run):
        run()
        return clock[ran[-1].size]

    with tuning(seconds) as found:
        assert choose(run=ran.append) == Config(2)
        assert choose(run=ran.append) == Config(2)

    assert ran == CONFIGS
    assert found == [
        tune.Tuned("gram_ bfloat16", (1024, 512), {repr(config): clock[config.size] for config in CONFIGS})
    ]
    assert (found[0].best, found[0].gain) == (repr(Config(2)), 3.0)
    tune._read.clear()  # as a process that has just begun
    assert choose(run=None) == Config(2)
    assert choose(sizes=(600, 300), run=None) == Config(2)  # the same class of shapes
    assert choose(sizes=(5000, 384), run=None) == Config(1)  # another
    (key,) = json.loads(cache.read_text())
    assert "gram_ bfloat16 [1024, 512] on cpu" in key


def test_a_configuration_that_does_not_fit_is_not_chosen(cache):
    def run(config):
        if config.size != 2:
            raise OutOfResources(300_000, 232_448, "shared memory")

    with tuning(lambda run: run() or 1.0) as found:
        assert choose(run=run) == Config(2)

    assert list(found[0].seconds.values()) == [math.inf, 1.0, math.inf]


def test_other_errors_are_raised(cache):
    def run(config):
        raise RuntimeError("launch failed")

    with tuning(lambda run: run()), pytest.raises(RuntimeError, match="launch failed"):
        choose(run=run)


@pytest.mark.parametrize("at", [(8, 0), (9, 0), (10, 0)])
def test_a_measurement_changes_no_bit(at):
    """All configurations have the same cuts, chains, flushes, planes and warps, on which results depend."""
    from fastprobe.kernels import gram
    from fastprobe.kernels import score as kernels

    for configs in (gram.configs(at), kernels.configs(at)):
        assert len(set(configs)) == len(configs) > 1
        assert {replace(config, num_stages=1) for config in configs} == {replace(configs[0], num_stages=1)}


@pytest.mark.parametrize("text", ["", "[]", "no json", '{"a": ', "3"])
def test_a_broken_file_counts_as_none(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)

    assert choose(run=None) == Config(1)
    with tuning(lambda run: 1.0):
        assert choose() == Config(1)
    assert json.loads(cache.read_text())


def test_a_configuration_of_another_version_is_measured_again(cache):
    with tuning(lambda run: 1.0):
        choose()
    held = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(held, "Config(size=9, gone=True)")))
    tune._read.clear()

    assert choose(run=None) == Config(1)


def test_kernels_run_in_the_measured_configuration(cache, monkeypatch):
    from fastprobe.kernels import gram

    small, large = gram.GramConfig(block_d=32), gram.GramConfig(block_d=64)
    monkeypatch.setattr(gram, "configs", lambda capability: [large, small])
    used = []
    launch = gram.launch_gram
    monkeypatch.setattr(
        gram, "launch_gram", lambda *a, config, **k: used.append(config) or launch(*a, config=config, **k)
    )
    args = arguments()

    with tuning(lambda run: run() or -len(used)):
        gram_.on("triton")(*args)

    assert used == [large, small, small]
    expected = arguments()
    gram_.on("torch")(*expected)
    for ours, right in zip(args[0], expected[0], strict=True):
        torch.testing.assert_close(ours.sum, right.sum, rtol=1e-6, atol=1e-6)  # measured on sums of its own
