"""Criteria of the page at their edges: a number within its noise, or from too few tokens, decides nothing."""

import copy
import itertools
import re
from typing import Any

import pytest

from fastprobe.ablations.ablation import Ablations
from fastprobe.probes.probe import Probes
from fastprobe.reordering.commutativity import OrderEffects
from fastprobe.reordering.commutator import Commutators
from fastprobe.replication.page import Answer, render
from fastprobe.replication.sections import SECTIONS
from fastprobe.replication.table import claims_table
from fastprobe.scan.result import LinearityScan

DEPTH, TOKENS, COLUMNS = 6, 8_000, 384
CLAIMS = {claim.text: claim for section in SECTIONS for claim in section.claims}
ON_MAPS = ["nonlinearity", "features"]
"""Sections whose numbers all come from linear maps."""


def numbered(rows: list[dict[str, Any]], columns: tuple[str, ...], error: float | None) -> list[dict[str, Any]]:
    return [row | {f"{column}_se": error for column in columns} for row in rows]


def scan(mlp, attn=None, error=0.001, tokens=TOKENS):
    attn = mlp if attn is None else attn
    rows = [
        {"element": name, "layer": layer, "start": layer, "stop": layer + 1, "nonlinearity": value, "r2_cv_se": error}
        | {"cosine_objective": 0.9, "anisotropy": 0.3, "note": ""}
        for name, values in (("mlp", mlp), ("attn", attn))
        for layer, value in enumerate(values)
    ]
    return LinearityScan({"tokens": tokens, "columns": COLUMNS}, rows)


def effects(damage: dict[str, float], error=0.001):
    rows = [{"order": order, "name": order, "relative_l2": value} for order, value in damage.items()]
    return OrderEffects({"layers": DEPTH, "tokens": TOKENS}, numbered(rows, ("relative_l2",), error))


def text_of(order) -> str:
    return ",".join(map(str, order))


BASELINE = {text_of(range(DEPTH)): 0.0}


def swaps(by_distance, error=0.001):
    damage = dict(BASELINE)
    for i, j in itertools.combinations(range(DEPTH), 2):
        order = [*range(DEPTH)]
        order[i], order[j] = j, i
        damage[text_of(order)] = by_distance[j - i - 1]
    return effects(damage, error)


def shuffles(by_kept, error=0.001):
    """Return an order for each number of layers in place; the other layers are rotated by one."""
    damage = dict(BASELINE)
    for kept, value in enumerate(by_kept):
        rotated = [*range(kept + 1, DEPTH), kept]
        damage[text_of([*range(kept), *rotated])] = value
    return effects(damage, error)


def repetition(by_layer, error=0.001):
    return effects(BASELINE | {text_of([layer] * DEPTH): value for layer, value in enumerate(by_layer)}, error)


def ablations(removed, linear, attn, error=0.001, tokens=TOKENS):
    values = {("mlp", "zero"): removed, ("mlp", "linear"): linear, ("attn", "zero"): attn}
    rows: list[dict[str, Any]] = [{"element": "", "mode": "none", "layers": "", "relative_l2": 0.0}]
    rows += [
        {"element": element, "mode": mode, "layers": str(layer), "relative_l2": value}
        for (element, mode), value in values.items()
        for layer in range(DEPTH)
    ]
    config = {"tokens": tokens, "columns": COLUMNS, "sets": [str(layer) for layer in range(DEPTH)]}
    return Ablations(config, numbered(rows, ("relative_l2",), error))


def commutators(size, error=0.001):
    pairs = itertools.combinations(range(DEPTH), 2)
    rows = [{"i": i, "j": j, "relative_l2": size} for i, j in pairs]
    return Commutators({"layers": DEPTH, "tokens": TOKENS}, numbered(rows, ("relative_l2",), error))


def probes(baseline, swapped=None, error=0.001, tokens=TOKENS):
    swapped = baseline if swapped is None else swapped
    rows = [
        {"order": order, "name": "", "task": "next", "state": state, "r2_cv": value, "r2_cv_se": error}
        for order, values in (("0,1", baseline), ("1,0", swapped))
        for state, value in enumerate(values)
    ]
    return Probes({"tokens": tokens, "columns": COLUMNS}, rows)


