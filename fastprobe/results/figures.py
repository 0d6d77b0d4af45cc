"""Every picture. Figures are made without pyplot, so that no window or global state is involved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprobe.errors import InputError
from fastprobe.results.result import BY_DEPTH
from fastprobe.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# One hue for what is alike: whole parts, their sums before a norm, attention, FFN. (Okabe and Ito, 2008.)
STYLES = {
    "layer": ("#000000", "-", "o"),
    "attention": ("#0072B2", "-", "s"),
    "ffn": ("#D55E00", "-", "^"),
    "attention_sum": ("#0072B2", "--", "s"),
    "ffn_sum": ("#D55E00", "--", "^"),
    "attn": ("#56B4E9", "-", "D"),
    "attn_heads": ("#56B4E9", "--", "D"),
    "attn_proj": ("#999999", ":", "x"),
    "mlp": ("#E69F00", "-", "v"),
    "mlp_act": ("#E69F00", "--", "v"),
}

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Lines of one hue told apart."""

NAMES = {"nonlinearity": "non-linearity (1 − r2_cv)"}
MOST_LINES = 40
"""Orders that a picture names."""


def linearity(scan: Any, metric: str, path: str | Path | None) -> Figure:
    """A profile over layers with one line an element, and a heatmap of the spans where there are any.

    Raises:
        InputError: no row of the scan has the metric.
    """
    from matplotlib.figure import Figure

    scan.top(1, metric)  # says which metrics there are if this one is not among them
    has_spans = any(row["element"] == "span" for row in scan.rows)
    panels = int(bool(scan.elements)) + int(has_spans)
    figure = Figure(figsize=(8.5 if panels == 1 else 14, 4.8), layout="constrained", dpi=130)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    if scan.elements:
        _profile(axes.pop(0), scan, metric)
    if has_spans:
        _spans(axes.pop(0), scan, metric)
    _title(figure, scan.config)
    return _saved(figure, path)


def order_effects(effects: Any, metric: str, path: str | Path | None) -> Figure:
    """A heatmap of swaps, a curve of permutations over the layers they keep in place, or a dot an order.

    Raises:
        InputError: no row has the metric.
    """
    if metric.endswith(BY_DEPTH):
        return _profiles(effects, metric.removesuffix(BY_DEPTH), path)
    rows = effects.top(len(effects.rows), metric)
    rows = [row for row in rows if row["name"] != "identity"]
    if np.triu(~np.isnan(effects.matrix(metric)), 1).sum() == len(rows) > 0:
        return pairs(effects, metric, "swapped with layer", path)
    figure, axes = _one_panel(effects.config)
    kept = [_kept(row["order"], effects.config["layers"]) for row in rows]
    if None not in kept and len(set(kept)) > 1:
        _curve(axes, np.array(kept), np.array([row[metric] for row in rows]), metric)
    else:
        _dots(axes, rows[::-1], metric)
    return _saved(figure, path)


def _profiles(effects: Any, metric: str, path: str | Path | None) -> Figure:
    """A heatmap of orders and depths, the orders that end furthest from the model's own on top."""
    figure, axes = _one_panel(effects.config)
    matrix = effects.profile(metric)
    last = np.array([row["relative_l2"] for row in effects.rows], dtype=float)
    chosen = [at for at in np.argsort(-last) if effects.rows[at]["name"] != "identity"][:MOST_LINES]
    image = axes.imshow(
        matrix[chosen], cmap="viridis", aspect="auto", extent=(0.5, matrix.shape[1] + 0.5, len(chosen) - 0.5, -0.5)
    )
    axes.set_yticks(
        range(len(chosen)), [effects.rows[at]["name"] or effects.rows[at]["order"] for at in chosen], fontsize=8
    )
    axes.set_xlabel("layers that have run")
    _whole_numbers(axes)
    figure.colorbar(image, ax=axes, label=NAMES.get(metric, metric))
    return _saved(figure, path)


