"""Meaning and unit of the columns of a probe."""

from __future__ import annotations

from fastprobe.results.legend import Meaning, place

VARIANCE, TOKENS = "share of the variance of the one-hot classes", "share of tokens"

COLUMNS = {
    "order": place("the order of the layers"),
    "name": place("its name"),
    "task": place("the property of tokens that is read"),
    "state": place("hidden state: k is the output of k steps"),
    "step": place("the step that ran last"),
    "classes": place("classes that occur", "classes"),
    "r2": Meaning("classes explained by the linear map, on the tokens of the fit", VARIANCE),
    "r2_cv": Meaning("classes explained by the linear map on sequences that it has not seen", VARIANCE),
    "r2_cv_se": place("standard error of r2_cv over folds", VARIANCE),
    "majority": Meaning("share of the largest class: the accuracy of a constant prediction", TOKENS),
    "tokens": place("tokens with a label", "tokens"),
    "accuracy": Meaning("tokens that are classified correctly, out of those of the fit", TOKENS),
    "accuracy_cv": Meaning("tokens that are classified correctly in sequences that the map has not seen", TOKENS),
}
