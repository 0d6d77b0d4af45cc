"""Equations of docstrings as TeX, for the site. In the code they are plain text, for terminals and editors.

The notation is that of the docstrings: ``Σ_f RSS_f``, ``S_xy``, ``x̄``, ``r2_cv``, ``k in K``. Text that stands three
spaces or more to the right of an equation is a remark or another equation.
"""

from __future__ import annotations

import re
import unicodedata

from fastprobe.regression.scores import COLUMNS

ACCENTS = {"\u0304": r"\bar", "\u0302": r"\hat"}
SYMBOLS = {
    "Σ": r"\sum ",
    "sum": r"\sum ",
    "θ": r"\theta ",
    "·": r"\cdot ",
    "!=": r"\neq ",
    ">=": r"\geq ",
    "<=": r"\leq ",
    "{": r"\{",
    "}": r"\}",
}
FUNCTIONS = ("tr", "last")
_TOKEN = re.compile(
    r"(?P<power>\^(?:\d+(?:/\d+)?|\w))"
    r"|(?P<below>_(?:\{[^}]*\}|[A-Za-z]+))"
    r"|(?P<symbol>sum(?=_))"
    r"|(?P<name>r2\w*|[a-z]{2,}(?:_[a-z]+)+|[A-Za-z]{2,})"
    r"|(?P<letter>[A-Za-zθΣ][\u0304\u0302]?)"
    r"|(?P<sign>!=|>=|<=|[{}·])"
    r"|(?P<other>.)",
    re.DOTALL,
)


def tex(equation: str) -> list[str] | None:
    """Return the lines of an equation as TeX; ``None`` if they are code."""
    lines = [line.strip() for line in unicodedata.normalize("NFD", equation).splitlines() if line.strip()]
    if "[" in equation or not any(_is_formula(line) for line in lines):
        return None
    return [r" \qquad ".join(_part(part) for part in re.split(r"\s{3,}|,\s{2,}", line)) for line in lines]


def _is_formula(text: str) -> bool:
    """Return True for text with a sign of equality, or with a sum."""
    return bool(re.search(r"(?<![!<>])=|sum_", text))


def _part(text: str) -> str:
    """Return an equation, or a remark beside it."""
    if _is_formula(text) or re.fullmatch(r"\w+(, \w+)*", text):
        return _formula(text)
    return r"\text{" + unicodedata.normalize("NFC", text) + "}"


def _formula(text: str) -> str:
    return "".join(_symbol(match) for match in _TOKEN.finditer(text))


def _symbol(match: re.Match) -> str:
    """Return one symbol of a formula."""
    text = match[0]
    match match.lastgroup:
        case "power":
            return "^{" + ("\\top" if text == "^T" else text[1:]) + "}"
        case "below":
            return "_{" + _formula(text[1:].strip("{}")) + "}" if "{" in text else "_{" + text[1:] + "}"
        case "name":
            if text == "in":
                return r"\in "
            return SYMBOLS.get(text) or _name(text)
        case "letter":
            letter = SYMBOLS.get(text[0], text[0])
            return letter if len(text) == 1 else f"{ACCENTS[text[1]]}{{{letter}}}"
        case "sign" | "symbol":
            return SYMBOLS[text]
    return text


def _name(text: str) -> str:
    """Return the name of a score or a function in upright type, or a word with spaces around it."""
    base, below, index = text.partition("_")
    if base in ("RSS", "TSS") and below:
        return rf"\mathrm{{{base}}}_{{{index}}}"
    if text.islower() and text not in COLUMNS and text not in FUNCTIONS:
        return rf"\text{{ {text} }}"
    return r"\mathrm{" + text.replace("_", r"\_") + "}"
