"""Tables in Markdown."""

from typing import Any

MISSING = "-"


def table(header: list[str], lines: list[list[Any]]) -> list[str]:
    """Lines of a table; columns in which nothing is known are left out."""
    known = [i for i in range(len(header)) if any(str(line[i]) != MISSING for line in lines)]
    cut = [[str(line[i]) for i in known] for line in [header, ["---"] * len(header), *lines]]
    return ["| " + " | ".join(cells) + " |" for cells in cut]


def number(value: float) -> str:
    """Three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
