"""A scan layer by layer in several processes gives the rows of one process. Models are float32, sums float64."""

import json
import os
import signal
import types

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError, NumericalError, ProcessError
from fastprobe.scan import group_rows, layer_checkpoint
from fastprobe.scan.checkpoint import ROWS, Checkpoint
from fastprobe.scan.schedule import Budget
from fastprobe.testing.tiny_models import tiny_model
from tests.test_several_processes import EXACT, SEQUENCES, batches_of, check_equal, difference, run_damaged
from tests.worlds import World

FEW = {"elements": ["layer", "ffn", "mlp"], "folds": 2, "score_sequences": 5}


def scan(rank, family="gpt2", kind="list", size=1, options=FEW):
    result = fp.linearity(
        tiny_model(family), batches_of(kind, rank, size), progress=False, **({"schedule": "layer"} | options)
    )
    return result.rows, result.config


@pytest.mark.parametrize("family", ["bert-mlm", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"spans": "all", "objective": "cosine", "cka": "all"},
        {"spans": "0-2,1-3", "score_sequences": "all"},
        {"folds": 0, "score_sequences": 0, "exact": True},
        {"elements": ["ffn"], "layers": [1], "score_sequences": SEQUENCES},
    ],
    ids=lambda options: ",".join(options),
)
def test_two_processes_give_the_rows_of_one(family, options, world_of_two):
    check_equal(world_of_two(scan, family, "list", 2, options), scan(0, family, options=options))


@pytest.mark.parametrize("kind", ["one batch", "odd", "counted"])
def test_processes_and_batches_without_rows_are_normal(kind, world_of_four):
    options = FEW | {"spans": "0-2", "score_sequences": "all"}

    check_equal(world_of_four(scan, "gpt2", kind, 4, options), scan(0, "gpt2", kind, options=options))


@pytest.mark.parametrize("kind", ["sampler", "iterable dataset"])
def test_batches_that_are_split_already_keep_the_numbers_of_their_sequences(kind, world_of_two):
    answers, (expected, config) = world_of_two(scan, "gpt2", kind, 2), scan(0, "gpt2", "loader")

    for rows, found in answers:
        assert difference(rows, expected) < 1e-5  # in float32 a token's state depends on the batch it runs in
        assert (found["tokens"], found["sequences"]) == (config["tokens"], SEQUENCES)


def scan_with_unequal_budgets(rank):
    """Scan with less memory in the second process."""
    return scan(rank, options=FEW | {"schedule": "auto", "memory": "800kB" if rank else "80MB", "elements": None})


def test_auto_and_the_groups_of_elements_go_by_the_smallest_budget(world_of_two):
    answers = world_of_two(scan_with_unequal_budgets)

    check_equal(answers, scan(0, options=FEW | {"memory": "800kB", "elements": None}))
    assert answers[0][1]["schedule"] == "layer"
    assert scan(0, options=FEW | {"schedule": "auto", "memory": "80MB"})[1]["schedule"] == "batch"


