"""The section on commutators with and without skip connections."""

from __future__ import annotations

from fastprobe.models.skip_scale import PARTS, skip_scale
from fastprobe.reordering.commutator import commutator
from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, mean, number
from fastprobe.results.result import Result

WITH, WITHOUT = "commutators", "commutators-without-skips"
MAINLY = 2
"""Times: if the skips account for most, what is left without them is at least so much further from commuting."""


def _run(subject: Subject) -> Result:
    return commutator(subject.model, subject.batches, progress=subject.progress)


def _run_without(subject: Subject) -> Result:
    with skip_scale(subject.model, 0.0):
        result = _run(subject)
    result.config.update(skip_scale="0", skip_parts=",".join(PARTS))  # as the command has it, for the picture
    return result


def commutators(name: str = WITH, caption: str = "The model as it is.", variant: str = "") -> Analysis:
    """The commutators of every two layers."""
    return Analysis(name, caption, lambda subject: subject.line("commutator"), _run, variant)


def _mainly_skips(results: Results) -> Finding:
    own, cut = (mean(row["relative_l2"] for row in results[name].rows) for name in (WITH, WITHOUT))
    return Finding(cut >= MAINLY * own, f"With skips {number(own)}, without {number(cut)}: {number(cut / own)} times.")


def _table(results: Results) -> Table:
    header = ("layers", "with skips", "± se", "without skips", "± se")
    pairs = zip(results[WITH].rows, results[WITHOUT].rows, strict=True)
    keys = ("relative_l2", "relative_l2_se")
    return Table(header, [(f"{a['i']} {a['j']}", *(row[key] for row in (a, b) for key in keys)) for a, b in pairs])


SECTION = Section(
    name="skips",
    title="Commutators with and without skip connections",
    question="How far are two layers from commuting, and is it the skip connections that make them?",
    protocol=(
        "The norm of f_i f_j x − f_j f_i x over that of f_j f_i x, at the state that layer i gets. The measure is "
        "fastprobe's own. The paper pre-trains models without skip connections and swaps their layers; here those of "
        "the trained model are cut, all at once, which also changes the states that layers get."
    ),
    analyses=[
        commutators(),
        Analysis(
            WITHOUT,
            "Without skip connections.",
            lambda subject: subject.line("commutator", "--skip-scale", "0"),
            _run_without,
        ),
    ],
    claims=[
        Claim(
            "A",
            "The bias of BERT towards layers that commute is mainly due to the skip connections.",
            f"the mean commutator without them is at least {MAINLY} times that with them",
            _mainly_skips,
        )
    ],
    table=_table,
)
