"""Linearity of every element of a model: a pass that sums moments, and a pass over a sample that scores tokens."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastprobe.data.batches import Batch, grouped
from fastprobe.data.checks import attended_mask
from fastprobe.data.sample import SequenceSample
from fastprobe.data.shares import COUNTED, FIRST_MASK, Shares
from fastprobe.data.token_batches import TokenBatches
from fastprobe.models.calling import device_of
from fastprobe.models.digest import check_same_run
from fastprobe.models.fingerprint import fingerprint
from fastprobe.models.inputs import ModelBatches
from fastprobe.models.one_by_one import layer_reader_for, one_by_one_refusal
from fastprobe.models.points import Element, select_elements, select_layers, select_spans
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.orders.arguments import plain_numbers
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.deprecation import renamed_arguments
from fastprobe.runtime.distributed import Ranks, together
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.extension import remove_last
from fastprobe.scan.layer_checkpoint import LayerCheckpoint
from fastprobe.scan.layer_scan import LayerScan
from fastprobe.scan.memory_check import check_memory
from fastprobe.scan.moment_pass import MomentPass
from fastprobe.scan.plan import ScanOptions, ScanPlan
from fastprobe.scan.progress import BatchWork, ScanProgress
from fastprobe.scan.reader import Reader, first_sequences
from fastprobe.scan.result import LinearityScan
from fastprobe.scan.rows import add_scores, solve_rows
from fastprobe.scan.schedule import Budget, batch_report, check_schedule, goes_by_layer
from fastprobe.scan.score_pass import ScorePass
from fastprobe.scan.shared_fits import gather_rows, shared_fits
from fastprobe.scan.stopping_rule import StoppingRule, check_until


@renamed_arguments(fit="method")
@together()
@plain_numbers
def linearity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    elements: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    spans: str | Iterable[tuple[int, int]] | None = None,
    stack: str | None = None,
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
    schedule: str = "auto",
    memory: int | str | None = None,
    until: float | None = None,
) -> LinearityScan:
    """Score every element of a model by how well an affine map, token by token, replaces it.

    The map of each element x -> y is fitted by least squares over all tokens, from sums that one pass gathers. The
    score to report is ``r2_cv``: sequence s is in fold ``s mod folds``, and the fit on the other folds predicts it.
    The cosine columns need the tokens themselves. They come from a second pass over ``score_sequences`` sequences,
    chosen by a hash of their tokens. Padding, and tokens where ``token_mask`` is 0, never enter a
    number.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, and perhaps ``token_mask``, the tokens that count,
            each ``(batch, length)``; read once.
        elements: names from ``fastprobe.models.points.ELEMENTS``; by default all that the model has.
        layers: 0-based layers to score; by default all.
        spans: ``"all"``, ``"2-5,0-3"`` or half-open pairs: also score from the input of one layer to the output of
            another.
        stack: path of the stack of layers, or a part of it, like ``"encoder"``; the longest by default.
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
        checkpoint: keeps the moments on disk while the scan runs, or the finished layers, and resumes from them.
        schedule: ``"batch"`` runs all layers on one batch after another and holds all sums; ``"layer"`` runs one layer
            on all batches and holds the sums of that layer and the states of all tokens; ``"auto"`` takes ``"batch"``
            if all sums fit. The rows are the same; a scan layer by layer keeps no ``moments``.
        memory: bytes that the scan may take beyond the weights of the model, like ``8_000_000_000`` or ``"8GB"``; by
            default the memory that is free. On a CPU the processes of ``torchrun`` on a machine share it.
        until: stop reading when ``r2_cv_se`` of every row is below this and no row has too few tokens, which is looked
            at each time the tokens have grown by half. Rows with a constant y are left out. Goes batch by batch.

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
    check_schedule(schedule)
    check_until(until, folds, schedule)
    points = resolve(model, stack)
    model = points.part_of(model)
    device = device_of(model)
    ranks, clock = Ranks.here(), Clock(device)
    budget = Budget.of(memory, device, ranks)
    numbers = select_layers(layers, len(points.layers))
    options = ScanOptions(_chosen(points, elements, numbers, spans), folds, objective, cka, exact)

    same = {"options": options, "method": method, "score_sequences": score_sequences, "seed": seed, "until": until}
    check_same_run(model, points, ranks, **same)
    given, batches = batches, ModelBatches(model, points, batches)
    shares = Shares(batches, ranks)
    shape, most = attended_mask(shares.head).shape, max(ranks.gather(_most_tokens(given)))
    with clock("check"):
        reader = Reader.of(model, points, shares.head, options.elements)
        if not reader.rebatched:  # the sample would have other states
            sample = SequenceSample(0)
        plan = ScanPlan.of(points, reader.widths, options)
        few, kind = first_sequences(shares.head, device), layer_reader_for(reader.recorder)
        by_layer, why = goes_by_layer(
            schedule if until is None else "batch",
            plan,
            budget,
            min(most, reader.rows(shape)),
            sample.size != 0,
            model,
            checkpoint,
            ranks,
            lambda: one_by_one_refusal(model, points, few, kind),
        )
    if until is not None and schedule == "auto":
        why = "because until looks at all layers"
    stream = clock.timed("read", shares.stream)
    bar = ScanProgress(progress and ranks.is_first)
    facts = plan.config | {
        "alpha": method.alpha,
        "rcond": method.rcond,
        "seed": seed,
        "columns": max(plan.moments.widths[f.x] for f in plan.fits),
        "schedule": "layer" if by_layer else "batch",
        "runner": reader.runner,
        **({} if until is None else {"until": until}),
        **shares.counted,
        **points.description(dict.fromkeys(e.name for e in options.elements if not e.is_span), numbers),
    }
    if by_layer:
        kept = LayerCheckpoint(checkpoint)
        scan = LayerScan(
            model, points, reader, plan, sample, method, clock, device, backend, budget, why, kept, bar, most, ranks
        )
        with bar:
            rows = scan.run(shares, facts | shares.config | {"score_sequences": score_sequences})
        bar.finish()
        return LinearityScan(facts | scan.config | {"seconds": clock.rounded}, rows)
    check_memory(plan, points, reader.widths, device, budget.nbytes if budget.given else None, why)

    bar.say(batch_report(plan, model, sample.size != 0, why, checkpoint))
    resumable = plan.config | {COUNTED: None, FIRST_MASK: None, "weights": fingerprint(model)} | shares.config
    moments, batches_done = checkpoint.resume(resumable, Moments.zero(plan.moments, device))
    rule = None if until is None else StoppingRule(until, plan, method, ranks, batches_done)
    moment_pass = MomentPass(model, points, plan, moments, sample, clock, backend, reader.recorder, exact)
    expected = getattr(batches, "tokens", None) if rule is None else None
    work = BatchWork.of(plan, points.layers, bar, expected, sample.size)
    with bar, moment_pass.recording(), checkpoint.keeping(moment_pass, resumable):
        if checkpoint.earlier_tokens and isinstance(given, TokenBatches):
            shorter = ModelBatches(model, points, given.up_to(checkpoint.earlier_tokens))
            batches_done = remove_last(moment_pass, shorter, batches_done)
        groups = _groups(shares, stream, batches_done, reader.group_tokens)
        for share in shares.rounds(groups, rule.ends_round if rule else None):
            if share.batches_done > batches_done:
                checkpoint.check_read(moment_pass)
            moment_pass.take(share, batches_done)
            if share.opens:
                moments.share_origins_()
            work.read(share.tokens)
            if share.batches_done == batches_done:
                moment_pass.tokens_before = checkpoint.tokens_before
            if rule is not None:
                with clock("look"):
                    if rule.is_met(moments, share.batches_done, moment_pass.tokens_before, moment_pass.tokens):
                        break
            with clock("save"):
                checkpoint.tick()
        if moment_pass.batches <= batches_done:
            checkpoint.check_read(moment_pass)
    moments.all_reduce_()
    sample.gather_(ranks)

    fits = shared_fits(plan, ranks)
    score_pass = ScorePass(model, points, plan, clock, backend, reader.recorder, reader.group_tokens)
    work.begin_solve(sample)
    with bar, clock("solve"):
        sees_all = sample.tokens == moments.tokens
        scored = score_pass if len(sample) else None
        rows = solve_rows(fits, moments, method, scored, refine=sees_all, advance=work.solved)
    if len(sample):
        bar.part("score")
        with bar:
            add_scores(rows, fits, score_pass, score_pass.run(sample, shape[0], work.scored))
    rows = gather_rows(plan, fits, rows, ranks)
    if rule is not None:
        bar.say(rule.report(rows))
    bar.finish()

    config = facts | {
        "tokens": moments.tokens,
        "sequences": moment_pass.sequences,
        "read": list(moment_pass.read) if ranks.size == 1 else [],
        "weights": resumable["weights"],
        "scored_sequences": len(sample),
        "moment_bytes": plan.moments.nbytes,
        "seconds": clock.rounded,
    }
    return LinearityScan(config, rows, moments)


