"""Which cases of the intended grid of whole-model decoding have no line yet."""

import itertools
from collections.abc import Iterable
from typing import Any

HIDDEN = (1536, 2048, 4096, 8192)
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 4, 16)
SPARSITIES = (0.5, 0.75, 0.9)
CELLS = ("lstm", "qrnn")


def not_measured(found: Iterable[tuple[str, list[dict[str, Any]]]]) -> str:
    """A list in Markdown: of each hardware that has some cases of the grid, those that it lacks.

    Args:
        found: (hardware, lines of ``model_decode``); the same hardware may come several times. A line counts whatever
            its gate rank.
    """
    done: dict[str, set[tuple[Any, ...]]] = {}
    for hardware, rows in found:
        cases = {(row["cell"], row["dtype"], row["hidden"], row["batch"], row["sparsity"]) for row in rows}
        if any(case[2] in HIDDEN for case in cases):
            done.setdefault(hardware, set()).update(cases)
    text: list[str] = []
    for hardware, cases in done.items():
        lines = [line for group in itertools.product(CELLS, DTYPES, HIDDEN) if (line := _missing(group, cases))]
        text += [f"{hardware}:", "", *(f"- {line}" for line in lines or ["nothing"]), ""]
    return "\n".join(text).rstrip() or "All: there is no device with lines of these sizes."


def _missing(group: tuple[str, str, int], done: set[tuple[Any, ...]]) -> str:
    """What is missing of one cell, type and width, in words; nothing if all is there."""
    cell, dtype, hidden = group
    parts = []
    for batch in BATCHES:
        lacking = [sparsity for sparsity in SPARSITIES if (*group, batch, sparsity) not in done]
        if lacking:
            some = "" if len(lacking) == len(SPARSITIES) else f" at sparsity {', '.join(map(str, lacking))}"
            parts.append(f"{batch}{some}")
    return f"{cell.upper()}, {dtype}, H {hidden}: batch {', '.join(parts)}" if parts else ""
