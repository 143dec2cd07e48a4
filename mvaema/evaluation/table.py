"""What a table is, as Markdown too, and how a figure is written in its cells."""

import html
from collections.abc import Mapping
from typing import NamedTuple


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def markdown(table: Table) -> str:
    """A table as Markdown, under its title."""

    def line(cells: list[str]) -> str:
        # Neither a pipe nor markup in an answer may end the cell.
        clean = (" ".join(html.escape(c, quote=False).split()).replace("|", "\\|") for c in cells)
        return f"| {' | '.join(clean)} |"

    rows = [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]
    note = f"\n{table.note}\n" if table.note else ""
    return f"## {table.title}\n\n" + "\n".join(rows) + f"\n{note}"


def mean_std(score: Mapping | None) -> str:
    return f"{score['mean']:.3f}±{score['std']:.3f}" if score and score["n"] else "–"


def mean_interval(score: Mapping | None) -> str:
    return f"{score['mean']:z.3f} {interval(score)}" if score and score["n"] else "–"


def interval(score: Mapping, form: str = "z.3f") -> str:
    return "–" if score["low"] is None else f"[{score['low']:{form}}, {score['high']:{form}}]"
