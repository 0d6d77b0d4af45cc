"""The section on features by layer, and on their change when the first two layers are swapped."""

from __future__ import annotations

import numpy as np

from fastprobe.orders import Order
from fastprobe.probes.probe import probe
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


def _learnt(results: Results) -> dict[str, float]:
    """Return the centre of gravity of each task that layers learn."""
    centres = results[NAME].expected_state()
    return {task: centre for task, centre in centres.items() if centre is not None and centre >= LEARNT_FROM}


def _low_level_first(results: Results) -> Finding:
    result = results[NAME]
    swapped = result.orders[1]
    after = result.expected_state(swapped)
    best = [np.nan_to_num(result.matrix("r2_cv", order)).max(axis=1) for order in (None, swapped)]
    moves, listed = [], []
    for task, centre in _learnt(results).items():
        baseline, other = (float(values[result.tasks.index(task)]) for values in best)
        if after[task] is None:
            return Finding(False, f"With the layers swapped, no state predicts {task}.")
        moves.append(abs(after[task] - centre))
        listed.append(
            f"{task} is learnt at {number(centre)}, swapped at {number(after[task])} "
            f"(best r2 {number(baseline)} and {number(other)})"
        )
    if not moves:
        return Finding(None, "No task is learnt by layers.")
    return Finding(max(moves) < MOVE, f"{'; '.join(listed)}.")


def _fuzzy_hierarchy(results: Results) -> Finding:
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
    listed = ", ".join(f"{task}: {count}" for task, count in counts.items())
    return Finding(2 * several > len(counts), f"Layers that add more than {SHARE} of the gain: {listed}.")


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
