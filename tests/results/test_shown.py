"""What results show of themselves: summaries in notebooks, legends of data frames, and the report page."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.pretraining import Pretraining
from fastprobe.reordering.commutativity import OrderEffects
from fastprobe.replication.losses import VariantLosses
from fastprobe.results.report import plain, render
from fastprobe.results.result import KINDS
from fastprobe.results.summary import CELLS, LINES, tables
from fastprobe.results.views import Curve, Dots, Line, Profiles, square_heatmap
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

EVIL = "<script>alert('x')</script>&\"</script><!--"
STEP = {"step": 0, "tokens": 0, "loss": None, "held_out_loss": 7.0, "held_out_loss_se": 0.1}
VARIANT = {"variant": "bert", "held_out_loss": 6.0, "held_out_loss_se": 0.1, "unigram_loss": 6.5, "failure": ""}


@pytest.fixture(scope="module")
def results():
    """A result of every kind, of tiny models."""
    model, batches = tiny_model("gpt2"), tiny_batches()
    quiet = {"progress": False}
    made = [
        fp.linearity(model, batches, spans="all", folds=2, **quiet),
        fp.commutativity(model, batches, fp.orders.swaps(3), depths=True, **quiet),
        fp.commutator(model, batches, **quiet),
        fp.ablation(model, batches, mode=["zero", "mean"], **quiet),
        fp.probe(model, batches, tasks="token", folds=2, **quiet),
        Pretraining({"unigram_loss": 6.5}, [STEP, STEP | {"step": 10, "loss": 6.9, "held_out_loss": 6.8}]),
        VariantLosses({}, [VARIANT, VARIANT | {"variant": "no-ffn"}]),
    ]
    assert {type(result) for result in made} == {*KINDS.values()} - {fp.results.result.Result}
    return made


class Tags(HTMLParser):
    """Names of tags, and the text of a page without scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        assert not [value for name, value in attributes if name in ("src", "href")]
        self.open = tag

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, text):
        if self.open not in ("script", "style"):
            self.texts.append(text)


def test_every_column_of_every_result_has_a_meaning(results):
    for result in results:
        for column in {column for row in result.rows for column in row}:
            assert column in type(result).columns, (result, column)


def test_a_data_frame_has_a_legend_with_units(results):
    for result in results:
        frame = result.to_pandas()
        assert {*frame.attrs["legend"]} == {*frame.columns}
    assert results[1].to_pandas().attrs["legend"]["kl"].endswith("[nats]")


def test_every_result_has_a_short_summary_and_a_page(results):
    for result in results:
        summary, page = result._repr_html_(), render(result)

        assert result.headline in result.metrics
        assert 1 < summary.count("<tr") <= 2 * (LINES + 1)
        assert summary.count("<tr") == summary.count("</tr>")
        assert {*Tags(summary).tags} <= {"div", "b", "table", "tr", "th", "td", "small"}
        document = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
        assert {*document["metrics"]} == {*result.metrics}
        assert all(document["meanings"].values())


def test_columns_of_final_states_and_those_by_depth_can_be_drawn(results):
    assert {"relative_l2", "delta_loss", "cosine_by_depth"} <= {*results[1].metrics}
    assert not {"tokens", "i", "kept", "kl_se"} & {*results[1].metrics}


def test_a_result_without_numbers_shows_its_first_line():
    result = OrderEffects({"layers": 2}, [{"order": "0,1", "name": "", "kept": 2, "i": None, "kl": None}])

    assert Tags(result._repr_html_()).tags == ["div", "b"]
    assert "No row has a number to show." in render(result)


def test_a_metric_of_a_user_is_shown():
    effects = fp.commutativity(
        tiny_model("bert"),
        tiny_batches(),
        fp.orders.swaps(3),
        metrics={"mine": lambda state, baseline: (state - baseline)[..., 0]},
        progress=False,
    )

    assert "mine" in effects.metrics
    assert "mine_se" not in effects.metrics
    assert effects.to_pandas().attrs["legend"]["mine"] == "a column of your own"


def test_lines_of_a_page_have_the_standard_errors_of_their_column(results):
    for result, metric, column in zip(
        (results[0], results[3], results[4]),
        ("nonlinearity", "kl", "r2_cv"),
        ("r2_cv_se", "kl_se", "r2_cv_se"),
        strict=True,
    ):
        found = {error for line in plain(result.views(metric)[0])["lines"] for error in line["errors"]}
        assert found <= {row[column] for row in result.rows} - {None}
        assert found
    assert {error for line in plain(results[0].views("cka")[0])["lines"] for error in line["errors"]} == {None}


def test_names_and_texts_are_escaped():
    rows = [
        {"order": EVIL, "name": name, "kept": None, "i": None, EVIL: value, "relative_l2": value}
        for name, value in (("identity", 0.0), (EVIL, 1.0), ("", 0.5))
    ]
    result = OrderEffects({"layers": 2, "model": EVIL, "tokens": 3, EVIL: EVIL, "command": EVIL}, rows)

    page, summary = Tags(render(result)), Tags(result._repr_html_())

    assert page.tags.count("script") == 2
    assert summary.tags.count("script") == 0
    assert sum(EVIL in text for text in page.texts) >= 6  # heading, title, command, configuration, columns
    assert "<!--" not in re.search(r'id="data">(.*?)</script>', render(result))[1]


def test_a_page_names_no_address():
    page = render(fp.load(Path(__file__).parents[1] / "saved" / "0.1.0" / "orders"))

    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert "No command is recorded" in page


@pytest.mark.parametrize(
    "view",
    [
        Profiles([Line([1.0, np.nan, 2.0], "a")], "layer", "r2"),
        square_heatmap(np.array([[np.nan, 1.0], [2.0, np.inf]]), x_label="", y_label="", label=""),
        Dots([1.0], [0.0], ["a"], "kl"),
        Curve([0, 1], [1.0, np.nan], ["a", "b"], "kept", "kl"),
    ],
    ids=lambda view: type(view).__name__,
)
def test_a_view_is_json_without_nan(view):
    assert "NaN" not in json.dumps(plain(view), allow_nan=False)
    assert not re.search("nan|inf", tables([view]))


def test_large_views_have_small_summaries():
    large = square_heatmap(np.arange(6400.0).reshape(80, 80), x_label="layer", y_label="", label="")
    many = Dots([*map(float, range(1000))], [0.0] * 1000, ["name"] * 1000, "kl")

    assert tables([large]).count("<td") <= CELLS * (CELLS + 1)
    assert "80 × 80 cells; evenly spaced ones are shown" in tables([large])
    assert f"{1000 - LINES} more rows" in tables([many])


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_the_script_of_the_page_has_no_syntax_error():
    script = Path(fp.__file__).parent / "results" / "report.js"

    subprocess.run(["node", "--check", script], check=True)
    assert "innerHTML" not in script.read_text(encoding="utf-8")
