"""Remove or replace elements of a model, and measure the effect on its output.

An edited layer is a step of an order, so an ablation is a list of orders. The layers before the first edited one run
once for all of them, and the effects are those of :func:`commutativity`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from torch import nn

from fastprobe.ablations.legend import COLUMNS
from fastprobe.ablations.linear_maps import fit_linear_maps
from fastprobe.ablations.modes import Unedited
from fastprobe.ablations.selection import select_editable, select_layer_sets, select_modes
from fastprobe.ablations.views import ablation_views
from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask, check_repeatable
from fastprobe.data.shares import Shares
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.digest import check_same_run
from fastprobe.models.edits import Replaced, Reweighted
from fastprobe.models.identities import check_points
from fastprobe.models.inputs import ModelBatches
from fastprobe.models.points import Element, Point, parse_range, range_text
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.orders import Order, Step
from fastprobe.orders.arguments import plain_numbers
from fastprobe.regression.least_squares import Solution
from fastprobe.reordering.commutativity import commutativity
from fastprobe.reordering.effects import Metric
from fastprobe.reordering.rows import CHANGES
from fastprobe.results.result import Result
from fastprobe.results.views import View
from fastprobe.runtime.distributed import Ranks, together
from fastprobe.runtime.journal import Journal


@dataclass(frozen=True, repr=False)
class Ablations(Result):
    """Effects of ablations on the output: the unedited model first, then one row an element, mode and set of layers.

    ``maps`` has the linear map of each element (``"mlp.3"``) for ``mode="linear"``, fitted on all tokens. It is not
    saved.
    """

    maps: Mapping[str, Solution] = field(default_factory=dict, compare=False, repr=False)

    kind: ClassVar[str] = "ablation"
    metric: ClassVar[str] = "relative_l2"
    shown = ("delta_loss",)
    columns = COLUMNS

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Pairs of element and mode, in the order of the rows."""
        return list(dict.fromkeys((row["element"], row["mode"]) for row in self.rows[1:]))

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """Return one metric as ``(lines, sets of layers)``; ``nan`` for rows without a number.

        Sets are in the order of ``config["sets"]``. Set k is layer k with ``"each"``, the layers up to k with
        ``"forward"``, and the layers from k on with ``"backward"``.
        """
        lines, sets = self.lines, self.config["sets"]
        matrix = np.full((len(lines), len(sets)), np.nan)
        for row in self.rows[1:]:
            if row.get(metric) is not None:
                matrix[lines.index((row["element"], row["mode"])), sets.index(row["layers"])] = row[metric]
        return matrix

    def views(self, metric: str) -> list[View]:
        """Return one line an element and mode over sets of layers."""
        self.rows_with(metric)  # raises if there are none
        values, errors = self.matrix(metric), self.matrix(f"{metric}_se")
        return ablation_views(metric, self.lines, values, errors, self.config["sets"], self.config["sweep"])

    @classmethod
    def restored(cls, config: dict[str, Any], rows: list[dict[str, Any]]) -> Self:
        """Return the result that a file holds. Version 0.1.0 wrote the layers as text only, no ``edited_layers``."""

        def layers_of(text: str) -> list[int]:
            return [layer for part in text.split(",") if part for layer in range(*parse_range(part))]

        return cls(
            config,
            [row if "edited_layers" in row else row | {"edited_layers": layers_of(row["layers"])} for row in rows],
        )


