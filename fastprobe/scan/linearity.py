"""How linear every element of a model is: one pass over the tokens, and a second over a sample for the cosines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from fastprobe.data.batches import batch_tokens, grouped
from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError
from fastprobe.models.identities import check_points
from fastprobe.models.points import ELEMENTS, Element, select_elements, select_layers, select_spans
from fastprobe.models.record import device_of
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded.recorder import recorder_for
from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.regression.scores import MARK, moment_columns
from fastprobe.results import figures
from fastprobe.results.result import Result
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.memory import free_bytes, freed_memory_kept, human
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.passes import CosinePass, MomentPass
from fastprobe.scan.plan import ElementFit, ScanPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OBJECTIVES = ("least-squares", "cosine")
CKA = ("auto", "all", "none")


@dataclass(frozen=True, repr=False)
class LinearityScan(Result):
    """Scores of every element: one row an element and layer, then one a span.

    ``config`` says what was scanned and how, with the seconds of each part of the run; ``moments`` are the sums behind
    the rows, from which other scores follow (``None`` when the scan was loaded: see :meth:`Moments.load`).
    """

    moments: Moments | None = field(default=None, compare=False, repr=False)

    kind: ClassVar[str] = "linearity"
    metric: ClassVar[str] = "nonlinearity"

    def matrix(self, metric: str = "nonlinearity", *, spans: bool = False) -> np.ndarray:
        """One metric as a matrix; ``nan`` where there is no row or no number.

        Returns:
            ``(elements, layers)``, elements in the order of :attr:`elements`; with ``spans`` ``(depth, depth)``, where
            ``[i, j]`` is the span from the input of layer i to the output of layer j.
        """
        rows = [row for row in self.rows if (row["element"] == "span") == spans]
        depth = max((row["stop"] for row in rows), default=0)
        names = list(range(depth)) if spans else self.elements
        matrix = np.full((len(names), depth), np.nan)
        for row in rows:
            if row.get(metric) is not None:
                at = row["start"] if spans else names.index(row["element"])
                matrix[at, row["stop"] - 1] = row[metric]
        return matrix

    @property
    def elements(self) -> list[str]:
        """The elements that were scored, without spans."""
        have = {row["element"] for row in self.rows}
        return [name for name in ELEMENTS if name in have]

    def plot(self, path: str | Path | None = None, metric: str = "nonlinearity") -> Figure:
        """A profile over layers with one line an element, and a heatmap of the spans where there are any.

        Args:
            path: where to save the picture, if anywhere.
            metric: the column to draw.
        """
        return figures.linearity(self, metric, path)

    def save(self, folder: str | Path, *, moments: bool = True) -> None:
        """Write ``scores.json``, ``scores.csv`` and, where they are at hand and wanted, ``moments.safetensors``."""
        super().save(folder)
        if moments and self.moments is not None:
            self.moments.save(Path(folder) / "moments.safetensors", self.config)


@freed_memory_kept()
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
    fit: LeastSquares | None = None,
    cka: str = "auto",
    backend: str = "auto",
    exact: bool = False,
    seed: int = 0,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> LinearityScan:
    """Score every element of a model by how well an affine map, token by token, stands in for it.

    Each element x -> y is fitted by least squares over all tokens, from sums gathered in one pass. The honest score is
    ``r2_cv``: sequence s is in fold ``s mod folds``, and each fold is predicted by the fit on the others. The cosine
    columns need the tokens themselves and come from a second pass over ``score_sequences`` of the sequences, chosen by
    a hash of their tokens. Padding never enters a number.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``; gone through once.
        elements: names from ``fastprobe.models.points.ELEMENTS``; all the model has by default.
        layers: 0-based layers to score; all by default.
        spans: ``"all"``, ``"2-5,0-3"`` or half-open pairs: score also from the input of one layer to the output of
            another.
        folds: of ``r2_cv``; 0 for none. The sums are kept fold by fold, so memory grows with it.
        score_sequences: how many sequences the cosine columns come from; ``"all"``, or 0 for no such columns. With all
            of them, rows whose ``error_bound`` is over 1e-3 are refined from their residuals in the same pass.
        objective: ``"cosine"`` also fits unit-norm targets, for the column ``cosine_objective``.
        fit: ridge and rank threshold.
        cka: which rows get a ``cka``: ``"auto"`` those whose y is no wider than x (the Gram matrix of a wider y costs
            about as much as all other sums of its layer), ``"all"`` or ``"none"``.
        backend: which implementation of the operations; ``"auto"`` takes the fastest that is there.
        exact: for audits: sum, multiply and score in float64 what the model gives, whatever its dtype. On a CPU that is
            torch; on a GPU ``fastprobe._cuda`` does it where it was built, else torch.
        seed: of the hash that picks the sequences for the cosines.
        progress: show a progress bar on standard error.
        checkpoint: where moments are kept while the scan runs, and what it goes on from.

    Raises:
        InputError: an argument that cannot be used, or moments that would not fit in memory.
        UnsupportedModelError: the points of the model cannot be found, or their identities fail.
        NumericalError: an activation is not finite. A checkpoint keeps whole batches before it.

    Example:
        >>> scan = linearity(model, batches, elements=["attention", "ffn"])  # doctest: +SKIP
        >>> scan.top(3, "nonlinearity")  # doctest: +SKIP
    """
    fit = fit or LeastSquares()
    _check_choices(folds, objective, cka)
    sample = SequenceSample.of(score_sequences, seed)
    points = resolve(model)
    device = device_of(model)
    depth = len(points.layers)
    chosen = [
        Element(name, layer, layer + 1)
        for name in select_elements(elements, points.elements)
        for layer in select_layers(layers, depth)
    ]
    chosen += [Element("span", start, stop) for start, stop in select_spans(spans, depth)]
    if not chosen:
        raise InputError("elements: there is nothing to score; name elements, layers or spans")

    stream = iter(batches)
    try:
        first = next(stream)
    except StopIteration:
        raise InputError("batches: there are none") from None
    few = _a_few(first, device)
    checked = check_points(model, points, few)
    checked.require(type(model).__name__)
    recorder, not_flat = recorder_for(model, points, few)
    tokens = 0 if not_flat else batch_tokens(device.type)  # a pass of fewer takes the next batch along

    def plan(elements: Sequence[Element], folds: int) -> ScanPlan:
        return ScanPlan.of(points, checked.widths, elements, folds=folds, objective=objective, cka=cka)

    scan = plan(chosen, folds)
    _check_memory(scan, plan, chosen, folds, device)
    summed = {  # what the sums depend on, and a checkpoint must agree in
        "elements": [str(element) for element in chosen],
        "fits": [[f.element.name, f.element.start, f.element.stop, f.x, f.y, f.unit] for f in scan.fits],
        "folds": folds,
        "objective": objective,
        "cka": cka,
        "exact": exact,
    }
    clock = Clock(device)
    checkpoint = checkpoint or Checkpoint()
    moments, batches_done = checkpoint.resume(summed, Moments.zero(scan.moments, device))
    first_pass = MomentPass(model, points, scan, moments, sample, clock, backend, recorder, exact)
    bar = tqdm(total=getattr(batches, "tokens", None), unit=" tokens", unit_scale=True, disable=not progress)
    with bar, first_pass.recording(), checkpoint.keeping(first_pass, summed):
        stream = itertools.chain([first], stream)
        for batch in itertools.islice(stream, batches_done):
            bar.update(first_pass.skip(batch))
        for together in grouped(stream, tokens):
            bar.update(first_pass.add(together))
            checkpoint.tick()

    dtype = torch.float64 if moments.precision == "float64" else torch.float32
    second_pass = CosinePass(model, points, scan, clock, backend, recorder, tokens)
    with clock("solve"):
        everything = len(sample) == first_pass.sequences
        rows = solve_rows(scan.fits, moments, fit, second_pass, dtype if len(sample) else None, refine=everything)
    if len(sample):
        cosines = second_pass.run(sample, len(first["input_ids"]))
        for f, row in zip(scan.fits, rows, strict=True):
            if refinement := second_pass.refinements.get(f):
                row.update(moment_columns(refinement.source, refinement.result(), f.y))
            row.update({column: cosines[f, column] for (g, column) in cosines if g == f})
    config = summed | {
        "alpha": fit.alpha,
        "rcond": fit.rcond,
        "seed": seed,
        "tokens": moments.tokens,
        "sequences": first_pass.sequences,
        "scored_sequences": len(sample),
        "moment_bytes": scan.moments.nbytes,
        "runner": f"modules of the model ({not_flat})" if not_flat else "encoder",
        "seconds": {part: round(seconds, 3) for part, seconds in clock.seconds.items()},
    }
    return LinearityScan(config, rows, moments)


def solve_rows(
    fits: Sequence[ElementFit],
    moments: Moments,
    method: LeastSquares,
    cosines: CosinePass | None = None,
    dtype: torch.dtype | None = None,
    *,
    refine: bool = False,
) -> list[dict[str, Any]]:
    """The rows of these fits, moment columns filled in; one factorisation a source.

    Args:
        fits: the rows wanted.
        moments: sums of a plan that covers them.
        method: how maps are fitted.
        cosines: takes the fitted maps along for the score pass, if ``dtype`` says in which dtype.
        dtype: of the maps in the score pass; ``None`` for no score pass.
        refine: have the score pass, which sees all tokens, look at the residuals of fits with a large error bound.
    """
    rows: dict[ElementFit, dict[str, Any]] = {}
    for source in Factorisation.each(moments, dict.fromkeys(f.x for f in fits), method):
        for f in (f for f in fits if f.x == source.x):
            solved = source.fit(f.y)
            element = f.element
            name = {
                "element": element.name,
                "layer": None if element.is_span else element.start,
                "start": element.start,
                "stop": element.stop,
            }
            rows[f] = name | moment_columns(source, solved, f.y)
            if cosines is not None and dtype is not None:
                cosines.add_fit(source, solved, f, "cosine", dtype)
                if refine and solved.error_bound > MARK:
                    cosines.refine(source, solved, f)
                if f.unit:
                    cosines.add_fit(source, source.fit(f.unit), f, "cosine_objective", dtype)
    return [rows[f] for f in fits]


def _check_choices(folds: int, objective: str, cka: str) -> None:
    if folds < 0:
        raise InputError(f"folds: must be 0 or more, got {folds}")
    if objective not in OBJECTIVES:
        raise InputError(f"objective: {objective!r} is not one of {', '.join(OBJECTIVES)}")
    if cka not in CKA:
        raise InputError(f"cka: {cka!r} is not one of {', '.join(CKA)}")


def _a_few(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The first two sequences of a batch, on the model's device."""
    if "attention_mask" not in batch or "input_ids" not in batch:
        raise InputError(f"batches: need input_ids and attention_mask, got {', '.join(map(str, batch))}")
    for key in ("input_ids", "attention_mask"):
        if not isinstance(batch[key], torch.Tensor):
            raise InputError(f"batches: {key} must be a (batch, length) tensor, got a {type(batch[key]).__name__}")
    return {k: v[:2].to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _check_memory(
    scan: ScanPlan,
    plan: Callable[[Sequence[Element], int], ScanPlan],
    elements: Sequence[Element],
    folds: int,
    device: torch.device,
) -> None:
    need, free = scan.moments.nbytes, free_bytes(device)
    if free is None or need <= free:
        return
    depth = 1 + max(element.stop for element in elements)
    half = [e for e in elements if e.stop <= max(1, depth // 2)]
    narrow = [e for e in elements if e.name in ("layer", "attention", "ffn")]
    options = {
        "folds=0": plan(elements, 0),
        f"layers 0-{max(1, depth // 2)}": plan(half, folds) if half else None,
        "elements layer, attention, ffn": plan(narrow, folds) if narrow else None,
        "both of folds=0 and these elements": plan(narrow, 0) if narrow else None,
    }
    fits = [f"{name} takes {human(p.moments.nbytes)}" for name, p in options.items() if p and p.moments.nbytes <= free]
    advice = "; ".join(fits) if fits else "fewer layers at a time would do"
    raise InputError(
        f"memory: the moments of this scan take {need:,} bytes ({human(need)}) and {human(free)} are free; {advice}"
    )
