"""Elements of a model removed or replaced, and what that does to its output.

A layer with an element replaced is one more step that an order can have, so an ablation is a list of orders: what
comes before the first edited layer is run once for all of them, and effects are those of :func:`commutativity`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fastprobe.ablations.element_outputs import mean_outputs, sampled_outputs
from fastprobe.ablations.picture import picture
from fastprobe.ablations.replacements import AffineMaps, Constant, Resampled, same
from fastprobe.data.checks import check_repeatable, checked_mask
from fastprobe.errors import InputError
from fastprobe.models.edits import EDITABLE, Replaced, Reweighted, initial_weights
from fastprobe.models.identities import check_points
from fastprobe.models.points import ELEMENTS, Element, Point, parse_range, range_text, select_elements, select_layers
from fastprobe.models.record import device_of, to_device
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.orders import Order, Step
from fastprobe.regression.least_squares import LeastSquares, Solution
from fastprobe.regression.ridge import best_ridge
from fastprobe.reordering.commutativity import commutativity
from fastprobe.reordering.effects import Metric
from fastprobe.reordering.rows import CHANGES
from fastprobe.results.result import Result
from fastprobe.runtime.journal import Journal
from fastprobe.scan.linearity import linearity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("zero", "mean", "resample", "random_init", "linear", "identity")
SWEEPS = ("each", "forward", "backward")
_EDITABLE = ", ".join(EDITABLE)


@dataclass(frozen=True, repr=False)
class Ablations(Result):
    """What every ablation does to the output: the model itself, then one row an element, mode and set of layers.

    ``maps`` are those of ``mode="linear"`` by element (``"mlp.3"``), fitted on all tokens; they are not saved.
    """

    maps: Mapping[str, Solution] = field(default_factory=dict, compare=False, repr=False)

    kind: ClassVar[str] = "ablation"
    metric: ClassVar[str] = "relative_l2"

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What was ablated and how: pairs of element and mode, in the order of the rows."""
        return list(dict.fromkeys((row["element"], row["mode"]) for row in self.rows[1:]))

    def matrix(self, metric: str = "relative_l2") -> np.ndarray:
        """One metric as ``(lines, sets of layers)``, sets in the order of ``config["sets"]``; ``nan`` without a number.

        With ``"each"``, ``"forward"`` and ``"backward"`` set k is layer k, the layers to k, and those from k on.
        """
        lines, sets = self.lines, self.config["sets"]
        matrix = np.full((len(lines), len(sets)), np.nan)
        for row in self.rows[1:]:
            if row.get(metric) is not None:
                matrix[lines.index((row["element"], row["mode"])), sets.index(row["layers"])] = row[metric]
        return matrix

    def plot(self, path: str | Path | None = None, metric: str = "relative_l2") -> Figure:
        """One line an element and mode over sets of layers.

        Args:
            path: where to save the picture, if anywhere.
            metric: the column to draw.
        """
        self.rows_with(metric)  # raises if there are none
        sets, sweep = self.config["sets"], self.config["sweep"]
        return picture(self.title, metric, self.lines, self.matrix(metric), sets, sweep, path)

    @classmethod
    def restored(cls, config: dict[str, Any], rows: list[dict[str, Any]]) -> Self:
        """Return the result that a file holds. Version 0.1.0 wrote the layers as text only, no ``edited_layers``."""

        def layers_of(text: str) -> list[int]:
            return [layer for part in text.split(",") if part for layer in range(*parse_range(part))]

        return cls(
            config,
            [row if "edited_layers" in row else row | {"edited_layers": layers_of(row["layers"])} for row in rows],
        )


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
    memory: int | None = None,
    progress: bool = True,
    journal: Journal | None = None,
) -> Ablations:
    """Remove or replace elements of a model and measure the damage, with the columns of :func:`commutativity`.

    ``mlp`` and ``attn`` are the bare parts: residual and norm stay. ``ffn`` and ``attention`` include them, and
    ``layer`` is all. What an element's output becomes is made from the unedited model, also where several layers are
    edited, and is, by mode:

    * ``zero``: 0.
    * ``mean``: its mean over tokens.
    * ``resample``: its output at a token of another sequence, out of 32 that a seed picks; for every token one.
    * ``random_init``: what the element makes of its input with its matrices as before training (truncated normal,
      0.02, which has a standard deviation of 0.0176; biases zero) and its norms as they are. This is what the script
      published with Zhao et al. (2021) does to what it calls removed.
    * ``linear``: the affine map x -> y of least squares. Sequence s is in fold ``s mod folds`` and gets the map fitted
      on the other folds, so no token is predicted by a map that has seen it.
    * ``identity``: x.

    Args:
        model: a Hugging Face encoder or decoder.
        batches: dicts with ``input_ids`` and ``attention_mask``, each ``(batch, length)``; gone through more than once.
        elements: what is ablated, one or several, each by itself: ``layer``, ``attention``, ``ffn``, ``attn``, ``mlp``,
            ``attn_heads``, ``attn_proj``, ``mlp_act``.
        mode: one mode or several.
        layers: ``"each"`` by itself; ``"forward"``, the first, the first two, ...; ``"backward"``, the last, the last
            two, ...; or a set of layers, or several sets.
        folds: of ``linear``; 0 fits one map on all tokens, and uses it on the same.
        alpha: ridge penalty of ``linear``, as scikit-learn's ``Ridge`` has it; chosen by cross-validation by default.
        seed: of ``resample`` and ``random_init``.
        metrics: more columns by name, as for :func:`commutativity`.
        memory: bytes that states may take at one time; a quarter of what is free by default.
        progress: show a progress bar on standard error.
        journal: where finished rows are kept while others run, and what is not run again; fits are made anew.

    Raises:
        InputError: an argument that cannot be used, or batches that can be gone through only once.
        UnsupportedModelError: the points of the model cannot be found, or their identities fail.

    Example:
        >>> damage = ablation(model, batches, elements=["mlp"], mode=["zero", "linear"])  # doctest: +SKIP
        >>> damage.matrix("delta_loss")  # doctest: +SKIP
    """
    points = resolve(model)
    depth = len(points.layers)
    names, modes, sets = _elements(elements, points), _modes(mode), _sets(layers, depth)
    if seed < 0:
        raise InputError(f"seed: must be 0 or more, got {seed}")
    edited = [Element(name, layer, layer + 1) for name in names for layer in sorted({i for s in sets for i in s})]
    widths = _widths(model, points, batches)
    maps: dict[Element, tuple[AffineMaps, Solution]] = {}
    if "linear" in modes:
        maps = _fitted(model, batches, edited, folds, alpha, progress)
    steps: dict[tuple[str, Element], Step] = {}
    for how in modes:
        for element, by in _stand_ins(how, model, points, batches, edited, widths, maps, seed).items():
            key = {"linear": f"linear:{folds}:{alpha}"}.get(how, f"{how}:{seed}")
            step = Reweighted if how == "random_init" else Replaced
            steps[how, element] = step(element.name, element.start, key, by)

    rows: list[dict[str, Any]] = [{"element": "", "layers": "", "mode": "none"}]
    edited_layers: list[list[int]] = [[]]
    orders = []
    for name, how, layer_set in itertools.product(names, modes, sets):
        own = dict(enumerate(range(depth)))
        path: dict[int, Step] = own | {i: steps[how, Element(name, i, i + 1)] for i in layer_set}
        rows.append({"element": name, "layers": range_text(layer_set), "mode": how})
        edited_layers.append(layer_set)
        orders.append(Order(tuple(path.values())))
    effects = commutativity(model, batches, orders, metrics=metrics, memory=memory, progress=progress, journal=journal)
    for row, effect, layer_set in zip(rows, effects.rows, edited_layers, strict=True):
        row |= {column: value for column, value in effect.items() if column not in ("order", "name", *CHANGES)}
        row["edited_layers"] = layer_set
    config = effects.config | {
        "elements": names,
        "modes": modes,
        "sweep": layers if isinstance(layers, str) else "sets",
        "sets": [range_text(layer_set) for layer_set in sets],
        "folds": folds,
        "alpha": {str(element): solution.alpha for element, (_, solution) in maps.items()},
        "seed": seed,
    }
    return Ablations(config, rows, {str(element): solution for element, (_, solution) in maps.items()})


