"""All rows, and what is meant by a name."""

import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from baselines.rows import TableRow

# In the order of the tables.
MODULES = (
    "references",
    "convnets",
    "small_vits",
    "vision_transformers",
    "self_supervised",
    "graphs",
    "graph_contrastive",
    "answering",
    "beyond",
    "students",
)


def all_rows() -> dict[str, TableRow]:
    """Every row by its name, module by module.

    Raises:
        ValueError: two rows have one name.
    """
    rows: dict[str, TableRow] = {}
    for name in MODULES:
        module = f"baselines.{name}"
        if importlib.util.find_spec(module) is None:
            continue
        for row in importlib.import_module(module).ROWS:
            if row.name in rows:
                raise ValueError(f"two rows are named {row.name!r}, one of them in {module}.")
            rows[row.name] = row
    return rows


def choose(names: Iterable[str], pretrained: str | None = None) -> list[TableRow]:
    """The rows that are named: by their names, by groups' names, or "all".

    Args:
        pretrained: folder or Hub id that the rows start from. It becomes a part of their names, so
            that a folder may hold a row with several.

    Raises:
        ValueError: there is no such row, or one starts from random weights.
    """
    rows = all_rows()
    groups: dict[str, list[str]] = {"all": list(rows)}
    for row in rows.values():
        groups.setdefault(group_name(row.group), []).append(row.name)
    chosen: dict[str, TableRow] = {}
    for name in names:
        if name not in rows and name not in groups:
            near = difflib.get_close_matches(name, [*rows, *groups], n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"there is no row or group {name!r}. {hint}`python -m baselines list` shows all."
            )
        for found in groups.get(name, [name]):
            chosen[found] = rows[found]
    if pretrained is None:
        return list(chosen.values())
    random = [row.name for row in chosen.values() if row.pretrained is None]
    if random:
        raise ValueError(
            f"--pretrained is for rows that start from trained weights; {', '.join(random)} "
            "do not. Leave them out."
        )
    return [with_weights(row, pretrained) for row in chosen.values()]


def with_weights(row: TableRow, pretrained: str) -> TableRow:
    """The row, started from other weights."""
    short = Path(pretrained).name
    return dataclasses.replace(
        row, name=f"{row.name}@{short}", title=f"{row.title} ({short})", pretrained=pretrained
    )


def group_name(group: str) -> str:
    """A group as it is typed, without the abbreviation behind it: a shell reads its brackets."""
    return group.partition(" (")[0].lower().replace(" ", "-")
