"""paper(): every section run, kept and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastprobe.data.token_batches import TokenBatches
from fastprobe.errors import InputError, NumericalError, UnsupportedModelError
from fastprobe.models.record import device_of
from fastprobe.models.resolve import resolve
from fastprobe.pretraining import Trained
from fastprobe.reordering.effects import predicted_batches
from fastprobe.replication.page import Answer, render
from fastprobe.replication.section import Analysis, Subject
from fastprobe.replication.sections import SECTIONS, comparisons
from fastprobe.results.result import Result, load
from fastprobe.runtime.files import write_text
from fastprobe.runtime.journal import differing

PAGE = "paper.html"
VERSIONS = "versions"


def paper(
    model: nn.Module,
    batches: TokenBatches,
    folder: str | Path,
    *,
    tokenizer: Any,
    origin: Mapping[str, Any] | None = None,
    words: Sequence[str] = ("MODEL",),
    variants: Sequence[Trained] = (),
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
        words: model and text as they are typed behind a command, for the commands on the page; the model first.
        variants: models that :func:`fastprobe.pretrain_variants` trained, ``bert`` being the one that is asked, to be
            compared with it in sections of their own.
        resume: take from the folder what is finished there.
        progress: show progress bars on standard error.
        say: is told which analysis runs.

    Returns:
        a row a claim of the paper: ``section``, ``label``, ``claim``, ``criterion``, ``holds`` (``None`` where this
        model cannot tell) and ``found``, the numbers.

    Raises:
        InputError: a model of one layer, or a result to go on with that is of another run.
        UnsupportedModelError: the layers of the model cannot be found.
        NumericalError: the states of some order leave the range of the model's dtype.
    """
    predicted = predicted_batches(model, batches, tokenizer, 0)
    about = dict(origin or {}) | {"layers": len(resolve(model).layers)}
    own = Subject(model, batches, predicted, tokenizer, progress, about, words, variants)
    if own.depth < 2:
        raise InputError("model: one layer has no other to change places with; name a model of two or more")
    subjects = {"": own}
    sections = (*SECTIONS, *comparisons(variants))
    names = dict.fromkeys(analysis.name for section in sections for analysis in section.analyses)
    answers: list[Answer] = []
    results: dict[str, Result] = {}
    for section in sections:
        refusal = ""
        for analysis in section.analyses:
            if analysis.variant not in subjects:
                subjects[analysis.variant] = _variant(analysis.variant, own)
            if analysis.name in results:
                continue
            say(f"{list(names).index(analysis.name) + 1}/{len(names)} {section.title}: {analysis.name}")
            try:
                results[analysis.name] = _result(analysis, subjects[analysis.variant], Path(folder), resume)
            except UnsupportedModelError as error:
                refusal = str(error)
                break
        commands = [analysis.command(subjects[analysis.variant]) for analysis in section.analyses]
        answers.append(Answer(section, results, commands, refusal))
    write_text(Path(folder) / PAGE, render(answers, about))
    return [row for answer in answers for row in answer.rows()]


def _variant(name: str, own: Subject) -> Subject:
    """A model that was trained to be compared, on the same tokens as the model that is asked."""
    from fastprobe.models.loading import load_model  # here, as it brings Transformers

    folder = str(next(trained.folder for trained in own.variants if trained.variant == name))
    model, _ = load_model(folder, device=str(device_of(own.model)), head=True)
    about = dict(own.about) | {"model": folder, "layers": len(resolve(model).layers)}
    return replace(own, model=model, about=about, words=(folder, *own.words[1:]))


def _result(analysis: Analysis, subject: Subject, folder: Path, resume: bool) -> Result:
    """The result of an analysis, from its folder where it is finished there."""
    kept = folder / analysis.name
    if resume and not analysis.derived and (kept / "scores.json").exists():
        result = load(kept)
        compared = {key: value for key, value in subject.about.items() if key != VERSIONS}
        other = differing(compared, {key: result.config.get(key) for key in compared})
        if other:
            raise InputError(f"--resume: {kept} is of a run with another {other}; start in a new folder")
        return result
    result = analysis.run(subject)
    if any(row.get("relative_l2", 0.0) is None for row in result.rows):
        raise NumericalError(
            f"{analysis.name}: some states became NaN or infinite; load the model in float32 for a page"
        )
    result.config.update(subject.about)
    result.save(kept)
    return result