@pytest.mark.parametrize(("device", "share"), [("cpu", 2_000_000_000), ("cuda", 8_000_000_000)])
def test_processes_of_one_machine_share_the_memory_of_a_cpu(device, share, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")

    assert Budget.of("8GB", torch.device(device)).nbytes == share


def scan_that_overflows(rank):
    return run_damaged(rank, "linearity", schedule="layer")


def test_an_overflow_in_one_process_ends_all_with_its_message(world_of_two):
    for error in world_of_two(scan_that_overflows):
        assert isinstance(error, NumericalError), error
        assert str(error).startswith("batch 2: ")


def scan_with_a_checkpoint(rank, folder, resume=False, stop=None, interval=0.0, kind="list", size=1):
    """Scan and write the rows of finished layers.

    Args:
        stop: (rank, group, error): raise the error, or get killed, when the solve of a group begins in that process.
    """
    plain, clock, calls = group_rows.solve_rows, layer_checkpoint.time, []

    def solve(*args, **options):
        calls.append(1)
        if stop is not None and (rank, len(calls)) == stop[:2]:
            if stop[2] is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise stop[2]
        return plain(*args, **options)

    group_rows.solve_rows = solve
    layer_checkpoint.time = types.SimpleNamespace(monotonic=float)  # a save takes no time, so with 0 each is due
    try:
        checkpoint = Checkpoint(folder, resume=resume, interval=interval)
        model, batches = tiny_model("gpt2"), batches_of(kind, rank, size)
        rows = fp.linearity(model, batches, progress=False, schedule="layer", checkpoint=checkpoint, **FEW).rows
    finally:
        group_rows.solve_rows, layer_checkpoint.time = plain, clock
    return rows, len(calls)


def finished(folder):
    """Return the number of rows in the journal."""
    return len((folder / ROWS).read_text().splitlines()) - 1


def states(folder):
    return sorted(path.name for path in folder.glob("states-*"))


@pytest.mark.parametrize("interval", [0.0, 3600.0], ids=["states saved", "states computed again"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_a_stopped_scan_resumes_with_any_number_of_processes(before, after, interval, tmp_path, world_of_two):
    def run(size, *arguments):
        if size == 2:
            return world_of_two(scan_with_a_checkpoint, *arguments)
        try:
            return [scan_with_a_checkpoint(0, *arguments)]
        except RuntimeError as error:
            return [error]

    for error in run(before, tmp_path, False, (before - 1, 3, RuntimeError("stopped")), interval):
        assert str(error) == "stopped"
    assert finished(tmp_path) == 6
    own = ["states-0002"] if before == 1 else ["states-0002-0-of-2", "states-0002-1-of-2"]
    assert states(tmp_path) == (own if interval == 0 else [])

    for rows, groups in run(after, tmp_path, True):
        assert groups == 1
        assert difference(rows, scan_with_a_checkpoint(0, None)[0]) < EXACT


def test_a_killed_process_ends_a_scan_and_loses_the_layer_in_hand(tmp_path):
    world = World(2, tmp_path)
    error, killed = world(scan_with_a_checkpoint, tmp_path, False, (1, 3, None))
    world.close()

    assert killed is None
    assert isinstance(error, ProcessError)
    assert finished(tmp_path) == 6
    rows, groups = scan_with_a_checkpoint(0, tmp_path, True)
    assert groups == 1
    assert difference(rows, scan_with_a_checkpoint(0, None)[0]) < EXACT


def scan_that_cannot_save(rank, folder):
    """Scan with a disk that fills in the second process when it saves the states of depth 2."""
    plain = layer_checkpoint.StateStore.save

    def save(store, keys, to):
        if rank == 1 and "states-0002" in to.name:
            raise OSError(28, "No space left on device", str(to))
        plain(store, keys, to)

    layer_checkpoint.StateStore.save = save
    try:
        return scan_with_a_checkpoint(rank, folder)
    finally:
        layer_checkpoint.StateStore.save = plain


def test_processes_resume_from_the_last_depth_that_all_have_saved(tmp_path, world_of_two):
    for error in world_of_two(scan_that_cannot_save, tmp_path):
        assert isinstance(error, OSError)
    assert states(tmp_path) == ["states-0001-0-of-2", "states-0001-1-of-2", "states-0002-0-of-2"]

    for rows, groups in world_of_two(scan_with_a_checkpoint, tmp_path, True):
        assert groups == 1
        assert difference(rows, scan_with_a_checkpoint(0, None)[0]) < EXACT
    Checkpoint(tmp_path, keep=False).finish()
    assert not list(tmp_path.iterdir())


def test_split_batches_resume_in_as_many_processes_only(tmp_path, world_of_two, world_of_four):
    stop = (1, 2, RuntimeError("stopped"))
    world_of_two(scan_with_a_checkpoint, tmp_path, False, stop, 0.0, "sampler", 2)
    assert json.loads((tmp_path / ROWS).read_text().splitlines()[0])["split_among"] == 2

    for error in world_of_four(scan_with_a_checkpoint, tmp_path, True, None, 0.0, "sampler", 4):
        assert isinstance(error, InputError), error
        assert "is of a run with another split_among" in str(error)
    again = world_of_two(scan_with_a_checkpoint, tmp_path, True, None, 0.0, "sampler", 2)
    whole = world_of_two(scan_with_a_checkpoint, None, False, None, 0.0, "sampler", 2)
    assert difference(again[0][0], whole[0][0]) < EXACT
