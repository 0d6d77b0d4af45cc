"""Linear probes: how well a least-squares classifier reads labels of tokens from every state of a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from fastprobe.data.checks import check_repeatable
from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError
from fastprobe.models.calling import arguments_of, body_of, evaluating
from fastprobe.models.digest import check_same_run
from fastprobe.models.inputs import ModelBatches
from fastprobe.models.resolve import resolve
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order, wanted_of
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.plan import OrderPlan
from fastprobe.probes.classifiers import StateClassifiers, solve
from fastprobe.probes.legend import COLUMNS
from fastprobe.probes.passes import StateRows, SumPass, count_accuracies
from fastprobe.probes.token_labels import OF_IDS, OF_TEXT, TokenLabels
from fastprobe.probes.views import probe_views
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.results.result import Result
from fastprobe.results.views import View
from fastprobe.runtime.deprecation import renamed_arguments
from fastprobe.runtime.distributed import Ranks, together
from fastprobe.runtime.progress import PassProgress


@dataclass(frozen=True, repr=False)
class Probes(Result):
    """Scores of classifiers: one row an order, task and state. State k is the output of k steps of the order."""

    kind: ClassVar[str] = "probe"
    metric: ClassVar[str] = "r2_cv"
    columns = COLUMNS

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the rows."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    @property
    def orders(self) -> list[str]:
        """The orders, the baseline first."""
        return list(dict.fromkeys(row["order"] for row in self.rows))

    def matrix(self, metric: str = "r2_cv", order: str | None = None) -> np.ndarray:
        """Return one metric of an order as ``(tasks, states)``; ``nan`` for rows without a number.

        Args:
            metric: the column.
            order: text of the order; the baseline by default.

        Raises:
            InputError: the order was not run.
        """
        order = self.orders[0] if order is None else order
        rows = [row for row in self.rows if row["order"] == order]
        if not rows:
            raise InputError(f"order: {order!r} was not run; the orders of this result are {'; '.join(self.orders)}")
        matrix = np.full((len(self.tasks), 1 + max(row["state"] for row in rows)), np.nan)
        for row in rows:
            if row.get(metric) is not None:
                matrix[self.tasks.index(row["task"]), row["state"]] = row[metric]
        return matrix

    def expected_state(self, order: str | None = None) -> dict[str, float | None]:
        """Return for each task the expected state at which it is learnt: the centre of gravity of its gains in r2_cv.

            sum_k k (S(k) - S(k - 1)) / S(last),  S(k) the best r2_cv up to state k,  S(-1) = 0

        It is 0 if no state has a higher r2_cv than state 0, and ``None`` if no r2_cv is positive. Unlike Tenney et al.
        (2019) it includes the gain of state 0.

        Args:
            order: text of the order; the baseline by default.
        """
        best = np.maximum.accumulate(np.nan_to_num(self.matrix("r2_cv", order)).clip(min=0), axis=1)
        gains = np.diff(best, axis=1, prepend=0)
        centres = gains @ np.arange(best.shape[1])
        return {
            task: float(centre / total) if total > 0 else None
            for task, centre, total in zip(self.tasks, centres, best[:, -1], strict=True)
        }

    def views(self, metric: str) -> list[View]:
        """Return one line a task over states; orders other than the baseline are dashed."""
        self.rows_with(metric)  # raises if there are none
        values, errors = (
            {order: self.matrix(column, order) for order in self.orders} for column in (metric, f"{metric}_se")
        )
        return probe_views(metric, self.tasks, values, errors)


@renamed_arguments(which="orders", fit="method")
@together()
@plain_numbers
def probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    tasks: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    orders: Iterable[Order | Sequence[int]] = (),
    folds: int = 5,
    method: LeastSquares | None = None,
    score_sequences: int | str = 64,
    stack: str | None = None,
    memory: int | None = None,
    backend: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Probes:
    """Fit least-squares classifiers from every state of a model to labels of its tokens.

    Targets are one-hot, and the predicted class is the largest prediction, as in scikit-learn's ``RidgeClassifier``.
    ``r2`` and ``r2_cv`` (sequence s is in fold ``s mod folds``) are scores of the one-hot targets over all tokens. They
    follow from sums: neither tokens nor one-hot rows are kept. ``accuracy`` and ``accuracy_cv`` need the tokens and
    come from a sample of sequences. ``majority``, the share of the largest class, is the accuracy of a constant
    prediction.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``, and with your own labels,
            integers of that shape, below 0 for tokens without a label; perhaps ``token_mask``, the tokens that count;
            read twice.
        tasks: ``token``, ``previous``, ``next``, ``position``, ``word_piece``, ``sentence`` (see
            :class:`~fastprobe.probes.token_labels.TokenLabels`), and keys of the batches that hold labels. By default
            all that need no labels, without the last two if there is no tokenizer.
        tokenizer: of the ids.
        orders: orders to probe besides the baseline. Their common prefixes run once.
        folds: of the held-out scores; 0 for none.
        method: ridge penalty and rank threshold.
        score_sequences: number of sequences for the accuracies; ``"all"``, or 0 for none.
        stack: path of the stack of layers, or a part of it, like ``"encoder"``; the longest by default.
        memory: bytes that states may take at one time; a quarter of the free memory by default.
        backend: implementation of the sums.
        seed: of the hash that selects the sequences for the accuracies.
        progress: show a progress bar on standard error.

    Raises:
        InputError: an unusable task, order or size, or batches that can be read only once.
        UnsupportedModelError: the layers of the model cannot be found, or do not give its output one after another.

    Example:
        >>> probes = probe(model, batches, tokenizer=tokenizer, orders=[[0, 2, 1, 3]])  # doctest: +SKIP
        >>> probes.expected_state(), probes.expected_state("0,2,1,3")  # doctest: +SKIP
    """
    points, ranks = resolve(model, stack), Ranks.here()
    model = points.part_of(model)
    depth = len(points.layers)
    wanted = wanted_of(orders, depth)
    check_repeatable(batches, "a probe reads them twice")
    if folds < 0:
        raise InputError(f"folds: must be 0 or more, got {folds}")
    chosen = _select_tasks(tasks, tokenizer)
    if taken := sorted({*chosen} & {*arguments_of(body_of(model))[0], "input_ids", "attention_mask"} - {"labels"}):
        raise InputError(
            f"tasks: {taken[0]!r} is an argument of {type(model).__name__}, which would not get it; give the labels "
            "another key"
        )
    asked = {"tasks": chosen, "orders": [*map(str, wanted)], "folds": folds, "method": method}
    check_same_run(model, points, ranks, **asked, score_sequences=score_sequences, seed=seed)
    batches = ModelBatches(model, points, batches, labels=chosen)
    sample = SequenceSample.of(score_sequences, seed)
    method, labels = method or LeastSquares(), TokenLabels(chosen, batches, tokenizer)
    ranks.agree("labels", getattr(batches.source, "classes", {}), "use integers, or batches that are not split")
    prefixes = list(dict.fromkeys(order.steps[:k] for order in wanted for k in range(1, len(order) + 1)))
    edits = list(dict.fromkeys(step for order in wanted for step in order.edits))
    states = StateRows(model, points, labels, OrderPlan.of(prefixes), edits, memory)
    first_pass = SumPass(states, sample, folds, backend)
    with PassProgress(progress and ranks.is_first) as bars, evaluating(model), torch.no_grad(), FastLinear() as fast:
        sums = first_pass.run(batches, fast, bars)
        bars.begin("classifiers", len(sums.moments), "states")
        with fast.suspended():
            columns, classifiers = solve(sums, method, bars)
        count_accuracies(states, sample, first_pass.largest_batch, classifiers, fast, bars)
    for state, task, accuracies in itertools.chain(*ranks.gather([*_accuracies(classifiers)])):
        columns[state][task] |= accuracies
    plan = OrderPlan.of(wanted)
    config = {
        "layers": depth,
        "tasks": chosen,
        "sequences": first_pass.sequences,
        "scored_sequences": len(sample),
        "tokens": max(row["tokens"] for row in columns[0].values()),
        "columns": sums.width,
        "folds": folds,
        "alpha": method.alpha,
        "rcond": method.rcond,
        "seed": seed,
        "runner": states.runner,
        **first_pass.counted,
        **points.description(),
        "layer_forwards": plan.applications,
        "layer_forwards_naive": plan.naive_applications,
        "moment_bytes": sums.nbytes,
    }
    state_of = {prefix: state for state, prefix in enumerate([(), *prefixes])}
    rows = [
        {
            "order": str(order),
            "name": order.name,
            "task": task,
            "state": k,
            "step": str(order.steps[k - 1]) if k else "",
        }
        | columns[state_of[order.steps[:k]]][task]
        for order in wanted
        for task in labels.tasks
        for k in range(len(order) + 1)
    ]
    result = Probes(config, rows)
    config["expected_state"] = {order: result.expected_state(order) for order in result.orders}
    return result


def _accuracies(classifiers: Sequence[Sequence[StateClassifiers]]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield state, task and the accuracies of each classifier of this process."""
    for state, of_state in enumerate(classifiers):
        for one in of_state:
            for task in one.tasks:
                yield state, task, {name: one.accuracy(task, name) for name in ("accuracy", "accuracy_cv")}


def _select_tasks(tasks: str | Sequence[str] | None, tokenizer: Any) -> list[str]:
    """Return the requested tasks; by default all that need no labels and that the tokenizer allows."""
    if tasks is None:
        tasks = [*OF_IDS, *OF_TEXT * (tokenizer is not None)]
    chosen = [tasks] if isinstance(tasks, str) else list(tasks)
    if not chosen:
        raise InputError(
            f"tasks: there is none; name some of {', '.join((*OF_IDS, *OF_TEXT))}, or a key of the batches"
        )
    return chosen
