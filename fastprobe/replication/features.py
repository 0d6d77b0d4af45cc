"""The section on features by layer, and on what a swap of the first two layers does to them."""

from __future__ import annotations

import numpy as np

from fastprobe.orders import Order
from fastprobe.probes.probe import probe
from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, number
from fastprobe.results.result import Result

NAME = "features"
BY_LAYERS = 0.5
"""A task is learnt by layers where its centre of gravity is at least so far down; else state 0 knows it."""
MOVE = 0.5
"""Layers; a feature that went along with its layer would move by a whole one."""
SHARE = 0.1
"""Of a task's gain after state 0."""


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
    return subject.line("probe", "--orders", ",".join(map(str, _swapped(subject.depth))))


def _learnt(results: Results) -> dict[str, float]:
    """Where the tasks are learnt that layers bring in."""
    centres = results[NAME].expected_state()
    return {task: centre for task, centre in centres.items() if centre is not None and centre >= BY_LAYERS}


def _first_whichever_runs_first(results: Results) -> Finding:
    result = results[NAME]
    swapped = result.orders[1]
    after = result.expected_state(swapped)
    best = [np.nan_to_num(result.matrix("r2_cv", order)).max(axis=1) for order in (None, swapped)]
    moves, listed = [], []
    for task, centre in _learnt(results).items():
        own, other = (float(values[result.tasks.index(task)]) for values in best)
        if after[task] is None:
            return Finding(False, f"{task} cannot be read at all with the layers swapped.")
        moves.append(abs(after[task] - centre))
        listed.append(
            f"{task} is learnt at {number(centre)}, swapped at {number(after[task])} "
            f"(best r2 {number(own)} and {number(other)})"
        )
    if not moves:
        return Finding(None, "No task is learnt by layers.")
    return Finding(max(moves) < MOVE, f"{'; '.join(listed)}.")


def _fuzzily(results: Results) -> Finding:
    result = results[NAME]
    values = result.matrix("r2_cv")
    counts = {}
    for task in _learnt(results):
        best = np.maximum.accumulate(np.nan_to_num(values[result.tasks.index(task)]).clip(min=0))
        gains = np.diff(best)
        counts[task] = int((gains > SHARE * gains.sum()).sum())
    if not counts:
        return Finding(None, "No task is learnt by layers.")
    several = sum(count > 1 for count in counts.values())
    listed = ", ".join(f"{task} by {count}" for task, count in counts.items())
    return Finding(2 * several > len(counts), f"Layers that bring in over {SHARE} of it: {listed}.")


def _table(results: Results) -> Table:
    result = results[NAME]
    before, after = (result.expected_state(order) for order in result.orders[:2])
    values = result.matrix("r2_cv")
    header = ("task", *(f"state {k}" for k in range(values.shape[1])), "learnt at", "learnt at, swapped")
    rows = [(task, *map(float, row), before[task], after[task]) for task, row in zip(result.tasks, values, strict=True)]
    return Table(header, rows)


SECTION = Section(
    name=NAME,
    title="Features by layer, and the first two layers swapped",
    question="What can a linear read-out tell of a token after every layer, and does a feature go with its layer?",
    protocol=(
        "Least-squares classifiers from every state to labels of its token, r2 on held-out sequences. “Learnt at” is "
        "the centre of gravity of the gains; the claims are asked of tasks learnt at "
        f"{BY_LAYERS} or later. The probe is fastprobe's own; the paper follows embeddings through the layers."
    ),
    analyses=[Analysis(NAME, "Held-out r2 by state; dashed with layers 0 and 1 swapped.", _command, _run)],
    claims=[
        Claim(
            "A",
            "Layers have some hierarchy, but extract features in a fuzzy manner.",
            f"for most tasks two layers or more bring in over {SHARE} of the gain each",
            _fuzzily,
        ),
        Claim(
            "N",
            "Low-level features are extracted first, whichever layer runs first.",
            f"with the first two layers swapped no task is learnt {MOVE} layers or more earlier or later",
            _first_whichever_runs_first,
        ),
    ],
    table=_table,
)
