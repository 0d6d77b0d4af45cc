"""Results that a folder holds already, which no other run may replace unless its user says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastprobe.errors import InputError
from fastprobe.results.result import load

SCORES = "scores.json"
FILES = (SCORES, "scores.csv")
"""Files of every saved result."""


def check_not_replaced(
    folder: str | Path,
    kind: str,
    files: Sequence[str] = (),
    *,
    progress_file: str = "",
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Raise if a run would replace the files of another run in a folder.

    Args:
        folder: where the run will write.
        kind: kind of result of the run.
        files: files that the run will write besides those of every result.
        progress_file: the file from which the run can resume; empty if it cannot.
        resume: the run continues the one in the folder.
        overwrite: the user allows to replace the files.

    Raises:
        InputError: the folder holds such files. The message says what they are.
    """
    if resume and overwrite:
        raise InputError("--overwrite: it starts anew, and --resume continues; give one of the two")
    folder = Path(folder)
    present = [name for name in (*FILES, *files) if _exists(folder / name)]
    if overwrite or not present or (resume and _can_continue(folder, kind, progress_file)):
        return
    proposals = ["replace it with --overwrite", "name another folder with --out"]
    if not resume and _can_continue(folder, kind, progress_file):
        proposals.insert(0, "continue it with --resume")
    held = description(folder, present) + (f", and no {kind} run to continue" if resume else "")
    raise InputError(
        f"{'--resume' if resume else 'out'}: {folder} holds {held}; {', '.join(proposals[:-1])}, or {proposals[-1]}"
    )


def description(folder: Path, present: Sequence[str]) -> str:
    """Describe in a few words what a folder holds.

    Args:
        folder: the folder.
        present: names of files in it.
    """
    if SCORES not in present:
        return present[0]
    try:
        result = load(folder)
    except InputError:
        return f"a {SCORES} of another program"
    model, tokens = result.config.get("model"), result.config.get("tokens")
    of = f" of {model}" if model else ""
    return f"a result ({result.kind}{of}{f', {tokens:,} tokens' if tokens else ''})"


def _exists(path: Path) -> bool:
    """Return True for a file with something to lose. A journal that has only its head holds no finished order."""
    if not path.exists():
        return False
    if path.suffix != ".jsonl":
        return True
    with path.open(encoding="utf-8", errors="replace") as lines:
        return len([line for line, _ in zip(lines, range(2), strict=False)]) > 1


def _can_continue(folder: Path, kind: str, progress_file: str) -> bool:
    """Return True if a folder holds a run to resume from and no result of another kind."""
    if not progress_file or not (folder / progress_file).exists():
        return False
    try:
        return not (folder / SCORES).exists() or load(folder).kind == kind
    except InputError:
        return False
