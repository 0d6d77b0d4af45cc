"""Every verb in two and four processes, compared with one process. Models are float32, sums float64."""

import os
import signal
from pathlib import Path

import datasets
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import fastprobe as fp
from fastprobe.errors import InputError, NumericalError, ProcessError
from fastprobe.runtime.journal import FILE as JOURNAL
from fastprobe.runtime.journal import Journal
from fastprobe.scan.checkpoint import FILE, Checkpoint
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.worlds import World

SEQUENCES = 23  # no multiple of the batches, of the folds, or of the processes
ORDERS = [(1, 0, 2), (2, 1, 0), (0, 2)]
MODES = ["zero", "mean", "resample", "random_init", "linear", "identity"]
EXACT = 1e-9

VERBS = {
    "linearity": lambda model, batches, **more: fp.linearity(model, batches, progress=False, **more),
    "commutativity": lambda model, batches, **more: fp.commutativity(model, batches, ORDERS, progress=False, **more),
    "commutator": lambda model, batches, **more: fp.commutator(model, batches, progress=False, **more),
    "ablation": lambda model, batches, **more: fp.ablation(
        model, batches, elements=["mlp"], mode=MODES, folds=3, progress=False, **more
    ),
    "probe": lambda model, batches, **more: fp.probe(model, batches, orders=ORDERS[:1], progress=False, **more),
}
OPTIONS = [
    ("linearity", {}),
    ("linearity", {"spans": "all", "objective": "cosine", "score_sequences": "all", "cka": "all"}),
    ("linearity", {"folds": 0, "score_sequences": 0, "exact": True}),
    ("commutativity", {"depths": True}),
    ("commutator", {}),
    ("ablation", {}),
    ("probe", {}),
    ("probe", {"folds": 0, "score_sequences": "all"}),
]


def batches_of(kind: str, rank: int = 0, size: int = 1):
    """Return batches of unequal sizes and lengths, as each kind of argument."""
    batches = tiny_batches(SEQUENCES, batch_size=3)
    rows = [{key: value[0] for key, value in batch.items()} for batch in tiny_batches(SEQUENCES, batch_size=1)]
    if kind == "list":
        return batches
    if kind == "one batch":  # for one process only
        return tiny_batches(5, batch_size=5)
    if kind == "odd":  # the second batch has no sequence, the third no token
        nothing = {key: value[:0] for key, value in batches[0].items()}
        padding = {"input_ids": batches[1]["input_ids"], "attention_mask": torch.zeros_like(batches[1]["input_ids"])}
        return [batches[0], nothing, padding, *batches[2:]]
    if kind == "counted":  # every third token counts, and none of the first batch
        places = torch.arange(batches[0]["input_ids"].shape[1]) % 3 == 1
        return [batch | {"token_mask": batch["attention_mask"] * places * bool(n)} for n, batch in enumerate(batches)]
    if kind == "loader":
        return DataLoader(rows, batch_size=3)
    if kind == "sampler":
        return DataLoader(rows, batch_size=3, sampler=DistributedSampler(rows, size, rank, shuffle=False))
    dataset = datasets.Dataset.from_list([{key: value.tolist() for key, value in row.items()} for row in rows])
    if kind == "iterable dataset":
        dataset = dataset.to_iterable_dataset()
    if size > 1:
        dataset = split_dataset_by_node(dataset, rank, size)
    return DataLoader(dataset.with_format("torch"), batch_size=3)


def run_verb(rank, verb, options, family="gpt2", kind="list", size=1):
    result = VERBS[verb](tiny_model(family), batches_of(kind, rank, size), **options)
    return result.rows, result.config


OF_ONE = ("seconds", "read")
"""Entries of a configuration that only one process has: its times, and the hash of all batches in turn."""


