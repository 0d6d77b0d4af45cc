"""The section on commutators of a trained model, with its skip connections and with all of them cut."""

from __future__ import annotations

from fastprobe.models.skip_scale import PARTS, skip_scale
from fastprobe.reordering.commutator import commutator
from fastprobe.replication.evidence import column_estimate, decide, mean_estimate
from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, number
from fastprobe.results.result import Result

WITH, WITHOUT = "commutators", "commutators-without-skips"
MAINLY = 2
"""Skip connections are the main cause if commutators, or damage, are this many times as large without them."""


def _run(subject: Subject) -> Result:
    return commutator(subject.model, subject.batches, progress=subject.progress)


def _run_without(subject: Subject) -> Result:
    with skip_scale(subject.model, 0.0):
        result = _run(subject)
    # The command writes the same entries. The figure names them.
    result.config.update(skip_scale="0", skip_parts=",".join(PARTS))
    return result


def commutators(name: str = WITH, caption: str = "The model with its skip connections.", variant: str = "") -> Analysis:
    """Return the analysis that measures the commutators of all pairs of layers.

    Args:
        name: name of its folder.
        caption: caption of its figure.
        variant: the trained variant to analyse; empty for the model itself.
    """
    return Analysis(name, caption, lambda subject: subject.command_line("commutator"), _run, variant)


def _mainly_skips(results: Results) -> Finding:
    baseline, cut = (
        mean_estimate(column_estimate(row, "relative_l2") for row in results[name].rows) for name in (WITH, WITHOUT)
    )
    found = f"With skip connections {number(baseline.value)}, without {number(cut.value)}"
    found += f": {number(cut.value / baseline.value)} times as large." if baseline.value > 0 else "."
    return decide(cut.minus(baseline, MAINLY), results[WITH].config["tokens"], found)


def _table(results: Results) -> Table:
    header = ("layers", "with skips", "± se", "without skips", "± se")
    pairs = zip(results[WITH].rows, results[WITHOUT].rows, strict=True)
    keys = ("relative_l2", "relative_l2_se")
    return Table(header, [(f"{a['i']} {a['j']}", *(row[key] for row in (a, b) for key in keys)) for a, b in pairs])


SECTION = Section(
    name="skips",
    title="Commutators with and without skip connections",
    question="How far are two layers from commuting, and are the skip connections the reason that they nearly commute?",
    protocol=(
        "The commutator of layers i and j is the norm of f_i f_j x − f_j f_i x, divided by the norm of f_j f_i x, "
        "where x is the input of layer i. The measure is a method of fastprobe. The paper pre-trains models without "
        "skip connections and swaps their layers. Here, all skip connections of the trained model are cut at once. "
        "This also changes the inputs of the layers."
    ),
    analyses=[
        commutators(),
        Analysis(
            WITHOUT,
            "All skip connections cut.",
            lambda subject: subject.command_line("commutator", "--skip-scale", "0"),
            _run_without,
        ),
    ],
    claims=[
        Claim(
            "A",
            "The bias of BERT towards layers that commute is mainly due to the skip connections.",
            f"the mean commutator without skip connections is at least {MAINLY} times that with them",
            _mainly_skips,
        )
    ],
    table=_table,
)
