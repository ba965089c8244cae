"""Markdown tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_FIGURE = frozenset("0123456789")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a column in which all begin with a digit stands on the right."""
    cells = [list(row) for row in rows]
    marks = [
        "---:" if column and all(cell[:1] in _FIGURE for cell in column if cell) else "---"
        for column in ([row[place] for row in cells] for place in range(len(head)))
    ]
    return "\n".join(line(row) for row in (head, marks, *cells)) + "\n"


def line(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"
