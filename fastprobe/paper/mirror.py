"""paper(): every section run, kept and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastprobe.effects import predicted_batches
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.files import write_text
from fastprobe.paper.page import Answer, render
from fastprobe.paper.section import Analysis, Subject
from fastprobe.paper.sections import SECTIONS
from fastprobe.results import Result, load
from fastprobe.text import TokenBatches

PAGE = "paper.html"
VERSIONS = "versions"


def paper(
    model: nn.Module,
    batches: TokenBatches,
    folder: str | Path,
    *,
    tokenizer: Any,
    origin: Mapping[str, Any] | None = None,
    arguments: str = "MODEL",
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Ask a model what Zhao et al. (2021) asked of BERT, and write one page that needs no network: ``paper.html``.

    The result of every analysis is kept in a folder of its own, ``folder/swaps/scores.json`` and so on, from which all
    numbers of the page come. A section that a model has no parts for says so.

    Args:
        model: a Hugging Face encoder or decoder of two layers or more.
        batches: what it reads, from :func:`fastprobe.token_batches`; an encoder with a language-model head gets it with
            15 % of the tokens hidden where its predictions are scored.
        folder: where the page and the results go.
        tokenizer: what the ids are of.
        origin: what else there is to say of model and text; kept in every result, and compared by ``resume``.
        arguments: model and text as they are typed behind a command, for the commands on the page.
        resume: take from the folder what is finished there.
        progress: show progress bars on standard error.
        say: is told which analysis runs.

    Returns:
        a row a claim of the paper: ``section``, ``label``, ``claim``, ``criterion``, ``holds`` (``None`` where this
        model cannot tell) and ``found``, the numbers.

    Raises:
        InputError: a model of one layer, or a result to go on with that is of another run.
        UnsupportedModelError: the layers of the model cannot be found.
    """
    subject = Subject(model, batches, predicted_batches(model, batches, tokenizer, 0), tokenizer, progress)
    if subject.depth < 2:
        raise InputError("model: one layer has no other to change places with; name a model of two or more")
    about = dict(origin or {}) | {"layers": subject.depth}
    total = sum(len(section.analyses) for section in SECTIONS)
    answers, number = [], 0
    for section in SECTIONS:
        results: dict[str, Result] = {}
        refusal = ""
        for analysis in section.analyses:
            number += 1
            say(f"{number}/{total} {section.title}: {analysis.name}")
            try:
                results[analysis.name] = _result(analysis, subject, Path(folder) / analysis.name, about, resume)
            except UnsupportedModelError as error:
                refusal = str(error)
                break
        commands = [_command(analysis, subject, arguments) for analysis in section.analyses]
        answers.append(Answer(section, results, commands, refusal))
    write_text(Path(folder) / PAGE, render(answers, about))
    return [row for answer in answers for row in answer.rows()]


def _result(analysis: Analysis, subject: Subject, folder: Path, about: dict[str, Any], resume: bool) -> Result:
    """The result of an analysis, from its folder where it is finished there."""
    if resume and (folder / "scores.json").exists():
        result = load(folder)
        other = [key for key in about if key != VERSIONS and result.config.get(key) != about[key]]
        if other:
            raise InputError(f"--resume: {folder} is of a run with another {', '.join(other)}; start in a new folder")
        return result
    result = analysis.run(subject)
    result.config.update(about)
    result.save(folder)
    return result


def _command(analysis: Analysis, subject: Subject, arguments: str) -> str:
    command, *options = analysis.command(subject)
    return " ".join(["fastprobe", command, *filter(None, [arguments]), *options])
