"""What all results share: rows, tables, saving and loading."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastprobe.errors import InputError
from fastprobe.regression.scores import RENAMED, current_column
from fastprobe.runtime.files import write_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

BY_DEPTH = "_by_depth"
"""Ends the names of columns that hold a list: a number for every depth of the model."""

KINDS: dict[str, type[Result]] = {}


@dataclass(frozen=True)
class Result(ABC):
    """Rows of numbers and the configuration that gave them."""

    config: dict[str, Any]
    rows: list[dict[str, Any]]

    kind: ClassVar[str] = ""
    metric: ClassVar[str] = ""  # what is drawn unless something else is asked for

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    def __repr__(self) -> str:
        of = f" of {self.config['model']}" if "model" in self.config else ""
        tokens = f", {self.config['tokens']:,} tokens" if self.config.get("tokens") else ""
        return f"<{type(self).__name__}{of}: {len(self.rows)} rows{tokens}>"

    @abstractmethod
    def plot(self, path: str | Path | None = None, metric: str = ...) -> Figure:
        """Draw the result, and save the picture where a path is given; never shows a window."""

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a table."""
        import pandas

        return pandas.DataFrame(self.rows)

    def top(self, k: int, metric: str) -> list[dict[str, Any]]:
        """The ``k`` rows with the largest ``metric``; rows without it are left out.

        Raises:
            InputError: no row has that metric, or ``k`` is below 1.
        """
        if k < 1:
            raise InputError(f"k: must be 1 or more, got {k}")
        metric = current_column(metric)
        have = [row for row in self.rows if isinstance(row.get(metric), int | float)]
        if not have:
            numbers = sorted({key for row in self.rows for key, value in row.items() if isinstance(value, int | float)})
            raise InputError(f"metric: no row has {metric!r}; the rows have {', '.join(numbers)}")
        return sorted(have, key=lambda row: row[metric], reverse=True)[:k]

    def to_json(self) -> str:
        """``{"config": {...}, "rows": [...]}``."""
        document = {"kind": self.kind, "config": self.config, "rows": self.rows}
        return json.dumps(document, indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """The rows as comma-separated values, absent ones empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def save(self, folder: str | Path) -> None:
        """Write ``scores.json`` and ``scores.csv`` into a folder; each file is replaced whole or not at all."""
        write_text(Path(folder) / "scores.json", self.to_json())
        write_text(Path(folder) / "scores.csv", self.to_csv())


def load(folder: str | Path) -> Result:
    """The result saved in a folder.

    Raises:
        InputError: there is none, or it is not one of this package.
    """
    path = Path(folder) / "scores.json"
    try:
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [{RENAMED.get(key, key): value for key, value in row.items()} for row in document["rows"]]
        return KINDS[document["kind"]](document["config"], rows)
    except FileNotFoundError:
        raise InputError(f"{folder}: no scores.json in it; name a folder that a command wrote with --out") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a result of fastprobe ({error!r})") from None
