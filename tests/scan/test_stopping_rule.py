"""A scan with a limit of r2_cv_se stops at the first look that finds all rows below it."""

import contextlib
import itertools

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.regression.least_squares import Factorisation
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.stopping_rule import GROWTH
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.test_several_processes import check_equal

BATCHES = tiny_batches(120)
OPTIONS = {"elements": ["layer", "attention", "ffn"], "score_sequences": 4}
WIDTH = 32  # of these elements


def scan(until=None, batches=BATCHES, model=None, family="gpt2", **options):
    model = tiny_model(family) if model is None else model
    return fp.linearity(model, iter(batches), until=until, **{"progress": False} | OPTIONS | options)


def tokens_after(batches):
    return [*itertools.accumulate(int(batch["attention_mask"].sum()) for batch in batches)]


def looks(batches, first):
    """Return the numbers of batches after which looks are due."""
    due, found = first, []
    for number, tokens in enumerate(tokens_after(batches), 1):
        if tokens >= due:
            found.append(number)
        while due <= tokens:
            due *= GROWTH
    return found


def largest_error(result):
    return max(row["r2_cv_se"] for row in result.rows)


def is_met(rows, until):
    return all(row["r2_cv_se"] < until and not row["tokens_needed"] for row in rows)


@pytest.mark.parametrize(
    ("until", "size", "family", "more"),
    [
        (0.2, 1, "gpt2", {"folds": 2, "score_sequences": "all"}),
        (0.1, 5, "gpt2", {"folds": 7, "method": fp.LeastSquares(alpha=1.0)}),
        (0.04, 3, "llama", {"spans": "all"}),
        (0.02, 2, "bert-mlm", {"objective": "cosine", "exact": True}),
    ],
)
def test_a_stopped_scan_has_the_rows_of_exactly_its_batches(until, size, family, more):
    batches = tiny_batches(160, batch_size=size)

    stopped = scan(until, batches, family=family, **more)

    done = 1 + tokens_after(batches).index(stopped.config["tokens"])
    expected = scan(batches=batches[:done], family=family, **more)
    assert stopped.rows == expected.rows
    assert stopped.config["sequences"] == expected.config["sequences"]
    assert stopped.config["until"] == until
    assert is_met(stopped.rows, until)
    assert {row["tokens"] for row in stopped.rows} == {stopped.config["tokens"]}
    if family != "bert-mlm":  # its batches run together
        due = looks(batches, 5 * WIDTH)
        assert done in due
        for earlier in due[: due.index(done)]:
            assert not is_met(scan(batches=batches[:earlier], family=family, **more).rows, until)


def test_a_limit_that_cannot_be_met_reads_all_batches_and_names_the_row(capfd):
    stopped = scan(1e-9, progress=True)

    assert stopped.rows == scan().rows
    worst = max(stopped.rows, key=lambda row: row["r2_cv_se"])
    said = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "until:" in line]
    assert len(said) == 1
    assert f"rows are not below 1e-09 at the end of the text, after {stopped.config['tokens']:,} tokens" in said[0]
    assert f"{worst['element']} of layer {worst['layer']} has {worst['r2_cv_se']:.2g}" in said[0]


def test_a_look_ends_at_the_first_row_above_the_limit(monkeypatch):
    seen, plain = [], Factorisation.cross_validate
    monkeypatch.setattr(Factorisation, "cross_validate", lambda self, y: seen.append(y) or plain(self, y))

    scan(1e-9)

    assert len(seen) == len(looks(BATCHES, 5 * WIDTH))


@pytest.mark.parametrize("stops", [3, 6, 7, 8, 12])
def test_a_resumed_scan_stops_where_an_uninterrupted_one_does(stops, tmp_path):
    def interrupted():
        yield from BATCHES[:stops]
        raise KeyboardInterrupt

    whole = scan(0.02)
    kept = Checkpoint(tmp_path, interval=3600)
    with contextlib.suppress(KeyboardInterrupt):
        scan(0.02, interrupted(), checkpoint=kept)

    for _ in range(2):  # a finished one stops at the same place
        resumed = scan(0.02, checkpoint=Checkpoint(tmp_path, interval=3600, resume=True))
        assert resumed.rows == whole.rows
        assert resumed.config["tokens"] == whole.config["tokens"] < scan().config["tokens"]