def _chosen(
    points: ModelPoints,
    elements: Sequence[str] | None,
    layers: Sequence[int],
    spans: str | Iterable[tuple[int, int]] | None,
) -> tuple[Element, ...]:
    """Return the elements and spans that a caller names, in the order of the rows."""
    names = select_elements(elements, points.elements)
    return (
        *(e for name in names for layer in layers if points.has(e := Element(name, layer, layer + 1))),
        *(Element("span", start, stop) for start, stop in select_spans(spans, len(points.layers))),
    )


def _most_tokens(batches: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of tokens of some batches, padding included, or a larger one where it is not known."""
    if isinstance(batches, list | tuple):
        ids = [batch.get("input_ids") for batch in batches if isinstance(batch, Mapping)]
        tensors = [tensor for tensor in ids if isinstance(tensor, Tensor)]
        if len(tensors) == len(batches):
            return sum(tensor.numel() for tensor in tensors)
    return getattr(batches, "tokens", None) or sys.maxsize


def _groups(shares: Shares, stream: Iterator[Batch], done: int, tokens: int) -> Iterator[list[Batch]]:
    """Yield the batches of this process in groups that run together. Batches that a resumed run has done stay alone."""
    if not shares.are_split:
        yield from ([batch] for batch in itertools.islice(stream, done))
    yield from grouped(stream, tokens)