def losses(result: Any, metric: str, path: str | Path | None) -> Figure:
    """A loss over the steps of a training, and the unigram loss it is to be read against.

    Raises:
        InputError: no row has the metric.
    """
    rows = [row for row in result.rows if row in result.top(len(result.rows), metric)]
    figure, axes = _one_panel(result.config)
    axes.plot([row["step"] for row in rows], [row[metric] for row in rows], "-o", color="#0072B2", markersize=4)
    axes.axhline(result.config["unigram_loss"], linestyle="--", color="#D55E00", label="unigram")
    axes.set_xlabel("step")
    axes.set_ylabel(NAMES.get(metric, metric))
    axes.legend(frameon=False)
    _open(axes)
    return _saved(figure, path)


def variant_losses(result: Any, metric: str, path: str | Path | None) -> Figure:
    """A dot a variant that was trained to its end, and the unigram loss that it is to be read against.

    Raises:
        InputError: no row has the metric.
    """
    rows = [row for row in result.rows if row in result.top(len(result.rows), metric)][::-1]
    figure, axes = _one_panel(result.config)
    errors = [2 * (row.get(f"{metric}_se") or 0.0) for row in rows]
    axes.errorbar([row[metric] for row in rows], range(len(rows)), xerr=errors, fmt="o", color="#0072B2", markersize=5)
    axes.axvline(result.unigram, linestyle="--", color="#D55E00", label="unigram")
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_xlabel(NAMES.get(metric, metric))
    _open(axes)
    _legend_beside(axes)
    return _saved(figure, path)


def pairs(result: Any, metric: str, with_whom: str, path: str | Path | None) -> Figure:
    """A heatmap of pairs of layers.

    Raises:
        InputError: no row has the metric.
    """
    result.top(1, metric)
    figure, axes = _one_panel(result.config)
    _heatmap(axes, result.matrix(metric), NAMES.get(metric, metric))
    axes.set_xlabel("layer")
    axes.set_ylabel(with_whom)
    return _saved(figure, path)


def ablations(result: Any, metric: str, path: str | Path | None) -> Figure:
    """A line an element and mode over the sets of layers that were edited.

    Raises:
        InputError: no row has the metric.
    """
    result.top(1, metric)
    figure, axes = _one_panel(result.config)
    sweep, sets = result.config["sweep"], result.config["sets"]
    labels = {"each": "layer", "forward": "layers 0 to", "backward": "layers to the last, from"}
    modes = list(dict.fromkeys(mode for _, mode in result.lines))
    alone = len({element for element, _ in result.lines}) == 1
    for (element, mode), values in zip(result.lines, result.matrix(metric), strict=True):
        colour, line, marker = STYLES[element]
        if len(modes) > 1:  # an element has its colour, unless there is no other
            line = DASHES[modes.index(mode)]
            colour = f"C{modes.index(mode)}" if alone else colour
        label = f"{element}, {mode}"
        axes.plot(values, linestyle=line, color=colour, marker=marker, markersize=4.5, label=label)
    axes.set_xticks(range(len(sets)), map(str, range(len(sets))) if sweep in labels else sets)
    axes.set_xlabel(labels.get(sweep, "layers"))
    axes.set_ylabel(NAMES.get(metric, metric))
    _open(axes)
    _legend_beside(axes)
    return _saved(figure, path)


def probes(result: Any, metric: str, path: str | Path | None) -> Figure:
    """A line a task over states, those of other orders than the model's own dashed.

    Raises:
        InputError: no row has the metric.
    """
    result.top(1, metric)
    figure, axes = _one_panel(result.config)
    for number, order in enumerate(result.orders):
        line = DASHES[min(number, 1)]
        for index, (task, values) in enumerate(zip(result.tasks, result.matrix(metric, order), strict=True)):
            axes.plot(values, line, color=f"C{index}", marker="o", markersize=4, label=None if number else task)
    axes.set_xlabel(
        "layers run" if len(result.orders) == 1 else f"layers run (dashed: {'; '.join(result.orders[1:4])})"
    )
    axes.set_ylabel(NAMES.get(metric, metric))
    _whole_numbers(axes)
    _open(axes)
    _legend_beside(axes)
    return _saved(figure, path)


