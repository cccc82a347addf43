"""Tables in Markdown and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MISSING = "-"


def table(header: list[str], lines: list[list[Any]]) -> list[str]:
    """Lines of a table in Markdown, without the columns in which every value is missing."""
    known = [i for i in range(len(header)) if any(str(line[i]) != MISSING for line in lines)]
    cut = [[str(line[i]) for i in known] for line in [header, ["---"] * len(header), *lines]]
    return ["| " + " | ".join(cells) + " |" for cells in cut]


def said_once(lines: list[dict[str, Any]]) -> list[str]:
    """Lines of a table; columns with one value in all lines are left out of it and named in a sentence above."""
    alike = {key: lines[0][key] for key in lines[0] if len(lines) > 1 and len({str(line[key]) for line in lines}) == 1}
    told = ", ".join(f"{key} {value}" for key, value in alike.items() if value != MISSING)
    header = [key for key in lines[0] if key not in alike]
    return [
        *([f"In every line: {told}.", ""] if told else []),
        *table(header, [[line[key] for key in header] for line in lines]),
    ]


def number(value: float) -> str:
    """The value with three significant digits, or all digits before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write_csv(path: Path, columns: Sequence[str], lines: list[dict[str, Any]]) -> None:
    """Writes nested dictionaries as rows; a dot in a column's name leads into a dictionary, a missing value is empty.

    Items of a list are joined by spaces, and items of a list inside a list by colons.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows([_field(line, column) for column in columns] for line in lines)


def _field(value: Any, column: str) -> Any:
    for key in column.split("."):
        value = value.get(key, "") if isinstance(value, dict) else ""
    if isinstance(value, list):
        return " ".join(":".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return value
