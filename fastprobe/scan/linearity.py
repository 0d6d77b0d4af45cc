"""Linearity of every element of a model: a pass that sums moments, and a pass over a sample that scores tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fastprobe.data.batches import grouped
from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of
from fastprobe.models.fingerprint import fingerprint
from fastprobe.models.inputs import ModelBatches
from fastprobe.models.points import Element, select_elements, select_layers, select_spans
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.orders.arguments import plain_numbers
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.deprecation import renamed_arguments
from fastprobe.runtime.progress import Bar
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.memory_check import check_memory
from fastprobe.scan.moment_pass import MomentPass
from fastprobe.scan.plan import ScanOptions, ScanPlan
from fastprobe.scan.reader import Reader
from fastprobe.scan.result import LinearityScan
from fastprobe.scan.rows import add_scores, solve_rows
from fastprobe.scan.score_pass import ScorePass


@renamed_arguments(fit="method")
@plain_numbers
def linearity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    elements: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    spans: str | Iterable[tuple[int, int]] | None = None,
    folds: int = 5,
    score_sequences: int | str = 64,
    objective: str = "least-squares",
    method: LeastSquares | None = None,
    cka: str = "auto",
    backend: str = "auto",
    exact: bool = False,
    seed: int = 0,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> LinearityScan:
    """Score every element of a model by how well an affine map, token by token, replaces it.

    The map of each element x -> y is fitted by least squares over all tokens, from sums that one pass gathers. The
    score to report is ``r2_cv``: sequence s is in fold ``s mod folds``, and the fit on the other folds predicts it.
    The cosine columns need the tokens themselves. They come from a second pass over ``score_sequences`` sequences,
    chosen by a hash of their tokens. Padding never enters a number.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``; read once.
        elements: names from ``fastprobe.models.points.ELEMENTS``; by default all that the model has.
        layers: 0-based layers to score; by default all.
        spans: ``"all"``, ``"2-5,0-3"`` or half-open pairs: also score from the input of one layer to the output of
            another.
        folds: folds of ``r2_cv``; 0 for none. Each fold has its own sums, so memory grows with them.
        score_sequences: number of sequences for the cosine columns; ``"all"``, or 0 for no such columns. With all
            sequences, rows with an ``error_bound`` over 1e-3 are refined from their residuals in the same pass. A model
            whose sequences depend on each other in a batch gets no such columns, and ``config["runner"]`` says so.
        objective: ``"cosine"`` also fits unit-norm targets, for the column ``cosine_objective``.
        method: ridge penalty and rank threshold; by default ordinary least squares.
        cka: rows that get a ``cka``: ``"auto"`` for those whose y is no wider than x (the Gram matrix of a wider y
            costs about as much as all other sums of its layer), ``"all"`` or ``"none"``.
        backend: implementation of the operations; ``"auto"`` takes the fastest that the machine has.
        exact: for audits: sum, multiply and score in float64, whatever the dtype of the model. On a CPU torch does
            that; on a GPU ``fastprobe._cuda`` if it was built, else torch.
        seed: seed of the hash that chooses the sequences for the cosine columns.
        progress: show a progress bar on standard error.
        checkpoint: keeps the moments on disk while the scan runs, and resumes from them.

    Raises:
        InputError: an argument cannot be used, or the moments would not fit in memory.
        UnsupportedModelError: the points of the model cannot be found, or their identities fail.
        NumericalError: an activation is not finite. A checkpoint keeps whole batches before it.

    Example:
        >>> scan = linearity(model, batches, elements=["attention", "ffn"])  # doctest: +SKIP
        >>> scan.top(3, "nonlinearity")  # doctest: +SKIP
    """
    method, checkpoint = method or LeastSquares(), checkpoint or Checkpoint()
    sample = SequenceSample.of(score_sequences, seed)
    points, device = resolve(model), device_of(model)
    options = ScanOptions(_chosen(points, elements, layers, spans), folds, objective, cka, exact)

    batches = ModelBatches(model, points, batches)
    first, stream = _peek(batches)
    reader = Reader.of(model, points, first, options.elements)
    if not reader.rebatched:  # the sample would have other states
        sample = SequenceSample(0)
    plan = ScanPlan.of(points, reader.widths, options)
    check_memory(plan, points, reader.widths, device)

    clock = Clock(device)
    resumable = plan.config | {"weights": fingerprint(model)}
    moments, batches_done = checkpoint.resume(resumable, Moments.zero(plan.moments, device))
    moment_pass = MomentPass(model, points, plan, moments, sample, clock, backend, reader.recorder, exact)
    bar = Bar(total=getattr(batches, "tokens", None), unit=" tokens", unit_scale=True, disable=not progress)
    with bar, moment_pass.recording():
        for batch in itertools.islice(stream, batches_done):
            bar.update(moment_pass.skip(batch))
        checkpoint.check_read(moment_pass)
        with checkpoint.keeping(moment_pass, resumable):  # not before the pass has counted all batches that it skips
            for group in grouped(stream, reader.group_tokens):
                bar.update(moment_pass.add(group))
                checkpoint.tick()

    score_pass = ScorePass(model, points, plan, clock, backend, reader.recorder, reader.group_tokens)
    with clock("solve"):
        sees_all = len(sample) == moment_pass.sequences
        rows = solve_rows(plan.fits, moments, method, score_pass if len(sample) else None, refine=sees_all)
    if len(sample):
        add_scores(rows, plan.fits, score_pass, score_pass.run(sample, len(first["input_ids"])))

    config = resumable | {
        "alpha": method.alpha,
        "rcond": method.rcond,
        "seed": seed,
        "tokens": moments.tokens,
        "columns": max(plan.moments.widths[f.x] for f in plan.fits),
        "sequences": moment_pass.sequences,
        "read": moment_pass.read,
        "scored_sequences": len(sample),
        "moment_bytes": plan.moments.nbytes,
        "runner": reader.runner,
        "seconds": {part: round(seconds, 3) for part, seconds in clock.seconds.items()},
    }
    return LinearityScan(config, rows, moments)


def _chosen(
    points: ModelPoints,
    elements: Sequence[str] | None,
    layers: Iterable[int] | None,
    spans: str | Iterable[tuple[int, int]] | None,
) -> tuple[Element, ...]:
    """Return the elements and spans that a caller names, in the order of the rows."""
    depth = len(points.layers)
    names = select_elements(elements, points.elements)
    numbers = select_layers(layers, depth)
    return (
        *(Element(name, layer, layer + 1) for name in names for layer in numbers),
        *(Element("span", start, stop) for start, stop in select_spans(spans, depth)),
    )


def _peek(batches: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Iterator[Mapping[str, Any]]]:
    """Return the first batch, and an iterator over all of them."""
    stream = iter(batches)
    try:
        first = next(stream)
    except StopIteration:
        raise InputError("batches: there are none") from None
    return first, itertools.chain([first], stream)