MIDDLE = [0.6, 0.7, 0.8, 0.75, 0.6, 0.55]
OPPOSITE = [0.8, 0.7, 0.6, 0.65, 0.8, 0.85]
RESULTS = {
    "nonlinearity": scan(MIDDLE),
    "swaps": swaps([0.1, 0.2, 0.3, 0.4, 0.35]),
    "shuffles": shuffles([0.5, 0.4, 0.3, 0.2, 0.1]),
    "repetition": repetition([0.5, 0.3, 0.2, 0.4, 0.5, 0.6]),
    "ffns": ablations(0.5, 0.48, 0.6),
    "commutators": commutators(0.3),
    "commutators-without-skips": commutators(0.9),
    "features": probes([0.0, 0.2, 0.4, 0.4]),
}
"""Results with which every claim holds."""


def check(claim: str, **results):
    found = [one for text, one in CLAIMS.items() if text.startswith(claim)]
    assert len(found) == 1, claim
    return found[0].check(RESULTS | {name.replace("_", "-"): result for name, result in results.items()})


def with_errors(result, error):
    """Return a result with another standard error in every row."""
    other = copy.deepcopy(result)
    for row in other.rows:
        row |= {column: error for column in row if column.endswith("_se")}
    return other


def test_every_claim_holds_for_results_that_are_clear():
    assert {text: claim.check(RESULTS).holds for text, claim in CLAIMS.items()} == dict.fromkeys(CLAIMS, True)


SAID = re.compile(r"This cannot be said with ([\d,]+) tokens; at least ([\d,]+) would do\.$")


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("error", [10.0, None], ids=["large", "no"])
def test_no_claim_is_decided_by_numbers_with_a_large_or_no_standard_error(claim, error):
    finding = CLAIMS[claim].check({name: with_errors(result, error) for name, result in RESULTS.items()})

    assert finding.holds is None
    tokens, needed = (int(text.replace(",", "")) for text in SAID.search(finding.numbers).groups())
    assert needed > tokens == TOKENS


@pytest.mark.parametrize("claim", [claim.text for section in SECTIONS for claim in section.claims])
def test_no_claim_on_linear_maps_is_decided_by_too_few_tokens(claim):
    few = {name: copy.deepcopy(result) for name, result in RESULTS.items()}
    for result in few.values():
        result.config["tokens"] = 5 * COLUMNS - 1
    section = next(section for section in SECTIONS if claim in [one.text for one in section.claims])

    finding = CLAIMS[claim].check(few)

    if section.name in ON_MAPS or claim.startswith("Linear MLPs"):
        assert finding == (None, "This cannot be said with 1,919 tokens; at least 1,920 would do.")
    else:
        assert finding.holds is True


