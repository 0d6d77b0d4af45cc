"""What a linear read-out of a model's states knows of its tokens, state by state, in its own and in other orders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from fastprobe import orders
from fastprobe.data.checks import check_repeatable
from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError
from fastprobe.models.record import device_of, evaluating, to_device
from fastprobe.models.resolve import resolve
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order
from fastprobe.orders.plan import OrderPlan
from fastprobe.probes.passes import ProbeSums, StateProbes, StateRows, block
from fastprobe.probes.picture import picture
from fastprobe.probes.token_labels import OF_IDS, OF_TEXT, TokenLabels
from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.regression.linear_fit import fold_of_sequences
from fastprobe.regression.scores import cross_validated, explained
from fastprobe.reordering.checked_stack import check_stack
from fastprobe.results.result import Result
from fastprobe.runtime.memory import free_bytes, freed_memory_kept, human
from fastprobe.runtime.progress import PassProgress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Probes(Result):
    """One row an order, task and state; state k is what k steps of the order make, state 0 what the first one gets."""

    kind: ClassVar[str] = "probe"
    metric: ClassVar[str] = "r2_cv"

    @property
    def tasks(self) -> list[str]:
        """What was read."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    @property
    def orders(self) -> list[str]:
        """The orders that were run, the model's own first."""
        return list(dict.fromkeys(row["order"] for row in self.rows))

    def matrix(self, metric: str = "r2_cv", order: str | None = None) -> np.ndarray:
        """One metric as ``(tasks, states)`` of an order, by default the model's own; ``nan`` where there is no number.

        Raises:
            InputError: the order was not run.
        """
        order = self.orders[0] if order is None else order
        rows = [row for row in self.rows if row["order"] == order]
        if not rows:
            raise InputError(f"order: {order!r} was not run; those that were are {'; '.join(self.orders)}")
        matrix = np.full((len(self.tasks), 1 + max(row["state"] for row in rows)), np.nan)
        for row in rows:
            if row.get(metric) is not None:
                matrix[self.tasks.index(row["task"]), row["state"]] = row[metric]
        return matrix

    def expected_state(self, order: str | None = None) -> dict[str, float | None]:
        """Where each task is learnt: the centre of gravity of its gains in ``r2_cv`` over states.

            sum_k k (S(k) - S(k - 1)) / S(last),  S(k) the best r2_cv up to state k,  S(-1) = 0

        0 is a task that the first state knows as well as any later one. (Tenney et al., 2019, leave out what state 0
        knows.) ``None`` where no state knows anything.
        """
        best = np.maximum.accumulate(np.nan_to_num(self.matrix("r2_cv", order)).clip(min=0), axis=1)
        gains = np.diff(best, axis=1, prepend=0)
        centres = gains @ np.arange(best.shape[1])
        return {
            task: float(centre / total) if total > 0 else None
            for task, centre, total in zip(self.tasks, centres, best[:, -1], strict=True)
        }

    def plot(self, path: str | Path | None = None, metric: str = "r2_cv") -> Figure:
        """A line a task over states; other orders dashed.

        Args:
            path: where to save the picture, if anywhere.
            metric: the column to draw.
        """
        self.rows_with(metric)  # raises if there are none
        matrices = {order: self.matrix(metric, order) for order in self.orders}
        return picture(self.title, metric, self.tasks, matrices, path)