def test_a_finished_scan_goes_on_to_a_smaller_limit(tmp_path):
    scan(0.05, checkpoint=Checkpoint(tmp_path))

    assert scan(0.02, checkpoint=Checkpoint(tmp_path, resume=True)).rows == scan(0.02).rows


def scan_in_a_process(rank, folder, resume):
    checkpoint = Checkpoint(folder, interval=0.0, resume=resume) if folder else None
    result = scan(0.02, tiny_batches(120, batch_size=2), checkpoint=checkpoint)
    return result.rows, {key: result.config[key] for key in ("tokens", "sequences", "scored_sequences", "until")}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_stop_where_one_does(size, tmp_path, request):
    expected = scan_in_a_process(0, None, False)
    world = request.getfixturevalue({2: "world_of_two", 4: "world_of_four"}[size])

    check_equal(world(scan_in_a_process, tmp_path, False), expected)

    check_equal([scan_in_a_process(0, tmp_path, True)], expected)
    check_equal(world(scan_in_a_process, tmp_path, True), expected)
    assert expected[1]["tokens"] < scan().config["tokens"]


@pytest.mark.parametrize("part", ["c_proj", "ln_2"])
def test_constant_targets_and_sources_do_not_keep_a_scan_from_stopping(part, capfd):
    model = tiny_model("gpt2")
    block = model.transformer.h[0]
    with torch.no_grad():
        (block.ln_2 if part == "ln_2" else block.mlp.c_proj).weight.zero_()

    stopped = scan(0.05, model=model, elements=["mlp", "layer"], progress=True)

    assert stopped.config["tokens"] < tokens_after(BATCHES)[-1]
    constant = [row for row in stopped.rows if row["r2"] is None]
    assert [(row["element"], row["layer"]) for row in constant] == [("mlp", 0)]
    assert (constant[0]["rank"] == 0) == (part == "ln_2")
    said = capfd.readouterr().err
    assert "until: every r2_cv_se is below 0.05" in said
    assert f"{len(constant)} of {len(stopped.rows)} rows have a constant y and no r2_cv_se" in said


def test_a_row_with_too_few_tokens_is_not_below_the_limit(capfd):
    batches = BATCHES[:2]
    assert tokens_after(batches)[-1] < 5 * WIDTH

    assert scan(10.0, batches, progress=True).rows == scan(batches=batches).rows

    assert "cannot be said with" in next(line for line in capfd.readouterr().err.split("\r") if "until:" in line)


def test_only_counted_tokens_decide():
    batches = [batch | {"token_mask": batch["attention_mask"] * (torch.arange(14) % 3 == 1)} for batch in BATCHES]

    stopped = scan(0.08, batches)

    assert largest_error(stopped) < 0.08
    assert 5 * WIDTH <= stopped.config["tokens"] < scan(batches=batches).config["tokens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"until": value}, r"^until: must be above 0 and finite, got")
            for value in (0, -0.1, float("nan"), torch.inf)
        ),
        ({"until": "small"}, "^until: must be a number, got 'small'"),
        ({"until": True}, "^until: must be a number, got True"),
        ({"until": 0.1, "folds": 0}, "^until: needs the standard errors of two or more folds, got folds=0"),
        ({"until": 0.1, "folds": 1}, "^until: needs the standard errors of two or more folds, got folds=1"),
        ({"until": 0.1, "schedule": "layer"}, "^until: looks at all layers after some batches, got schedule='layer'"),
    ],
)
def test_unusable_limits_get_one_line(options, message):
    with pytest.raises(InputError, match=message):
        scan(**options)
