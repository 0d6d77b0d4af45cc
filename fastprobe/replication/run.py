"""``paper()``: run the analyses of every section, save their results and write the page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastprobe.data.shares import COUNTED
from fastprobe.data.token_batches import TokenBatches
from fastprobe.errors import InputError, NumericalError, UnsupportedModelError
from fastprobe.models.calling import device_of
from fastprobe.models.resolve import resolve
from fastprobe.pretraining import TrainedVariant
from fastprobe.reordering.effects import predicted_batches
from fastprobe.replication.page import Answer, render
from fastprobe.replication.section import Analysis, Subject
from fastprobe.replication.sections import SECTIONS, comparisons
from fastprobe.results.kept import FILES, SCORES
from fastprobe.results.result import Result, load
from fastprobe.runtime.distributed import Ranks, together
from fastprobe.runtime.files import write_text
from fastprobe.runtime.journal import differing

PAGE = "paper.html"
REPEATED = "repeated"
"""Parent folder of the results of the commands on the page."""
VERSIONS = "versions"


@together()
def paper(
    model: nn.Module,
    batches: TokenBatches,
    folder: str | Path,
    *,
    tokenizer: Any,
    origin: Mapping[str, Any] | None = None,
    words: Sequence[str] = ("MODEL",),
    variants: Sequence[TrainedVariant] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Run the analyses of Zhao et al. (2021) on a model, and write a self-contained page: ``paper.html``.

    The result of each analysis is saved in its own folder, like ``folder/swaps/scores.json``. All numbers of the page
    come from these results. If the model does not support an analysis, the section gives the reason.

    Args:
        model: a Hugging Face encoder or decoder with two or more layers.
        batches: batches from :func:`fastprobe.token_batches`. If an encoder has a language-model head, 15 % of the
            tokens are masked in the analyses that score its predictions.
        folder: folder for the page and the results.
        tokenizer: the tokenizer of the model.
        origin: further description of model and text, stored in every result and compared by ``resume``.
        words: model and text as arguments of a command, the model first. The page prints its commands with them.
        variants: models that :func:`fastprobe.pretrain_variants` trained. Further sections compare them with ``model``,
            which must be their ``bert``.
        resume: load finished results from the folder.
        overwrite: replace the page and the results that the folder holds.
        progress: show progress bars on standard error.
        say: called with a line of text before each analysis.

    Returns:
        one row for each claim of the paper: ``section``, ``label``, ``claim``, ``criterion``, ``holds`` (``None`` if
        undecided) and ``found``, a sentence with the numbers.

    Raises:
        InputError: the model has one layer, a result to load is of another run, or the folder holds a page or
            results and neither ``resume`` nor ``overwrite`` is true.
        UnsupportedModelError: the layers of the model cannot be found.
        NumericalError: the states of an order overflow the dtype of the model.
    """
    ranks = Ranks.here()
    ranks.from_first(lambda: check_page_not_replaced(folder, variants, resume=resume, overwrite=overwrite))
    predicted = predicted_batches(model, batches, tokenizer, 0)
    description = dict(origin or {}) | {"layers": len(resolve(model).layers), COUNTED: getattr(batches, COUNTED, None)}
    baseline = Subject(model, batches, predicted, tokenizer, progress, description, words, variants)
    if baseline.depth < 2:
        raise InputError("model: must have two or more layers, got one; name another model")
    subjects = {"": baseline}
    sections = (*SECTIONS, *comparisons(variants))
    names = _names(variants)
    answers: list[Answer] = []
    results: dict[str, Result] = {}
    for section in sections:
        refusal = ""
        for analysis in section.analyses:
            if analysis.variant not in subjects:
                subjects[analysis.variant] = _variant(analysis.variant, baseline)
            if analysis.name in results:
                continue
            say(f"{list(names).index(analysis.name) + 1}/{len(names)} {section.title}: {analysis.name}")
            try:
                results[analysis.name] = _result(analysis, subjects[analysis.variant], Path(folder), resume)
            except UnsupportedModelError as error:
                refusal = str(error)
                break
        commands = [_command(analysis, subjects[analysis.variant]) for analysis in section.analyses]
        answers.append(Answer(section, results, commands, refusal))
    if ranks.is_first:
        write_text(Path(folder) / PAGE, render(answers, description))
    return [row for answer in answers for row in answer.rows()]


def check_page_not_replaced(
    folder: str | Path, variants: Sequence[TrainedVariant] = (), *, resume: bool, overwrite: bool
) -> None:
    """Raise if :func:`paper` would replace the page or a result that a folder holds.

    Raises:
        InputError: the folder holds one, and neither ``resume`` nor ``overwrite`` is true; or both are true.
    """
    files = (PAGE, *(f"{name}/{file}" for name in _names(variants) for file in FILES))
    present = [file for file in files if (Path(folder) / file).exists()]
    if resume and overwrite:
        raise InputError("--overwrite: it starts anew, and --resume continues; give one of the two")
    if present and not resume and not overwrite:
        more = f" and {len(present) - 1} more files" if len(present) > 1 else ""
        raise InputError(
            f"out: {folder} holds {present[0]}{more} of an earlier run; continue it with --resume, replace it with "
            "--overwrite, or choose another folder"
        )


def _names(variants: Sequence[TrainedVariant]) -> dict[str, None]:
    """Return the names of all analyses, in sequence."""
    sections = (*SECTIONS, *comparisons(variants))
    return dict.fromkeys(analysis.name for section in sections for analysis in section.analyses)


def _command(analysis: Analysis, subject: Subject) -> str:
    """Return the command that repeats an analysis, with a folder of its own. Derived results have several commands."""
    command = analysis.command(subject)
    return command if analysis.derived else f"{command} -o {shlex.quote(f'{REPEATED}/{analysis.name}')}"


def _variant(name: str, baseline: Subject) -> Subject:
    """Load a trained variant, with the tokens of the baseline model."""
    from fastprobe.models.loading import load_model  # here, because it imports Transformers

    folder = str(next(trained.folder for trained in baseline.variants if trained.variant == name))
    model, _ = load_model(folder, device=str(device_of(baseline.model)), head=True)
    description = dict(baseline.description) | {"model": folder, "layers": len(resolve(model).layers)}
    return replace(baseline, model=model, description=description, words=(folder, *baseline.words[1:]))


def _result(analysis: Analysis, subject: Subject, folder: Path, resume: bool) -> Result:
    """Run an analysis and save its result, or load the result of an earlier run if ``resume`` is true.

    Of several processes the first one loads and saves it.
    """
    ranks, kept = Ranks.here(), folder / analysis.name
    if resume and not analysis.derived and (loaded := ranks.from_first(lambda: _loaded(kept, subject))) is not None:
        return loaded
    result = analysis.run(subject)
    if any(row.get("relative_l2", 0.0) is None for row in result.rows):
        raise NumericalError(f"{analysis.name}: some states became NaN or infinite; load the model in float32")
    result.config.update(subject.description)
    if ranks.is_first:
        result.save(kept)
    return result


def _loaded(folder: Path, subject: Subject) -> Result | None:
    """Return the result of an analysis of a subject that a folder holds, or ``None`` without one."""
    if not (folder / SCORES).exists():
        return None
    result = load(folder)
    compared = {key: value for key, value in subject.description.items() if key != VERSIONS}
    if other := differing(compared, {key: result.config.get(key) for key in compared}):
        raise InputError(f"--resume: {folder} is of a run with another {other}; start in a new folder")
    return result
