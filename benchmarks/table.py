"""The figures as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Line", "table", "verdict"]

_WIDEST_CELL = 16


@dataclass(frozen=True)
class Line:
    """One figure: a cell for each column that has one, and how it compares with its target."""

    title: str
    cells: dict[str, str]
    ratio: str
    target: str
    verdict: str


def verdict(kind: Literal[">=", "<="], value: float | None, wanted: float) -> str:
    """In one word, whether *value* is as *wanted*."""
    if value is None:
        return "no figure"
    return "reached" if (value >= wanted if kind == ">=" else value <= wanted) else "missed"


def table(lines: Sequence[Line]) -> str:
    """Every line below the names of the columns; what is too long for a cell stands below the table."""
    columns = list(dict.fromkeys(column for line in lines for column in line.cells))
    notes: list[str] = []
    rows = [["figure", *columns, "ratio", "target", ""]]
    for line in lines:
        cells = [_short(line.cells.get(column, ""), column, notes) for column in columns]
        rows.append([line.title, *cells, line.ratio, line.target, line.verdict])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = [_text(row, widths) for row in rows]
    texts.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join([*texts, *dict.fromkeys(notes)])


def _short(cell: str, column: str, notes: list[str]) -> str:
    if len(cell) <= _WIDEST_CELL:
        return cell
    notes.append(f"{column}: {cell}")
    return "no figure"


def _text(row: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    last = len(row) - 1
    cells = [
        cell.ljust(width) if i in (0, last - 1, last) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