def _elements(elements: str | Sequence[str], points: ModelPoints) -> list[str]:
    names = [elements] if isinstance(elements, str) else elements
    for name in names:
        if name in ELEMENTS and name not in EDITABLE:
            raise InputError(f"elements: {name!r} has no output of its own to replace; those that have are {_EDITABLE}")
    if not names:
        raise InputError(f"elements: there is nothing to ablate; name some of {_EDITABLE}")
    return select_elements(names, [name for name in points.elements if name in EDITABLE])


def _modes(mode: str | Sequence[str]) -> list[str]:
    modes = [mode] if isinstance(mode, str) else list(dict.fromkeys(mode))
    for name in modes:
        if name not in MODES:
            raise InputError(f"mode: {name!r} is not one of {', '.join(MODES)}")
    if not modes:
        raise InputError(f"mode: there is none; name some of {', '.join(MODES)}")
    return modes


def _sets(layers: str | Iterable[int] | Iterable[Iterable[int]], depth: int) -> list[list[int]]:
    """The sets of layers that are edited together, each in order."""
    if layers == "each":
        return [[layer] for layer in range(depth)]
    if layers == "forward":
        return [list(range(layer + 1)) for layer in range(depth)]
    if layers == "backward":
        return [list(range(layer, depth)) for layer in range(depth)]
    if isinstance(layers, str):
        raise InputError(f"layers: {layers!r} is not one of {', '.join(SWEEPS)}, nor a set of layers")
    asked = list(layers)
    sets = [asked] if all(isinstance(layer, int) for layer in asked) else asked
    chosen = [select_layers(one, depth) for one in sets]  # type: ignore[arg-type]
    if not all(chosen):
        raise InputError("layers: a set of layers is empty; name at least one layer")
    return [list(one) for one in dict.fromkeys(map(tuple, chosen))]


