"""``fastprobe paper``: the page has every section, is self-contained, and agrees with the results."""

import contextlib
import io
import json
import re
import shlex
import shutil
import sys

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import fastprobe as fp
from fastprobe import cli
from fastprobe.data.demo import demo_model_path
from fastprobe.errors import NumericalError
from fastprobe.replication import run as replication
from fastprobe.replication.section import LABELS, Analysis
from fastprobe.replication.sections import SECTIONS
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

SIZES = ("--tokens", "300", "--max-seq-len", "24", "--batch-size", "8")
ANALYSES = [analysis.name for section in SECTIONS for analysis in section.analyses]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random masked-language model of three layers, with a real tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=len(tokenizer), initializer_range=0.3, **size
    )  # large weights, so that every part is far from linear
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written(model_folder, tmp_path_factory):
    """Run the command. Return its folder, which tests must not change, and the claims it prints as JSON."""
    folder, printed = tmp_path_factory.mktemp("paper"), io.StringIO()
    arguments = ["fastprobe", "paper", model_folder, *SIZES, "--quiet", "--json", "--out", folder]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", list(map(str, arguments)))
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert exit.value.code == 0
    return folder, json.loads(printed.getvalue())


def visible(page):
    """Return the text of a page without its figures."""
    return re.sub(r"\s+", " ", re.sub(r'<img src="[^"]*"', "<img", page))


def test_the_page_has_every_section_and_agrees_with_the_results(written):
    folder, claims = written
    page = (folder / "paper.html").read_text()
    text = visible(page)

    assert {path.name for path in folder.iterdir()} == {*ANALYSES, "paper.html"}
    assert len(re.findall('src="data:image/svg', page)) == len(ANALYSES)
    assert all(f'<h2 id="{section.name}">' in text for section in SECTIONS)
    assert len(claims) == sum(len(section.claims) for section in SECTIONS)
    assert all(f"</span>: {claim['found']} <span" in text for claim in claims)

    swaps = fp.load(folder / "swaps").matrix("delta_loss")
    means = [swaps.diagonal(1).mean(), swaps.diagonal(2).mean()]
    assert f"First and last: {means[1]:.3f}; at distance 1: {means[0]:.3f}." in text
    pairs = {name: fp.load(folder / name).to_pandas().relative_l2 for name in ANALYSES if "commutators" in name}
    baseline, cut = (pairs[name].mean() for name in ("commutators", "commutators-without-skips"))
    assert f"With skip connections {baseline:.3f}, without {cut:.3f}: {cut / baseline:.3f} times as large." in text
    damage = fp.load(folder / "ffns").to_pandas().groupby(["element", "mode"]).delta_loss.mean()
    assert f"Without mlp {damage['mlp', 'zero']:.3f}, without attn {damage['attn', 'zero']:.3f}." in text
    verdicts = {claim["claim"]: claim["holds"] for claim in claims}
    edited = damage[damage.index != ("", "none")]
    assert min(abs(value) for value in (*means, *edited)) > 0.001  # so that the printed digits differ
    ends, mlp = means[1] < means[0], damage["mlp", "zero"] < damage["attn", "zero"]
    assert verdicts["The swap of the very first and last layers is an exception."] in (None, bool(ends))
    assert verdicts["Removing MLPs costs less than removing self-attention."] in (None, bool(mlp))
    assert {None} < set(verdicts.values())
    assert all(("cannot be said with" in claim["found"]) <= (claim["holds"] is None) for claim in claims)
    for row in fp.load(folder / "commutators").rows:
        assert f"<td>{row['i']} {row['j']}</td><td>{row['relative_l2']:.3f}</td>" in text


def test_the_page_has_no_external_resources(written):
    page = (written[0] / "paper.html").read_text()

    assert "<script" not in page
    assert "<link" not in page
    assert all(address.startswith("data:") for address in re.findall(r'src\s*=\s*"([^"]*)"', page))
    assert all(address.startswith("#") for address in re.findall(r'href\s*=\s*"([^"]*)"', page))
    assert "http" not in visible(page)


