"""Reads the text of a compiled program, as ``compiled.as_text()`` gives it, and finds how often every part runs.

The text is the program of one device after all optimisations: computations, which are lists of instructions.
``hlo_counts`` counts what they move.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

ITEM_BITS = {"pred": 8, "token": 0} | {
    f"{kind}{bits}": bits for kind in ("s", "u", "f", "bf", "c") for bits in (2, 4, 8, 16, 32, 64, 128)
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")


class Array(NamedTuple):
    """One array of an instruction's result: its bytes without padding, and whether it lies in HBM."""

    bytes: int
    in_hbm: bool


class Instruction(NamedTuple):
    """``name = arrays opcode(inside), attributes``; ``operands`` are the names inside the brackets."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    inside: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the whole result."""
        return sum(array.bytes for array in self.arrays)

    def called(self, attribute: str) -> str | None:
        """Name of the computation that an attribute names, like ``body``."""
        found = re.search(rf"\b{attribute}=%([\w.-]+)", self.attributes)
        return None if found is None else found[1]


class Computation(dict[str, Instruction]):
    """Instructions by name, in order, and whether they run on a SparseCore, an extra unit of some chips."""

    on_sparse_core = False

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's result."""
        return next(instruction for instruction in self.values() if instruction.is_root)

    def inputs(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results an instruction takes."""
        return [self[name] for name in instruction.operands]


class Program(NamedTuple):
    """Computations by name, and which of them is the whole program."""

    computations: dict[str, Computation]
    entry: str
    devices: int


# Reading --------------------------------------------------------------------------------------------------------------


def _balanced(text: str, start: int) -> int:
    """The position after the bracket that closes the bracket at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"A bracket is not closed in {text[start : start + 80]!r}.")


def _array(found: re.Match[str]) -> Array:
    kind, sizes, layout = found.groups()
    if kind not in ITEM_BITS:
        raise ValueError(f"The program has an array of type {kind}, whose size is not known here.")
    bits = ITEM_BITS[kind] * math.prod(int(size) for size in sizes.split(",") if size)
    space = re.search(r"S\((\d+)\)", layout or "")
    return Array(-(-bits // 8), space is None or space[1] == "0")


def _instruction(line: str) -> Instruction:
    head, _, rest = line.strip().partition(" = ")
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _balanced(rest, opening)
    inside = rest[opening + 1 : closing - 1]
    return Instruction(
        head.removeprefix("ROOT ").lstrip("%"),
        tuple(_array(found) for found in _ARRAY.finditer(rest[:end])),
        rest[end:opening].strip(),
        inside,
        tuple(re.findall(r"%([\w.-]+(?:#\d+)?)", inside)),
        rest[closing:],
        head.startswith("ROOT "),
    )


def _element(whole: Instruction, place: int) -> Instruction:
    """Newer compilers write ``%name#place`` for an array of a result, where older ones have an instruction for it."""
    attributes, name = f", index={place}", f"{whole.name}#{place}"
    return Instruction(name, (whole.arrays[place],), "get-tuple-element", "", (whole.name,), attributes, False)


def parse(text: str) -> Program:
    """Reads the text of a compiled program.

    Raises:
        ValueError: the text is not a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.rstrip().endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current = computations[name] = Computation()
            entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("}") and current is not None:
            current.on_sparse_core = 'execution_thread="sparsecore"' in line
            current = None
        elif current is not None and " = " in line:
            # The body of a kernel is long and not part of the program's text.
            instruction = _instruction(re.sub(r'"body":"[^"]*"', '"body":""', line))
            for operand in instruction.operands:
                name, _, place = operand.partition("#")
                if place and operand not in current:
                    current[operand] = _element(current[name], int(place))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("The text has no ENTRY computation; it must be that of a compiled program.")
    devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Program(computations, entry, int(devices[1]) if devices else 1)


# How often it runs ----------------------------------------------------------------------------------------------------


def trip_count(program: Program, loop: Instruction) -> int:
    """How often the body of a while loop runs, if that is fixed: a counter from 0 in steps of 1, as in ``scan``.

    Raises:
        ValueError: the number cannot be read from the program.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = program.computations[loop.called("condition") or ""]
    root = condition.root
    if root.opcode == "compare" and "direction=LT" in root.attributes:
        limits = [instruction for instruction in condition.inputs(root) if instruction.opcode == "constant"]
        if len(limits) == 1 and limits[0].inside.isdigit():
            return int(limits[0].inside)
    raise ValueError(f"How often the loop {loop.name} runs cannot be read from its condition.")


def executions(program: Program) -> Counter[str]:
    """How often every computation runs, except those that are fused. All branches of a conditional count."""
    counts: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        counts[name] += times
        for instruction in program.computations[name].values():
            match instruction.opcode:
                case "while":
                    visit(instruction.called("body") or "", times * trip_count(program, instruction))
                case "conditional":
                    listed = r"(?:branch_computations=\{|(?:true|false)_computation=)([^}=]*)"
                    for branch in re.findall(r"%([\w.-]+)", " ".join(re.findall(listed, instruction.attributes))):
                        visit(branch, times)
                case "call":
                    visit(instruction.called("to_apply") or "", times)
                case "async-start":
                    visit(instruction.called("calls") or "", times)

    visit(program.entry, 1)
    return counts
