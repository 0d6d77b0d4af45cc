"""Reference of a linearity scan: keep all activations, fit by SVD in float64."""

from collections.abc import Callable

import numpy as np
import torch

from fastprobe.data.checks import INPUTS, counted_mask
from fastprobe.models.calling import first_tensor
from fastprobe.models.points import Point
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded.recorder import UnpaddedRecorder
from fastprobe.models.unpadded.tokens import UnpaddedTokens


def read_points(model, layers, places, batches) -> dict[str, np.ndarray]:
    """Record the activations of modules without padding: {"name.layer": (tokens, width)} in float64."""
    stored: dict[str, list[torch.Tensor]] = {}
    handles = []
    mask = torch.zeros(0)

    def keep(name: str) -> Callable:
        def hook(module, args, kwargs, *result):
            tensor = first_tensor(result[0]) if result else (args[0] if args else kwargs["hidden_states"])
            stored.setdefault(name, []).append(tensor[mask].double())

        return hook

    for index, layer in enumerate(layers):
        for name, (path, side) in places.items():
            module = layer.get_submodule(path)
            register = module.register_forward_hook if side == "out" else module.register_forward_pre_hook
            handles.append(register(keep(f"{name}.{index}"), with_kwargs=True))
    with torch.no_grad():
        for batch in batches:
            mask = counted_mask(batch)
            model(**{key: value for key, value in batch.items() if key in (*INPUTS, "attention_mask")})
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).numpy() for name, parts in stored.items()}


def read_unpadded_points(model, batches) -> dict[str, np.ndarray]:
    """Record the same points with fastprobe's unpadded forward pass, whose rounding differs from the modules'."""
    points, stored = resolve(model), {}
    layers = range(len(points.layers))
    named = {
        Point(name, layer): points.canonical(Point(name, layer))
        for layer in layers
        for name in points.found[layer].places
    }

    def keep(layer, held):
        for point, canonical in named.items():
            if point.layer == layer:
                stored.setdefault(str(point), []).append(held[canonical][order].double())

    wanted = dict.fromkeys(named.values(), len(points.layers) - 1)
    with UnpaddedRecorder(model, points, wanted, keep) as recorder:
        for batch in batches:
            order = UnpaddedTokens.of(batch["attention_mask"].bool()).index.argsort()
            recorder.run(batch)
    return {name: torch.cat(parts).numpy() for name, parts in stored.items()}


def token_folds(batches, folds: int) -> np.ndarray:
    """Return the fold of every token: sequence s is in fold s mod folds."""
    lengths = [int(n) for batch in batches for n in counted_mask(batch).sum(1)]
    return np.repeat(np.arange(len(lengths)) % folds, lengths)


def fit(x: np.ndarray, y: np.ndarray, rcond: float, scale: np.ndarray | None = None, floor: float | None = None):
    """Fit y to x by SVD of the centred, equilibrated x. Return the fitted function and the rank."""
    mean, y_mean = x.mean(0), y.mean(0)
    scale = np.sqrt(((x - mean) ** 2).sum(0)) if scale is None else scale
    varies = scale**2 > 1e-12 * (x**2).sum(0)
    scale = np.where(varies, scale, np.inf)
    u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
    keep = s**2 > (rcond * s[0] ** 2 if floor is None else floor)
    coef = (vt[keep].T / s[keep]) @ (u[:, keep].T @ (y - y_mean)) / scale[:, None]
    return (lambda rows: (rows - mean) @ coef + y_mean), int(keep.sum())


def columns(x: np.ndarray, y: np.ndarray, fold: np.ndarray, rcond: float = 1e-7) -> dict[str, float]:
    """Return every column of a row from stored activations."""
    n = len(x)
    predict, rank = fit(x, y, rcond)
    rss, tss = ((y - predict(x)) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0)
    r2 = 1 - rss.sum() / tss.sum()
    held = {"rss": 0.0, "tss": 0.0, "cosines": np.zeros(n)}
    for f in np.unique(fold):
        out = fold == f
        without, _ = fit(x[~out], y[~out], rcond)
        held["rss"] += ((y[out] - without(x[out])) ** 2).sum()
        held["tss"] += ((y[out] - y[~out].mean(0)) ** 2).sum()
        held["cosines"][out] = cosines(y[out], without(x[out]))
    varies = tss > 1e-12 * (y**2).sum(0)
    units = y / np.linalg.norm(y, axis=1, keepdims=True)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    found = {
        "r2": r2,
        "r2_adjusted": 1 - (1 - r2) * (n - 1) / (n - rank - 1),
        "r2_cv": 1 - held["rss"] / held["tss"],
        "r2_uniform": (1 - rss[varies] / tss[varies]).mean(),
        "cosine": cosines(y, predict(x)).mean(),
        "cosine_cv": held["cosines"].mean(),
        "anisotropy": ((units.sum(0) ** 2).sum() - n) / (n * (n - 1)),
        "cka": np.linalg.norm(centred_x.T @ centred_y) ** 2
        / np.linalg.norm(centred_x.T @ centred_x)
        / np.linalg.norm(centred_y.T @ centred_y),
        "rank": rank,
    }
    if x.shape[1] == y.shape[1]:
        target = y - x
        residual, _ = fit(x, target, rcond)
        total = ((target - target.mean(0)) ** 2).sum()
        found["r2_residual"] = 1 - ((target - residual(x)) ** 2).sum() / total
        found["r2_identity"] = 1 - ((y - x) ** 2).sum() / tss.sum()
    return found


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