def test_every_command_on_the_page_repeats_the_rows_of_its_section(written, run, tmp_path):
    page = (written[0] / "paper.html").read_text()
    commands = [line for block in re.findall(r"<pre>(.*?)</pre>", page, re.S) for line in block.splitlines()]

    assert len(commands) == len(ANALYSES)
    for name, command in zip(ANALYSES, commands, strict=True):
        code, _, _ = run(*shlex.split(command)[1:], "--quiet", "--out", tmp_path / name)
        assert code == 0
        rows, again = (fp.load(folder).to_pandas().round(6) for folder in (written[0] / name, tmp_path / name))
        assert rows.equals(again), name


def test_resume_computes_only_missing_results(written, run, model_folder, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(written[0], folder)
    before = (folder / "paper.html").read_bytes()
    (folder / "paper.html").unlink()
    kept = {name: (folder / name / "scores.json").stat().st_mtime_ns for name in ANALYSES}
    (folder / "repetition" / "scores.json").unlink()

    code, out, err = run("paper", model_folder, *SIZES, "--resume", "--out", folder)

    assert code == 0
    assert "4/8 Repetition by layer: repetition" in err
    assert max(map(len, out.splitlines())) <= 80
    assert (folder / "paper.html").read_bytes() == before
    again = {name: (folder / name / "scores.json").stat().st_mtime_ns for name in ANALYSES}
    assert {name for name in ANALYSES if kept[name] != again[name]} == {"repetition"}

    code, out, err = run("paper", model_folder, "--tokens", "200", "--resume", "--quiet", "--out", folder)
    assert code == 2
    assert re.fullmatch(
        r"fastprobe: --resume: .*nonlinearity is of a run with another batch_size, max_seq_len, tokens; .*\n", err
    )
    code, out, err = run("paper", model_folder, *SIZES, "--skip-special", "--resume", "--quiet", "--out", folder)
    assert code == 2
    assert re.fullmatch(r"fastprobe: --resume: .*nonlinearity is of a run with another counted; .*\n", err)


def test_a_section_that_the_model_does_not_support_gives_the_reason(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())

    rows = fp.paper(tiny_model("neox"), tiny_batches(), tmp_path, tokenizer=tokenizer, progress=False)

    refused = {row["section"] for row in rows if row["found"].startswith("Not run")}
    assert refused == {"skips"}
    assert "share one skip connection" in (tmp_path / "paper.html").read_text()


def test_few_tokens_give_no_conclusion_about_linear_maps(run, model_folder, tmp_path):
    few = ("--tokens", "60", "--max-seq-len", "24", "--batch-size", "8", "--quiet")

    code, out, _ = run("paper", model_folder, *few, "--out", tmp_path / "out")

    assert code == 0
    said = "This cannot be said with 60 tokens; at least 80 would do."
    page = visible((tmp_path / "out" / "paper.html").read_text())
    assert page.count(f"</span>: {said} <span") >= 3  # non-linearity; features may need more or have none to learn
    lines = " ".join(out.split())
    assert said in lines
    assert not re.search("nonlinearity +.[NAF]. +(holds|not seen)", out)
    rows = [row for row in fp.load(tmp_path / "out" / "nonlinearity").rows if row["element"] == "mlp"]
    assert all(f"<td>{row['nonlinearity']:.3f}</td>" not in page for row in rows)


def test_every_claim_has_a_known_source():
    assert all(claim.label in LABELS for section in SECTIONS for claim in section.claims)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "many"], "tokens: must be a number like 5000, 100k or 1.5M, got 'many'"),
        (["--text", "nowhere.txt"], "--text: nowhere.txt is not a file"),
        (["--max-seq-len", "4096"], "--max-seq-len: must be at most 512, the positions of this model"),
    ],
)
def test_invalid_input_prints_one_line(run, model_folder, tmp_path, arguments, message):
    code, out, err = run("paper", model_folder, "--out", tmp_path / "out", "--quiet", *arguments)

    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_analysis_with_overflowing_states_raises_an_error(tmp_path):
    empty = fp.OrderEffects({}, [{"name": "identity", "relative_l2": 0.0}, {"name": "swap 0 1", "relative_l2": None}])
    analysis = Analysis("swaps", "", lambda subject: "", lambda subject: empty)

    with pytest.raises(NumericalError, match="swaps: some states became NaN or infinite; load the model in float32"):
        replication._result(analysis, None, tmp_path, resume=False)

    assert not list(tmp_path.iterdir())