def _one_panel(config: dict[str, Any]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 5.4), layout="constrained", dpi=130)
    _title(figure, config)
    return figure, figure.subplots()


def _open(axes: Axes) -> None:
    """A grid, and no frame but the two axes."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_beside(axes: Axes) -> None:
    """A legend outside, where no line runs through it."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _whole_numbers(axes: Axes) -> None:
    """Layers are counted, so the x axis has no fractions."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written where a path is given."""
    if path is not None:
        save(figure, path)
    return figure


def _kept(order: str, depth: int) -> int | None:
    """How many layers a permutation leaves in their places; ``None`` for an order that is none."""
    steps = order.split(",")
    if sorted(steps) != sorted(map(str, range(depth))):
        return None
    return sum(step == str(place) for place, step in enumerate(steps))


def _curve(axes: Axes, kept: np.ndarray, values: np.ndarray, metric: str) -> None:
    """A dot an order and the mean of those that keep as many layers in place."""
    counts = np.unique(kept)
    axes.plot(kept, values, "o", color="#56B4E9", markersize=3, alpha=0.5)
    axes.plot(counts, [values[kept == count].mean() for count in counts], "-s", color="#0072B2", markersize=5)
    axes.set_xticks(counts)
    axes.set_xlabel("layers kept in place")
    axes.set_ylabel(NAMES.get(metric, metric))
    _open(axes)


def _dots(axes: Axes, rows: list[dict[str, Any]], metric: str) -> None:
    errors = [row.get(f"{metric}_se") or 0.0 for row in rows]
    axes.errorbar([row[metric] for row in rows], range(len(rows)), xerr=errors, fmt="o", color="#0072B2", markersize=4)
    if len(rows) <= MOST_LINES:
        axes.set_yticks(range(len(rows)), [row["name"] or row["order"] for row in rows], fontsize=8)
    else:
        axes.set_ylabel("orders, from least to most")
    axes.set_xlabel(NAMES.get(metric, metric))
    _open(axes)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the file is replaced whole or not at all.

    Raises:
        InputError: the ending of the name is no format of pictures.
    """
    known = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".") not in known:
        raise InputError(f"{path}: name a picture by its format, one of {', '.join(sorted(known))}")
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _profile(axes: Axes, scan: Any, metric: str) -> None:
    matrix = scan.matrix(metric)
    for name, values in zip(scan.elements, matrix, strict=True):
        colour, line, marker = STYLES[name]
        axes.plot(values, line, color=colour, marker=marker, markersize=4.5, linewidth=1.5, label=name)
    axes.set_xlabel("layer")
    axes.set_ylabel(NAMES.get(metric, metric))
    _whole_numbers(axes)
    if metric == "nonlinearity":
        axes.set_ylim(bottom=min(0.0, float(np.nanmin(matrix))) - 0.01)
    _open(axes)
    _legend_beside(axes)


def _spans(axes: Axes, scan: Any, metric: str) -> None:
    _heatmap(axes, scan.matrix(metric, spans=True), NAMES.get(metric, metric))
    axes.set_xlabel("to the output of layer")
    axes.set_ylabel("from the input of layer")


def _heatmap(axes: Axes, matrix: np.ndarray, label: str) -> None:
    """A (layers, layers) matrix, its numbers written in where there is room."""
    image = axes.imshow(matrix, cmap="viridis", origin="upper")
    depth = len(matrix)
    axes.set_xticks(range(depth), [str(layer) for layer in range(depth)])
    axes.set_yticks(range(depth), [str(layer) for layer in range(depth)])
    if depth <= 16:
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for i, j in zip(*np.nonzero(~np.isnan(matrix)), strict=True):
            colour = "white" if matrix[i, j] < middle else "black"
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.85)


def _title(figure: Figure, config: dict[str, Any]) -> None:
    model = str(config.get("model", "")).rstrip("/").split("/")[-1]
    tokens = config.get("tokens")
    skips = f"  ·  skips {config['skip_scale']} ({config['skip_parts']})" if config.get("skip_scale") else ""
    figure.suptitle(f"{model}  ·  {tokens:,} tokens{skips}" if model and tokens else "")