@pytest.mark.parametrize(
    ("claim", "results", "holds"),
    [
        # an error of 0.01 in every row: the noise of a mean is 0.02, that of a difference of two 0.028
        ("MLPs are strongly", {"nonlinearity": scan([0.521] * 6, error=0.01)}, True),
        ("MLPs are strongly", {"nonlinearity": scan([0.519] * 6, error=0.01)}, None),
        ("MLPs are strongly", {"nonlinearity": scan([0.481] * 6, error=0.01)}, None),
        ("MLPs are strongly", {"nonlinearity": scan([0.479] * 6, error=0.01)}, False),
        ("MLPs are strongly", {"nonlinearity": scan([0.6] * 5 + [117.364], error=0.01)}, None),
        ("MLPs are most", {"nonlinearity": scan([0.6, 0.6, 0.629, 0.6, 0.6, 0.6], error=0.01)}, True),
        ("MLPs are most", {"nonlinearity": scan([0.6, 0.6, 0.627, 0.6, 0.6, 0.6], error=0.01)}, None),
        ("MLPs are most", {"nonlinearity": scan([0.627, 0.6, 0.6, 0.6, 0.6, 0.6], error=0.01)}, None),
        ("MLPs are most", {"nonlinearity": scan([0.629, 0.6, 0.6, 0.6, 0.6, 0.6], error=0.01)}, False),
        ("Self-attention", {"nonlinearity": scan(MIDDLE, OPPOSITE, error=0.001)}, False),
        ("Self-attention", {"nonlinearity": scan(MIDDLE, OPPOSITE, error=0.2)}, None),
        ("Swaps over", {"swaps": swaps([0.1, 0.129, 0.158, 0.187, 0.1], error=0.01)}, True),
        ("Swaps over", {"swaps": swaps([0.1, 0.127, 0.156, 0.185, 0.1], error=0.01)}, None),
        ("Swaps over", {"swaps": swaps([0.1, 0.073, 0.102, 0.131, 0.1], error=0.01)}, None),
        ("Swaps over", {"swaps": swaps([0.1, 0.071, 0.1, 0.129, 0.1], error=0.01)}, False),
        ("The swap of", {"swaps": swaps([0.1, 0.2, 0.3, 0.4, 0.371], error=0.01)}, True),
        ("The swap of", {"swaps": swaps([0.1, 0.2, 0.3, 0.4, 0.373], error=0.01)}, None),
        ("The swap of", {"swaps": swaps([0.1, 0.2, 0.3, 0.4, 0.429], error=0.01)}, False),
        ("Performance falls", {"shuffles": shuffles([0.5, 0.471, 0.3, 0.2, 0.1], error=0.01)}, True),
        ("Performance falls", {"shuffles": shuffles([0.5, 0.473, 0.3, 0.2, 0.1], error=0.01)}, None),
        ("Performance falls", {"shuffles": shuffles([0.5, 0.529, 0.3, 0.2, 0.1], error=0.01)}, False),
        ("The best layers", {"repetition": repetition([0.5, 0.5, 0.471, 0.5, 0.5, 0.5], error=0.01)}, True),
        ("The best layers", {"repetition": repetition([0.5, 0.5, 0.473, 0.5, 0.5, 0.5], error=0.01)}, None),
        ("The best layers", {"repetition": repetition([0.5, 0.5, 0.529, 0.5, 0.5, 0.471], error=0.01)}, False),
        ("Removing MLPs", {"ffns": ablations(0.5, 0.4, 0.529, error=0.01)}, True),
        ("Removing MLPs", {"ffns": ablations(0.5, 0.4, 0.527, error=0.01)}, None),
        ("Removing MLPs", {"ffns": ablations(0.5, 0.4, 0.471, error=0.01)}, False),
        # the linear map repairs less than 0.2 if its damage is over 0.4; the noise is 2 * hypot(0.01, 0.8 * 0.01)
        ("Linear MLPs", {"ffns": ablations(0.5, 0.426, 0.6, error=0.01)}, True),
        ("Linear MLPs", {"ffns": ablations(0.5, 0.425, 0.6, error=0.01)}, None),
        ("Linear MLPs", {"ffns": ablations(0.5, 0.374, 0.6, error=0.01)}, False),
        ("Linear MLPs", {"ffns": ablations(0.019, 0.0, 0.6, error=0.01)}, None),
        # twice 0.3 with a noise of 2 * hypot(0.01, 2 * 0.01)
        (
            "The bias of BERT",
            {"commutators": commutators(0.3, 0.01), "commutators_without_skips": commutators(0.645, 0.01)},
            True,
        ),
        (
            "The bias of BERT",
            {"commutators": commutators(0.3, 0.01), "commutators_without_skips": commutators(0.644, 0.01)},
            None,
        ),
        (
            "The bias of BERT",
            {"commutators": commutators(0.3, 0.01), "commutators_without_skips": commutators(0.555, 0.01)},
            False,
        ),
        # of 0.4 in all, the second layer must add over 0.04
        ("Layers have some", {"features": probes([0.0, 0.3, 0.4, 0.4], error=0.01)}, True),
        ("Layers have some", {"features": probes([0.0, 0.36, 0.4, 0.4], error=0.01)}, None),
        ("Layers have some", {"features": probes([0.0, 0.4, 0.4, 0.4], error=0.001)}, False),
        ("Low-level", {"features": probes([0.0, 0.4, 0.4], [0.0, 0.24, 0.4], error=0.003)}, True),
        ("Low-level", {"features": probes([0.0, 0.4, 0.4], [0.0, 0.2, 0.4], error=0.01)}, None),
        ("Low-level", {"features": probes([0.0, 0.4, 0.4], [0.0, 0.1, 0.4], error=0.01)}, False),
    ],
)
def test_a_criterion_is_undecided_within_its_noise(claim, results, holds):
    finding = check(claim, **results)

    assert finding.holds is holds, finding
    if holds is None and "nothing to repair" not in finding.numbers:
        assert SAID.search(finding.numbers), finding


def test_the_page_and_the_table_say_what_the_tokens_cannot(capsys):
    few = scan([0.6] * 5 + [117.364], tokens=1_000)
    for row in few.rows:
        row.update(tokens=1_000, tokens_needed=1_920)
    section = SECTIONS[0]
    answer = Answer(section, {"nonlinearity": few}, [""], "")

    page = render([answer], {"layers": DEPTH})

    assert page.count("This cannot be said with 1,000 tokens; at least 2,000 would do.") == len(section.claims)
    assert "<td>cannot be said with 1,000 tokens; at least 1,920 would do</td>" in page
    assert "117.364" not in page
    assert "holds here" not in page
    assert {row["holds"] for row in answer.rows()} == {None}
    assert "holds" not in [str(cell) for cell in claims_table(answer.rows()).columns[2].cells]
