"""Counts of a compiled program: bytes over the interconnect and to and from the memory of a chip, VMEM of its kernels.

All counts are for one chip and one run of the program; loops count as often as they run.
"""

import math
import re
from typing import NamedTuple

from benchmarks.pod.hlo import Computation, Instruction, Program, executions

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


class Collective(NamedTuple):
    """One kind of message between devices, over a whole run of the program.

    Attributes:
        count: number of messages.
        bytes: size of the arrays that a device puts in, or of those it gets if they are wider.
        sent: bytes that a device sends if the work is spread evenly, as in a ring of the n devices of a group. Relative
            to its input that is 2 (n - 1) / n for all-reduce, (n - 1) / n for reduce-scatter and all-to-all, n - 1 for
            all-gather, and 1 for collective-permute.
    """

    count: int
    bytes: int
    sent: float


class Kernel(NamedTuple):
    """A Pallas kernel: how often it runs, the VMEM it may take and the VMEM it took, in bytes."""

    count: int
    vmem_limit: int
    vmem_used: int


# Interconnect ---------------------------------------------------------------------------------------------------------


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one group that exchange messages with each other."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if shape := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(shape[2])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?: ?\{(.*?)\})?", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'", mesh[2]) if mesh[2] else list(sizes)
        return math.prod(int(sizes[axis]) for axis in axes)
    return devices


def _sent(kind: str, size: int, group: int) -> float:
    match kind:
        case "all-reduce":
            return 2 * size * (group - 1) / group
        case "all-gather":
            return size * (group - 1)
        case "collective-permute":
            return size
        case _:
            return size * (group - 1) / group


def collectives(program: Program) -> dict[str, Collective]:
    """All messages between devices, by kind.

    The TPU compiler splits a collective into several fusions. Only the first one, which starts it, counts.
    """
    found: dict[str, Collective] = {}

    def visit(computation: Computation, times: int, fused: bool) -> None:
        starts = any('"AsyncCollectiveStart"' in i.attributes for i in computation.values())
        for instruction in computation.values():
            if instruction.opcode == "fusion":
                visit(program.computations[instruction.called("calls") or ""], times, True)
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or (
                fused and "async_collective_fusion" in instruction.attributes and not starts
            ):
                continue
            size = sum(operand.bytes for operand in computation.inputs(instruction))
            if kind == "all-reduce":
                # On a TPU it may take bfloat16 and return float32; then it sums in float32.
                size = max(size, instruction.bytes)
            sent = _sent(kind, size, _group_size(instruction.attributes, program.devices))
            old = found.get(kind, Collective(0, 0, 0.0))
            found[kind] = Collective(old.count + times, old.bytes + times * size, old.sent + times * sent)

    for name, times in executions(program).items():
        visit(program.computations[name], times, False)
    return found


# Memory ---------------------------------------------------------------------------------------------------------------

_MOVES_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id"),
    *("after-all", "iota", "async-start", "async-update", "opt-barrier"),
}
_NO_WORK = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")


def hbm_bytes(program: Program) -> int:
    """Bytes read from and written to the HBM of a chip: operands and results of instructions that lie there.

    If an instruction reads or changes a part of an array, only the part counts. Not counted are arrays that the
    compiler keeps in VMEM between instructions, padding, and repeated reads of a kernel.
    """
    return sum(
        times * sum(_traffic(program, program.computations[name], i) for i in program.computations[name].values())
        for name, times in executions(program).items()
    )


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _MOVES_NOTHING or opcode.endswith("-done") or any(n in instruction.attributes for n in _NO_WORK):
        return 0
    inputs = computation.inputs(instruction)
    if opcode in ("copy-start", "slice-start"):
        # (destination, source, context), or ((source), destination, context): the smaller array is what moves.
        moved = min(array.bytes for array in instruction.arrays[:2])
        return moved * sum(array.in_hbm for array in instruction.arrays[:2])
    if opcode == "fusion":
        return _fusion_traffic(program.computations[instruction.called("calls") or ""], instruction, inputs)
    if opcode == "dynamic-update-slice":
        return _in_hbm(inputs[1]) + (inputs[1].bytes if instruction.arrays[0].in_hbm else 0)
    read = sum(map(_in_hbm, inputs))
    # The compiler gives gathers to the SparseCore.
    gathers = opcode == "custom-call" and computation.on_sparse_core
    if opcode in ("slice", "dynamic-slice", "gather") or gathers:
        read = instruction.bytes if inputs[0].arrays[0].in_hbm else 0
    return read + _in_hbm(instruction)


def _in_hbm(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.in_hbm)


def _fusion_traffic(fused: Computation, instruction: Instruction, inputs: list[Instruction]) -> int:
    passed = re.findall(r"\{(\d*)\}: \((\d+)", re.sub(r"^.*?output_to_operand_aliasing", "", instruction.attributes))
    aliased = passed if "output_to_operand_aliasing" in instruction.attributes else []
    unread = {int(operand) for _, operand in aliased}
    unwritten = {int(place or 0) for place, _ in aliased}
    users: dict[str, list[Instruction]] = {name: [] for name in fused}
    for inner in fused.values():
        for name in inner.operands:
            users[name].append(inner)

    def part_read(name: str) -> float:
        """Bytes of a value inside the fusion that are used; infinite if all of it is."""
        total = 0.0
        for user in users[name]:
            if user.opcode == "bitcast":
                total += part_read(user.name)
            elif user.opcode in ("slice", "dynamic-slice", "gather") and user.operands[0] == name:
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            else:
                return math.inf
        return total

    def source(name: str) -> Instruction:
        inner = fused[name]
        return source(inner.operands[0]) if inner.opcode == "bitcast" else inner

    moved = 0
    for inner in fused.values():
        if inner.opcode == "parameter":
            place = int(inner.inside)
            if place not in unread and inputs[place].arrays and inputs[place].arrays[0].in_hbm:
                moved += int(min(inputs[place].bytes, part_read(inner.name)))
    root = fused.root
    results = [source(name) for name in root.operands] if root.opcode == "tuple" else [source(root.name)]
    for place, array in enumerate(instruction.arrays):
        if array.in_hbm and place not in unwritten:
            result = results[place] if len(results) == len(instruction.arrays) else None
            partial = result is not None and result.opcode == "dynamic-update-slice"
            moved += fused[result.operands[1]].bytes if partial else array.bytes
    return moved


# Kernels --------------------------------------------------------------------------------------------------------------


def kernels(program: Program) -> list[Kernel]:
    """All Pallas kernels for TPUs that the program calls."""

    def vmem(attribute: str, kernel: Instruction) -> int:
        listed = re.search(rf'"{attribute}":\[(.*?)\]', kernel.attributes)
        sizes = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', listed[1]) if listed else []
        return sum(map(int, sizes))

    return [
        Kernel(times, vmem("scoped_memory_configs", i), vmem("used_scoped_memory_configs", i))
        for name, times in executions(program).items()
        for i in program.computations[name].values()
        if i.opcode == "custom-call" and '"tpu_custom_call"' in i.attributes
    ]