def _widths(model: nn.Module, points: ModelPoints, batches: Iterable[Mapping[str, Any]]) -> Mapping[Point, int]:
    """The width of every point, seen with its identities on the first sequences."""
    check_repeatable(batches, "an ablation goes through them more than once")
    for batch in batches:
        checked_mask(batch, 0)
        few = {key: value[:2] if isinstance(value, Tensor) else value for key, value in batch.items()}
        checked = check_points(model, points, to_device(few, device_of(model)))
        checked.require(type(model).__name__)
        return checked.widths
    raise InputError("batches: there are none")


def _stand_ins(
    mode: str,
    model: nn.Module,
    points: ModelPoints,
    batches: Iterable[Mapping[str, Any]],
    elements: Sequence[Element],
    widths: Mapping[Point, int],
    maps: Mapping[Element, tuple[AffineMaps, Solution]],
    seed: int,
) -> dict[Element, Any]:
    """What each element is replaced by: a function, or other weights for ``random_init``."""
    device = device_of(model)
    if mode == "zero":
        return {e: Constant(torch.zeros(widths[points.canonical(e.y)], device=device)) for e in elements}
    if mode == "mean":
        return {e: Constant(mean) for e, mean in mean_outputs(model, points, batches, elements).items()}
    if mode == "resample":
        outputs, sequence = sampled_outputs(model, points, batches, elements, seed=seed)
        return {e: Resampled(rows, sequence, seed) for e, rows in outputs.items()}
    if mode == "linear":
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        return {e: affine.to(dtype) for e, (affine, _) in maps.items()}
    if mode == "random_init":
        return {e: initial_weights(points.layers[e.start], points.layout, e.name, (seed, e.start)) for e in elements}
    for e in elements:
        x, y = widths[points.canonical(e.x)], widths[points.canonical(e.y)]
        if x != y:
            raise InputError(f"mode: identity needs an output as wide as its input; {e} goes from {x} to {y}")
    return dict.fromkeys(elements, same)


def _fitted(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    elements: Sequence[Element],
    folds: int,
    alpha: float | None,
    progress: bool,
) -> dict[Element, tuple[AffineMaps, Solution]]:
    """The least-squares map of every element: those that an ablation uses, and the one of all tokens."""
    names, layers = ({e.name for e in elements}, {e.start for e in elements})
    scan = linearity(
        model,
        batches,
        elements=sorted(names),
        layers=sorted(layers),
        folds=folds,
        score_sequences=0,
        cka="none",
        fit=LeastSquares(alpha=alpha or 0.0),
        progress=progress,
    )
    found = {}
    for name, start, stop, x, y, _ in scan.config["fits"]:
        assert scan.moments is not None
        source, fit = best_ridge(scan.moments, x, y, alpha)
        found[Element(name, start, stop)] = AffineMaps.of(source, fit), source.solution(fit)
    return found
