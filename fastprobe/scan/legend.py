"""Meaning and unit of the columns of a linearity scan."""

from __future__ import annotations

from fastprobe.results.legend import Meaning, place

VARIANCE, COSINE = "share of the variance of y", "cosine, -1 to 1"

COLUMNS = {
    "element": place("part of the model, x -> y"),
    "layer": place("layer, from 0; empty for a span"),
    "start": place("first layer, from 0"),
    "stop": place("layer after the last one"),
    "nonlinearity": Meaning("1 - r2_cv: 0 is linear, 1 is out of reach of a linear map", VARIANCE),
    "r2": Meaning("y explained by the affine map, on the tokens of the fit", VARIANCE),
    "r2_adjusted": Meaning("r2, corrected for the number of columns", VARIANCE),
    "r2_cv": Meaning("y explained by the affine map on sequences that it has not seen", VARIANCE),
    "r2_cv_se": place("standard error of r2_cv over folds", VARIANCE),
    "r2_uniform": Meaning("mean of r2 over the columns of y, each with the same weight", "share of the variance"),
    "r2_residual": Meaning("y - x explained by the affine map", "share of the variance of y - x"),
    "r2_identity": Meaning("y explained by x itself, without a fit", VARIANCE),
    "cosine": Meaning("mean cosine of y and its prediction, on the tokens of the fit", COSINE),
    "cosine_cv": Meaning("mean cosine of y and its prediction on sequences that the map has not seen", COSINE),
    "cosine_objective": Meaning("mean cosine for the fit to targets of unit length", COSINE),
    "anisotropy": Meaning("mean cosine of y at two different tokens", COSINE),
    "cka": Meaning("linear CKA of x and y", "0 to 1"),
    "rank": Meaning("directions of x that the fit uses", "directions"),
    "condition": Meaning("largest over smallest eigenvalue of x that the fit uses", "ratio"),
    "error_bound": Meaning("bound of the error of r2 against exact arithmetic", VARIANCE),
    "tokens": place("tokens of the fit", "tokens"),
    "factorisation": place("method by which x was factorised"),
    "dtype": place("type of the rows"),
    "backend": place("what added the products up"),
    "tokens_needed": place("tokens that the map needs; 0 if there are enough", "tokens"),
    "note": place("what to know before using the row"),
}