@freed_memory_kept()
def probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    tasks: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    which: Iterable[Order | Sequence[int]] = (),
    folds: int = 5,
    fit: LeastSquares | None = None,
    score_sequences: int | str = 64,
    memory: int | None = None,
    backend: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Probes:
    """Fit least-squares classifiers from every state of a model to labels of its tokens.

    Targets are one-hot, and a token's class is the largest prediction, as in scikit-learn's ``RidgeClassifier``.
    ``r2`` and ``r2_cv`` (sequence s is in fold ``s mod folds``) are of the one-hot targets, over all tokens, and come
    from sums: neither tokens nor one-hot rows are kept. ``accuracy`` and ``accuracy_cv`` need a look at the tokens and
    come from a sample of sequences; ``majority``, the share of the largest class, is what knowing nothing scores.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``, and with labels of your own,
            integers of that shape, below 0 where a token has none; gone through twice.
        tasks: ``token``, ``previous``, ``next``, ``position``, ``word_piece``, ``sentence`` (see
            :class:`~fastprobe.probes.token_labels.TokenLabels`), and keys of the batches that hold labels. By default
            all that need no labels, without the last two where there is no tokenizer.
        tokenizer: what the ids are of.
        which: orders to probe besides the model's own; what they have in common is run once.
        folds: of the held-out scores; 0 for none.
        fit: ridge and rank threshold.
        score_sequences: how many sequences the accuracies come from; ``"all"``, or 0 for none.
        memory: bytes that states may take at one time; a quarter of what is free by default.
        backend: which implementation adds rows.
        seed: of the hash that picks the sequences for the accuracies.
        progress: show a progress bar on standard error.

    Raises:
        InputError: a task, order or size that cannot be used, or batches that can be gone through only once.
        UnsupportedModelError: the layers of the model cannot be found, or do not compose to the model.

    Example:
        >>> own = probe(model, batches, tokenizer=tokenizer, which=[[0, 2, 1, 3]])  # doctest: +SKIP
        >>> own.expected_state(), own.expected_state("0,2,1,3")  # doctest: +SKIP
    """
    points = resolve(model)
    depth = len(points.layers)
    wanted = orders.wanted_of(which, depth)
    check_repeatable(batches, "a probe goes through them twice")
    if folds < 0:
        raise InputError(f"folds: must be 0 or more, got {folds}")
    if tasks is None:
        tasks = [*OF_IDS, *OF_TEXT * (tokenizer is not None)]
    chosen = [tasks] if isinstance(tasks, str) else list(tasks)
    if not chosen:
        raise InputError(
            f"tasks: there is none; name some of {', '.join((*OF_IDS, *OF_TEXT))}, or a key of the batches"
        )
    sample = SequenceSample.of(score_sequences, seed)
    fit, labels = fit or LeastSquares(), TokenLabels(chosen, batches, tokenizer)
    prefixes = list(dict.fromkeys(order.steps[:k] for order in wanted for k in range(1, len(order) + 1)))
    states = StateRows(model, points, labels, OrderPlan.of(prefixes), memory)
    sums: ProbeSums | None = None
    sequences, largest, runner = 0, 0, "none"
    with PassProgress(progress) as passes, evaluating(model), torch.no_grad(), FastLinear() as fast:
        passes.begin("sums", getattr(batches, "tokens", None), "tokens")
        for batch in batches:
            fold = fold_of_sequences(sequences, batch["input_ids"].shape[:1], max(folds, 1), torch.device("cpu"))
            if not sequences:
                states.make_stack, runner = check_stack(
                    model,
                    points,
                    to_device(states.inputs(batch), device_of(model)),
                    edited=any(order.is_edited for order in wanted),
                )
            for state, rows in states.of(batch, fold):
                with fast.suspended():
                    sums = sums or _opened(labels, rows.shape[1], 1 + len(prefixes), folds, rows.device)
                    sums.add(state, rows, states.classes, states.fold, backend)
            sample.add(batch, fold)
            sequences, largest = sequences + len(fold), max(largest, len(fold))
            passes.ran(int(batch["attention_mask"].sum()))
        if sums is None:
            raise InputError("batches: there are none")
        passes.begin("classifiers", len(sums.moments), "states")
        with fast.suspended():
            found, probes = _solved(sums, fit, passes)
        if len(sample):
            passes.begin("accuracy", len(sample), "sequences")
        for batch, fold in sample.batches(largest):
            for state, rows in states.of(batch, fold):
                with fast.suspended():
                    for one in probes[state]:
                        one.look(rows, states.classes, states.fold)
            passes.ran(len(fold))
    for state, of_state in enumerate(probes):
        for one in of_state:
            for task in one.tasks:
                found[state][task] |= {name: one.accuracy(task, name) for name in ("accuracy", "accuracy_cv")}
    plan = OrderPlan.of(wanted)
    config = {
        "layers": depth,
        "tasks": chosen,
        "sequences": sequences,
        "scored_sequences": len(sample),
        "tokens": max(row["tokens"] for row in found[0].values()),
        "folds": folds,
        "alpha": fit.alpha,
        "rcond": fit.rcond,
        "seed": seed,
        "runner": runner,
        "layer_forwards": plan.applications,
        "layer_forwards_naive": plan.naive_applications,
        "moment_bytes": sums.nbytes,
    }
    number = {(): 0} | {prefix: k for k, prefix in enumerate(prefixes, 1)}
    rows_of = [
        {
            "order": str(order),
            "name": order.name,
            "task": task,
            "state": k,
            "step": str(order.steps[k - 1]) if k else "",
        }
        | found[number[order.steps[:k]]][task]
        for order in wanted
        for task in labels.tasks
        for k in range(len(order) + 1)
    ]
    result = Probes(config, rows_of)
    config["expected_state"] = {order: result.expected_state(order) for order in result.orders}
    return result


def _opened(labels: TokenLabels, width: int, states: int, folds: int, device: torch.device) -> ProbeSums:
    """Sums of nothing, where there is room for them."""
    sums = ProbeSums(labels, width, states, folds, device)
    free = free_bytes(device)
    if free is not None and sums.nbytes > free:
        raise InputError(
            f"memory: the moments of {states} states take {human(sums.nbytes)} and {human(free)} are "
            "free; folds=0, fewer tasks or fewer orders would do"
        )
    return sums.open()


def _solved(
    sums: ProbeSums, method: LeastSquares, passes: PassProgress
) -> tuple[list[dict[str, dict[str, Any]]], list[list[StateProbes]]]:
    """For every state: the columns of each task that sums give, and the classifiers."""
    found: list[dict[str, dict[str, Any]]] = []
    probes: list[list[StateProbes]] = []
    for state, of_state in enumerate(sums.moments):
        found.append({})
        probes.append([])
        for group, moments in zip(sums.groups, of_state, strict=True):
            source = Factorisation(moments, block(state), method)
            fits = {task: source.fit(task) for task in group}
            dtype = torch.float64 if moments.dtype == "float64" else torch.float32
            probes[-1].append(StateProbes(source, fits, dtype))
            for task, fitted in fits.items():
                counts = moments.sum(task).sum(0)
                r2_cv, se = cross_validated(fitted.fold_rss, fitted.fold_tss)
                found[-1][task] = {
                    "classes": int((counts > 0).sum()),
                    "r2": explained(fitted.rss, fitted.tss),
                    "r2_cv": r2_cv,
                    "r2_cv_se": se,
                    "majority": float(counts.max() / counts.sum()),
                    "tokens": moments.tokens,
                }
        passes.ran(1)
    return found, probes