@together()
@plain_numbers
def ablation(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    elements: str | Sequence[str] = "mlp",
    mode: str | Sequence[str] = "zero",
    layers: str | Iterable[int] | Iterable[Iterable[int]] = "each",
    folds: int = 5,
    alpha: float | None = None,
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
    stack: str | None = None,
    memory: int | None = None,
    progress: bool = True,
    journal: Journal | None = None,
) -> Ablations:
    """Remove or replace elements of a model and measure the effect, with the columns of :func:`commutativity`.

    ``mlp`` and ``attn`` are the bare parts: skip connection and norm stay. ``ffn`` and ``attention`` include them, and
    ``layer`` is everything. Replacements are made from the unedited model, also if several layers are edited, at the
    tokens that count; they replace the output at all tokens. The mode says what replaces an element's output:

    * ``zero``: 0.
    * ``mean``: its mean over tokens.
    * ``resample``: for each token, the output at a token of another sequence, out of a sample of 32 sequences.
    * ``random_init``: the output of the same element with its matrices as before training (truncated normal, 0.02,
      which has a standard deviation of 0.0176; biases zero) and its norms as they are. The script published with Zhao
      et al. (2021) does this to the elements that it calls removed.
    * ``linear``: the affine least-squares map x -> y. Sequence s is in fold ``s mod folds`` and gets the map fitted on
      the other folds, so no map predicts a token that it was fitted on.
    * ``identity``: x.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, and perhaps ``token_mask``, the tokens that count,
            each ``(batch, length)``; read more than once.
        elements: one or several, each ablated alone: ``layer``, ``attention``, ``ffn``, ``attn``, ``mlp``,
            ``attn_heads``, ``attn_proj``, ``mlp_act``.
        mode: one mode or several.
        layers: ``"each"`` alone; ``"forward"``, the first, the first two, ...; ``"backward"``, the last, the last two,
            ...; or a set of layers, or several sets.
        folds: of ``linear``; 0 fits one map on all tokens, and uses it on the same tokens.
        alpha: ridge penalty of ``linear``, as in scikit-learn's ``Ridge``; chosen by cross-validation by default.
        seed: of ``resample`` and ``random_init``.
        metrics: additional columns by name, as for :func:`commutativity`.
        stack: path of the stack of layers, or a part of it, like ``"encoder"``; the longest by default.
        memory: bytes that states may take at one time; a quarter of the free memory by default.
        progress: show a progress bar on standard error.
        journal: keeps finished rows on disk, and has those of an interrupted run, which do not run again. Linear maps
            are fitted again.

    Raises:
        InputError: an unusable argument, batches that can be read only once, or a model in another order.
        UnsupportedModelError: the points of the model cannot be found, or their identities fail; or an edit does not
            reach what the layer computes (see :mod:`fastprobe.models.edit_checks`).

    Example:
        >>> damage = ablation(model, batches, elements=["mlp"], mode=["zero", "linear"])  # doctest: +SKIP
        >>> damage.matrix("delta_loss")  # doctest: +SKIP
    """
    points = resolve(model, stack)
    model = points.part_of(model)
    depth = len(points.layers)
    names, modes = select_editable(elements, points.elements), select_modes(mode)
    sets = select_layer_sets(layers, depth)
    if seed < 0:
        raise InputError(f"seed: must be 0 or more, got {seed}")
    edited = [Element(name, layer, layer + 1) for name in names for layer in sorted({i for s in sets for i in s})]
    for element in edited:
        if not points.has(element):
            reason = points.layouts[element.start].reason or f"its layer has {points.layouts[element.start].form}"
            raise InputError(f"elements: this model has no {element}: {reason}; name other layers or elements")
    asked = {"elements": names, "mode": modes, "layers": sets, "folds": folds, "alpha": alpha, "seed": seed}
    check_same_run(model, points, Ranks.here(), **asked)
    check_repeatable(batches, "an ablation reads them more than once")
    batches = ModelBatches(model, points, batches)
    widths = _widths(model, points, batches, edited)
    fits = fit_linear_maps(model, batches, edited, folds, alpha, progress) if "linear" in modes else {}
    maps = {element: maps for element, (maps, _) in fits.items()}
    unedited = Unedited(model, points, batches, edited, widths, maps, seed)
    steps = {
        (how, element): _step(element, how, replacement, folds, alpha, seed)
        for how in modes
        for element, replacement in unedited.replacements(how).items()
    }
    edits = list(itertools.product(names, modes, sets))
    orders = [
        _edited_order(depth, {layer: steps[how, Element(name, layer, layer + 1)] for layer in layer_set})
        for name, how, layer_set in edits
    ]
    effects = commutativity(model, batches, orders, metrics=metrics, memory=memory, progress=progress, journal=journal)
    rows = [
        {"element": name, "layers": range_text(layer_set), "mode": how}
        | {column: value for column, value in effect.items() if column not in ("order", "name", *CHANGES)}
        | {"edited_layers": layer_set}
        for (name, how, layer_set), effect in zip([("", "none", []), *edits], effects.rows, strict=True)
    ]
    config = effects.config | {
        "elements": names,
        "modes": modes,
        "sweep": layers if isinstance(layers, str) else "sets",
        "sets": [range_text(layer_set) for layer_set in sets],
        "folds": folds,
        "columns": max((len(solution.coef) for _, solution in fits.values()), default=0),  # of the linear maps
        "alpha": {str(element): solution.alpha for element, (_, solution) in fits.items()},
        "seed": seed,
    }
    return Ablations(config, rows, {str(element): solution for element, (_, solution) in fits.items()})


def _widths(
    model: nn.Module, points: ModelPoints, batches: Iterable[Mapping[str, Any]], edited: Sequence[Element]
) -> Mapping[Point, int]:
    """Check the identities of the points on the first two sequences, and return the width of every point."""
    head = Shares(batches, Ranks.here()).head
    few = select(head, attended_mask(head).any(1).nonzero()[:2, 0])
    checked = check_points(model, points, to_device(few, device_of(model)))
    checked.require(type(model).__name__, points.read_by(edited))
    return checked.widths


def _step(element: Element, mode: str, replacement: Any, folds: int, alpha: float | None, seed: int) -> Step:
    """Return the layer with one element replaced, named by all that the replacement depends on."""
    name = f"linear:{folds}:{alpha}" if mode == "linear" else f"{mode}:{seed}"
    kind = Reweighted if mode == "random_init" else Replaced
    return kind(element.name, element.start, name, replacement)


def _edited_order(depth: int, steps: Mapping[int, Step]) -> Order:
    """Return the baseline's order with some layers replaced by edited ones."""
    return Order(tuple(steps.get(layer, layer) for layer in range(depth)))
