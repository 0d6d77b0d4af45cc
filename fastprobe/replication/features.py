"""The section on features by layer, and on their change when the first two layers are swapped."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastprobe.orders import Order
from fastprobe.probes.probe import probe
from fastprobe.regression.evidence import tokens_for_difference
from fastprobe.replication.evidence import (
    Estimate,
    column_estimate,
    decide,
    exceeds_zero,
    propagate,
    too_few_tokens,
    undecided,
)
from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, number
from fastprobe.results.result import Result

NAME = "features"
LEARNT_FROM = 0.5
"""A task is learnt by layers if its centre of gravity is at least this state. Else state 0 already holds it."""
MOVE = 0.5
"""Layers. A feature that moves with its layer moves by 1."""
SHARE = 0.1
"""Share of the gain of a task after state 0."""


def _swapped(depth: int) -> tuple[int, ...]:
    return (1, 0, *range(2, depth))


def _run(subject: Subject) -> Result:
    return probe(
        subject.model,
        subject.batches,
        tokenizer=subject.tokenizer,
        orders=[Order(_swapped(subject.depth))],
        progress=subject.progress,
    )


def _command(subject: Subject) -> str:
    return subject.command_line("probe", "--orders", ",".join(map(str, _swapped(subject.depth))))


def _estimates(result: Any, task: str, order: str | None = None) -> list[Estimate]:
    """Return the held-out r2 of a task in each state."""
    order = result.orders[0] if order is None else order
    rows = [row for row in result.rows if (row["task"], row["order"]) == (task, order)]
    return [column_estimate(row, "r2_cv") for row in rows if row["r2_cv"] is not None]


def _centre(result: Any, task: str, order: str | None = None) -> Estimate | None:
    """Return the centre of gravity of a task, or ``None`` if no state predicts it."""
    estimates = _estimates(result, task, order)
    if max((one.value for one in estimates), default=0.0) <= 0:
        return None
    return propagate(_centre_of, estimates)


def _centre_of(scores: list[float]) -> float:
    best = np.maximum.accumulate(np.clip(scores, 0, None))
    return float(np.diff(best, prepend=0) @ np.arange(len(best)) / best[-1]) if best[-1] > 0 else 0.0


def _learnt(results: Results) -> dict[str, bool | None]:
    """Return the tasks that layers learn. ``None`` stands for a task whose centre of gravity is within the noise."""
    result = results[NAME]
    centres = {task: _centre(result, task) for task in result.tasks}
    learnt = {
        task: exceeds_zero(centre.minus(Estimate(LEARNT_FROM, 0.0))) for task, centre in centres.items() if centre
    }
    return {task: sure for task, sure in learnt.items() if sure is not False}


def _low_level_first(results: Results) -> Finding:
    result = results[NAME]
    if refusal := too_few_tokens(result.config):
        return refusal
    swapped = result.orders[1]
    best = [np.nan_to_num(result.matrix("r2_cv", order)).max(axis=1) for order in (None, swapped)]
    margins, listed = [], []
    for task, is_sure in _learnt(results).items():
        baseline, other = (float(values[result.tasks.index(task)]) for values in best)
        before, after = _centre(result, task), _centre(result, task, swapped)
        assert before is not None
        if after is None:
            return Finding(False, f"With the layers swapped, no state predicts {task}.")
        move = after.minus(before)
        margins.append(_if_sure(Estimate(MOVE - abs(move.value), move.error), is_sure))
        listed.append(
            f"{task} is learnt at {number(before.value)}, swapped at {number(after.value)} "
            f"(best r2 {number(baseline)} and {number(other)})"
        )
    if not margins:
        return Finding(None, "No task is learnt by layers.")
    return decide(margins, result.config["tokens"], f"{'; '.join(listed)}.")


def _if_sure(estimate: Estimate, is_sure: bool | None) -> Estimate:
    """Return an estimate that decides nothing against a claim if the layers may not learn its task."""
    if is_sure or estimate.error is None or estimate.value > 0:
        return estimate
    return Estimate(estimate.value, max(estimate.error, abs(estimate.value)))


def _second_gain(scores: list[float]) -> float:
    """Return the second largest gain of a layer, less :data:`SHARE` of all gains: positive if two layers add more."""
    gains = np.diff(np.maximum.accumulate(np.clip(scores, 0, None)))
    return float(np.sort([0.0, *gains])[-2] - SHARE * gains.sum())


def _fuzzy_hierarchy(results: Results) -> Finding:
    result = results[NAME]
    if refusal := too_few_tokens(result.config):
        return refusal
    learnt, tokens = _learnt(results), result.config["tokens"]
    if not learnt:
        return Finding(None, "No task is learnt by layers.")
    values = result.matrix("r2_cv")
    second = {task: propagate(_second_gain, _estimates(result, task)) for task in learnt}
    signs = {task: exceeds_zero(second[task]) if is_sure else None for task, is_sure in learnt.items()}
    counts = {}
    for task in learnt:
        gains = np.diff(np.maximum.accumulate(np.nan_to_num(values[result.tasks.index(task)]).clip(min=0)))
        counts[task] = int((gains > SHARE * gains.sum()).sum())
    found = f"Layers that add more than {SHARE} of the gain: {', '.join(f'{t}: {n}' for t, n in counts.items())}."
    several, unknown = sum(sign is True for sign in signs.values()), [t for t, sign in signs.items() if sign is None]
    if 2 * several > len(signs):
        return Finding(True, found)
    if 2 * (several + len(unknown)) <= sum(is_sure is True for is_sure in learnt.values()):
        return Finding(False, found)
    needed = max(tokens_for_difference(tokens, *second[task]) for task in unknown)
    return undecided(tokens, needed, found)


def _table(results: Results) -> Table:
    result = results[NAME]
    before, after = (result.expected_state(order) for order in result.orders[:2])
    values = result.matrix("r2_cv")
    header = ("task", *(f"state {k}" for k in range(values.shape[1])), "learnt at", "learnt at, swapped")
    if few := too_few_tokens(result.config):
        return Table(header, [(task, few.numbers, *[None] * (len(header) - 2)) for task in result.tasks])
    rows = [(task, *map(float, row), before[task], after[task]) for task, row in zip(result.tasks, values, strict=True)]
    return Table(header, rows)


SECTION = Section(
    name=NAME,
    title="Features by layer, and the first two layers swapped",
    question="Which features of a token can a linear probe read after each layer? Do features move with their layers?",
    protocol=(
        "Least-squares classifiers predict labels of a token from each hidden state. The score is r2 on held-out "
        "sequences. “Learnt at” is the centre of gravity of the gains in r2 over the states. The claims are tested on "
        f"tasks that are learnt at state {LEARNT_FROM} or later. The probe is a method of fastprobe; the paper follows "
        "embeddings through the layers."
    ),
    analyses=[Analysis(NAME, "Held-out r2 by state. Dashed: layers 0 and 1 swapped.", _command, _run)],
    claims=[
        Claim(
            "A",
            "Layers have some hierarchy, but extract features in a fuzzy manner.",
            f"for most tasks, two or more layers each add more than {SHARE} of the gain",
            _fuzzy_hierarchy,
        ),
        Claim(
            "N",
            "Low-level features are extracted first, whichever layer runs first.",
            f"with the first two layers swapped, every task is learnt less than {MOVE} layers earlier or later",
            _low_level_first,
        ),
    ],
    table=_table,
)