def difference(one, other):
    """Return the largest difference between numbers of two results, relative above 1; other entries must be equal."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(1.0, abs(other))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(difference, one, other), default=0.0)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one if key not in OF_ONE), default=0.0)
    assert one == other
    return 0.0


def check_equal(answers, expected):
    for answer in answers:
        assert isinstance(answer, tuple), answer
        assert difference([*answer], [*expected]) < EXACT


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("verb", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_verb_gives_the_rows_of_one_process(verb, options, size, request):
    world = request.getfixturevalue({2: "world_of_two", 4: "world_of_four"}[size])

    check_equal(world(run_verb, verb, options), run_verb(0, verb, options))


@pytest.mark.parametrize("verb", VERBS)
def test_the_unpadded_encoder_gives_the_rows_of_one_process(verb, world_of_two):
    check_equal(world_of_two(run_verb, verb, {}, "bert-mlm"), run_verb(0, verb, {}, "bert-mlm"))


@pytest.mark.parametrize("kind", ["one batch", "odd", "counted"])
@pytest.mark.parametrize("verb", VERBS)
def test_processes_and_batches_without_rows_are_normal(verb, kind, world_of_four):
    check_equal(world_of_four(run_verb, verb, {}, "gpt2", kind), run_verb(0, verb, {}, "gpt2", kind))


@pytest.mark.parametrize("kind", ["loader", "sampler", "dataset", "iterable dataset"])
@pytest.mark.parametrize("verb", ["linearity", "ablation", "probe"])
def test_batches_that_are_split_already_keep_the_numbers_of_their_sequences(verb, kind, world_of_two):
    answers = world_of_two(run_verb, verb, {}, "gpt2", kind, 2)
    expected, config = run_verb(0, verb, {}, "gpt2", "loader")

    for answer in answers:
        assert isinstance(answer, tuple), answer
        assert difference(answer[0], expected) < 1e-5  # in float32 a token's state depends on the batch it runs in
        assert (answer[1]["tokens"], answer[1]["sequences"]) == (config["tokens"], SEQUENCES)


def run_damaged(rank, verb, **more):
    """Run a verb on a model that overflows on a batch that the second process takes."""
    model = tiny_model("gpt2")
    layer = model.transformer.h[1]
    batches = tiny_batches(SEQUENCES, batch_size=3)
    ids = batches[2]["input_ids"]
    layer.register_forward_hook(
        lambda module, args, out: out * float("nan") if rank == 1 and args[0].shape[1] == ids.shape[1] + 1 else out
    )
    batches[2] = {key: torch.nn.functional.pad(value, (0, 1), value=1) for key, value in batches[2].items()}
    return VERBS[verb](model, batches, **more)


@pytest.mark.parametrize("verb", ["linearity", "commutativity"])
def test_an_overflow_in_one_process_ends_all_with_its_message(verb, world_of_two):
    first, second = world_of_two(run_damaged, verb)

    assert isinstance(first, NumericalError)
    assert "batch 2: " in str(first)
    assert (type(first), str(first)) == (type(second), str(second))


def run_with_another_model(rank):
    return fp.commutator(tiny_model("gpt2", seed=rank), tiny_batches(), progress=False)


def run_with_other_arguments(rank, verb, name, values):
    return VERBS[verb](tiny_model("gpt2"), tiny_batches(), **{name: values[rank]})


@pytest.mark.parametrize(
    ("verb", "name", "values"),
    [
        ("linearity", "seed", (0, 1)),
        ("linearity", "score_sequences", (64, "all")),
        ("linearity", "until", (None, 0.1)),
        ("linearity", "checkpoint", (None, Checkpoint("out"))),
        ("commutativity", "depths", (True, False)),
        ("commutator", "state", ("own", 0)),
        ("ablation", "alpha", (None, 1.0)),
        ("probe", "folds", (5, 2)),
    ],
)
def test_processes_with_other_arguments_are_refused(verb, name, values, world_of_two):
    for error in world_of_two(run_with_other_arguments, verb, name, values):
        assert isinstance(error, InputError), error
        assert str(error).startswith(f"{name}: must be the same in all processes, but 0 and 1 differ; ")


def run_with_another_pooler(rank):
    model = tiny_model("bert")
    torch.nn.init.normal_(model.pooler.dense.weight, generator=torch.Generator().manual_seed(rank))
    return fp.commutator(model, tiny_batches(), progress=False).rows


def test_weights_that_do_not_run_may_differ(world_of_two):
    """Transformers draws a pooler at random in every process if the file has none."""
    first, second = world_of_two(run_with_another_pooler)

    assert first == second


def run_with_another_text(rank, same_beginning):
    batches = tiny_batches(SEQUENCES, batch_size=3, seed=rank)
    return fp.linearity(tiny_model("gpt2"), [*tiny_batches()[:same_beginning], *batches], progress=False)


def run_with_a_shorter_text(rank):
    batches = tiny_batches(SEQUENCES, batch_size=3)
    return fp.linearity(tiny_model("gpt2"), batches[: len(batches) - rank], progress=False)


def run_with_a_shuffled_loader(rank):
    rows = [{key: value[0] for key, value in batch.items()} for batch in tiny_batches(SEQUENCES, batch_size=1)]
    torch.manual_seed(rank)
    return fp.linearity(tiny_model("gpt2"), DataLoader(rows, batch_size=3, shuffle=True), progress=False)


def run_with_a_sampler_of_another_world(rank):
    rows = [{key: value[0] for key, value in batch.items()} for batch in tiny_batches(SEQUENCES, batch_size=1)]
    sampler = DistributedSampler(rows, 3, rank)
    return fp.linearity(tiny_model("gpt2"), DataLoader(rows, batch_size=3, sampler=sampler), progress=False)


def run_with_a_dropping_sampler(rank):
    rows = [{key: value[0] for key, value in batch.items()} for batch in tiny_batches(SEQUENCES, batch_size=1)]
    sampler = DistributedSampler(rows, 2, rank, drop_last=True)
    return fp.linearity(tiny_model("gpt2"), DataLoader(rows, batch_size=3, sampler=sampler), progress=False)


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        (run_with_another_model, (), "model: must be the same in all processes, but 0 and 1 differ"),
        (run_with_another_text, (0,), "batches: must be the same in all processes, but 0 and 1 differ"),
        (run_with_another_text, (2,), "batches: must be the same in all processes, but processes 0 and 1 read diff"),
        (run_with_a_shorter_text, (), "batches: must be the same in all processes, but processes 0 and 1 read diff"),
        (run_with_a_shuffled_loader, (), "batches: must be the same in all processes, but 0 and 1 differ"),
        (run_with_a_sampler_of_another_world, (), "batches: their sampler is that of process 0 of 3"),
        (run_with_a_dropping_sampler, (), "batches: their sampler drops 1 of 23 sequences"),
    ],
)
def test_models_and_batches_that_do_not_fit_together_are_refused(case, arguments, message, world_of_two):
    for error in world_of_two(case, *arguments):
        assert isinstance(error, InputError), error
        assert str(error).startswith(message)


class Interrupted:
    """Batches that end with an error after some of them, and let a checkpoint be saved after each."""

    def __init__(self, after: int, checkpoint: Checkpoint | None = None):
        self.after, self.checkpoint = after, checkpoint

    def __iter__(self):
        batches = tiny_batches(SEQUENCES, batch_size=3)
        for batch in batches[: self.after]:
            if self.checkpoint:
                self.checkpoint.interval = 0.0
            yield batch
        if self.after < len(batches):
            raise RuntimeError("stopped")


def scan_with_a_checkpoint(rank, folder, after, resume):
    checkpoint = Checkpoint(folder, resume=resume)
    batches = Interrupted(after, checkpoint)
    return fp.linearity(tiny_model("gpt2"), batches, progress=False, checkpoint=checkpoint).rows


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2), (2, 4)])
def test_a_scan_resumes_with_any_number_of_processes(before, after, tmp_path, request):
    def run(size, *arguments):
        if size > 1:
            return request.getfixturevalue({2: "world_of_two", 4: "world_of_four"}[size])(
                scan_with_a_checkpoint, *arguments
            )[0]
        try:
            return scan_with_a_checkpoint(0, *arguments)
        except RuntimeError as error:
            return error

    assert str(run(before, tmp_path, 6, False)) == "stopped"
    assert 3 <= fp.Moments.load(tmp_path / FILE)[1]["batches_done"] <= 6

    resumed = run(after, tmp_path, 99, True)

    assert difference(resumed, run(1, None, 99, False)) < EXACT


def scan_and_be_killed(rank, folder):
    checkpoint = Checkpoint(folder)

    def batches():
        for number, batch in enumerate(Interrupted(99, checkpoint)):
            if (number, rank) == (6, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    return fp.linearity(tiny_model("gpt2"), batches(), progress=False, checkpoint=checkpoint)


def test_a_killed_process_ends_a_scan_and_loses_one_checkpoint(tmp_path):
    world = World(2, tmp_path)
    error, killed = world(scan_and_be_killed, tmp_path)
    world.close()

    assert killed is None
    assert isinstance(error, ProcessError)
    done = fp.Moments.load(tmp_path / FILE)[1]["batches_done"]
    assert done == 5  # the first batch, and two rounds of two
    resumed = scan_with_a_checkpoint(0, tmp_path, 99, True)
    assert difference(resumed, scan_with_a_checkpoint(0, None, 99, False)) < EXACT


def orders_with_a_journal(rank, folder, after, resume):
    journal = Journal(folder, resume=resume)
    result = fp.commutativity(tiny_model("gpt2"), Interrupted(after), ORDERS, progress=False, journal=journal)
    return result.rows, result.config


def test_orders_resume_with_another_number_of_processes(tmp_path, world_of_two):
    for error in world_of_two(orders_with_a_journal, tmp_path, 6, False):
        assert isinstance(error, RuntimeError)
    lines = len((tmp_path / JOURNAL).read_text().splitlines())
    assert lines > 3 * (1 + len(ORDERS))

    rows, config = orders_with_a_journal(0, tmp_path, 99, True)
    expected, of_all = orders_with_a_journal(0, None, 99, False)

    assert difference(rows, expected) < EXACT
    assert config["layer_forwards_run"] < of_all["layer_forwards_run"]


def rows_of_split_batches(rank, folder, size, resume):
    checkpoint = Checkpoint(folder, resume=resume)
    batches = batches_of("sampler", rank, size)
    return fp.linearity(tiny_model("gpt2"), batches, progress=False, checkpoint=checkpoint).rows


def test_split_batches_resume_in_as_many_processes_only(tmp_path: Path, world_of_two, world_of_four):
    first, _ = world_of_two(rows_of_split_batches, tmp_path, 2, False)
    again, _ = world_of_two(rows_of_split_batches, tmp_path, 2, True)
    refused = world_of_four(rows_of_split_batches, tmp_path, 4, True)

    assert difference(first, again) < EXACT
    for error in refused:
        assert isinstance(error, InputError), error
        assert "split_among=2, this one has split_among=4" in str(error)
