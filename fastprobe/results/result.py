"""Results: rows of numbers with their configuration, saved to and loaded from a folder."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.regression.evidence import cannot_be_said, tokens_for_map
from fastprobe.regression.scores import RENAMED, current_column
from fastprobe.results.figure import draw
from fastprobe.results.legend import Meaning
from fastprobe.results.summary import summary
from fastprobe.results.views import View
from fastprobe.runtime.files import write_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

BY_DEPTH = "_by_depth"
"""Suffix of columns that hold a list with one number for each depth of the model."""

KINDS: dict[str, type[Result]] = {}
"""The class of each kind of result, by the name that its file has."""


@dataclass(frozen=True)
class Result(ABC):
    """Rows of numbers and the configuration of the run that gave them."""

    config: dict[str, Any]
    rows: list[dict[str, Any]]

    kind: ClassVar[str] = ""
    metric: ClassVar[str] = ""  # the column that plot draws by default
    shown: ClassVar[Sequence[str]] = ()  # columns that a notebook shows: the first of them that has numbers
    columns: ClassVar[Mapping[str, Meaning]] = {}  # meaning and unit of every column

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    def __repr__(self) -> str:
        of = f" of {self.config['model']}" if "model" in self.config else ""
        tokens = f", {self.config['tokens']:,} tokens" if self.config.get("tokens") else ""
        return f"<{type(self).__name__}{of}: {len(self.rows)} rows{tokens}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: one line on the result, and a table with colours of one column."""
        metric = self.headline
        return summary(repr(self).strip("<>"), self.remark, metric or "", self.views(metric) if metric else [])

    @abstractmethod
    def views(self, metric: str) -> list[View]:
        """Return what a picture of one column shows, as plain data.

        Raises:
            InputError: no row has a number in that column.
        """

    def plot(self, path: str | Path | None = None, metric: str | None = None, *, size: str = "screen") -> Figure:
        """Draw one column, and save the picture if ``path`` is given. Opens no window; a notebook shows the figure.

        Args:
            path: where to save the picture; its ending is the format, like ``.png``, ``.pdf`` or ``.svg``.
            metric: the column to draw; :attr:`metric` by default.
            size: ``"screen"``; or for a paper ``"column"`` (85 mm wide) or ``"page"`` (175 mm), with small type and
                without a title.

        Raises:
            InputError: no row has a number in that column, an unknown size, or an unknown format.
        """
        return draw(self.title.partition("\n")[0], self.remark, self.views(metric or self.metric), path, size)

    @property
    def metrics(self) -> list[str]:
        """The columns that can be drawn: measured, and with a number in some row."""
        names = dict.fromkeys(key for row in self.rows for key, value in row.items() if _is_number(value))
        return [name for name in names if self.meaning(name).is_score]

    def meaning(self, column: str) -> Meaning:
        """Return meaning and unit of a column. A column that a user added says so."""
        added = Meaning("a column of your own", is_score=not column.endswith("_se"))
        return self.columns.get(column, added)

    @property
    def headline(self) -> str | None:
        """The column that a notebook shows; ``None`` if no row has a number."""
        metrics = self.metrics
        return next((name for name in (*self.shown, self.metric, *metrics) if name in metrics), None)

    @property
    def title(self) -> str:
        """Title of a picture: model, tokens and scaled skip connections if they are recorded, and :attr:`remark`."""
        model = str(self.config.get("model", "")).rstrip("/").split("/")[-1]
        tokens = self.config.get("tokens")
        scale = self.config.get("skip_scale")
        skips = f"  ·  skips {scale} ({self.config['skip_parts']})" if scale else ""
        title = f"{model}  ·  {tokens:,} tokens{skips}" if model and tokens else ""
        return f"{title}\n{self.remark}".strip()

    @property
    def remark(self) -> str:
        """Remark on linear maps from too few tokens; empty if the tokens suffice."""
        tokens, columns = self.config.get("tokens") or 0, self.config.get("columns", 0)
        needed = tokens_for_map(tokens, columns)
        return f"maps of {columns:,} columns: {cannot_be_said(tokens, needed)}" if needed else ""

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a data frame. ``attrs["legend"]`` has meaning and unit of its columns."""
        import pandas

        frame = pandas.DataFrame(self.rows)
        frame.attrs["legend"] = {name: str(self.meaning(name)) for name in frame.columns}
        return frame

    def rows_with(self, metric: str) -> list[dict[str, Any]]:
        """Return the rows that have a number for ``metric``, in their order.

        Raises:
            InputError: no row has that metric.
        """
        metric = current_column(metric)
        have = [row for row in self.rows if isinstance(row.get(metric), int | float)]
        if not have:
            numbers = sorted({key for row in self.rows for key, value in row.items() if isinstance(value, int | float)})
            raise InputError(f"metric: no row has {metric!r}; the rows have {', '.join(numbers)}")
        return have

    @plain_numbers
    def top(self, k: int, metric: str, ascending: bool = False) -> list[dict[str, Any]]:
        """Return the ``k`` rows with the largest or smallest numbers in a column, the most extreme row first.

        Rows without a number are left out. The baseline of a result that has one counts as a row. Rows with equal
        numbers keep their order.

        Args:
            k: number of rows.
            metric: the column.
            ascending: return the smallest numbers, smallest first, instead of the largest.

        Raises:
            InputError: no row has that metric, or ``k`` is below 1.
        """
        if k < 1:
            raise InputError(f"k: must be 1 or more, got {k}")
        rows, metric = self.rows_with(metric), current_column(metric)
        return sorted(rows, key=lambda row: row[metric], reverse=not ascending)[:k]

    def to_json(self) -> str:
        """Return ``{"kind": ..., "config": {...}, "rows": [...]}`` as JSON text."""
        document = {"kind": self.kind, "config": self.config, "rows": self.rows}
        return json.dumps(document, indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """Return the rows as comma-separated values, with an empty field for ``None``."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def save(self, folder: str | Path) -> None:
        """Write ``scores.json`` and ``scores.csv`` into a folder. Each file is replaced whole or not at all."""
        write_text(Path(folder) / "scores.json", self.to_json())
        write_text(Path(folder) / "scores.csv", self.to_csv())

    @classmethod
    def restored(cls, config: dict[str, Any], rows: list[dict[str, Any]]) -> Self:
        """Return the result that a file holds.

        Subclasses override it to read files of older versions. They fill in columns that were added since, or rename
        columns whose name has changed. No other code knows old files.
        """
        return cls(config, rows)


def load(folder: str | Path) -> Result:
    """Return the result saved in a folder, also by an older version.

    Raises:
        InputError: the folder has no result, or the file is not one of this package.
    """
    path = Path(folder) / "scores.json"
    try:
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [{RENAMED.get(key, key): value for key, value in row.items()} for row in document["rows"]]
        return KINDS[document["kind"]].restored(document["config"], rows)
    except FileNotFoundError:
        raise InputError(f"{folder}: no scores.json in it; name a folder that a command wrote with --out") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a result of fastprobe ({error!r})") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
