"""What a compiled program reads and writes, each loop as often as it runs.

The platforms' own cost models take the body of a loop once, which says nothing of a
simulation of many steps.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}
BYTES |= {f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32)}
# What makes no array of its own.
NO_ARRAY = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional"}
NO_ARRAY |= {"call", "constant", "after-all", "partition-id", "opt-barrier"}
# What takes another view of an array.
VIEWS = {"bitcast", "copy", "reshape", "get-tuple-element"}
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that a program materialises."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How much memory it takes, without padding."""
        return self.size * BYTES.get(self.dtype, 4)

    def __str__(self) -> str:
        """As programs write it."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    root: bool
    line: str

    @property
    def bytes(self) -> int:
        """How much memory its results take."""
        return sum(array.bytes for array in self.arrays)


Computation = dict[str, Instruction]


def computations(text: str) -> tuple[dict[str, Computation], str]:
    """Returns all computations of a program by their names, and the name of the entry."""
    found: dict[str, Computation] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = header[2]
            found[name] = {}
            entry = name if header[1] else entry
        elif instruction := _instruction(line):
            found[name][instruction.name] = instruction
    return found, entry


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)", line)
    if not found:
        return None
    arrays = tuple(
        Array(dtype, tuple(map(int, re.findall(r"\d+", shape))))
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[3])
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", found[5].split("), ")[0]))
    return Instruction(found[2], found[4], arrays, operands, bool(found[1]), line)


def runs(program: dict[str, Computation], entry: str) -> Iterator[tuple[str, int]]:
    """Yields each computation that is no part of a kernel, and how often it runs."""
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        yield name, times
        for instruction in program[name].values():
            line = instruction.line.split("metadata=")[0]
            called = re.findall(r"(\w+)=%?([\w.\-]+)", line)
            if instruction.opcode == "while":
                steps = times * _steps(program, instruction, dict(called))
                waiting.append((dict(called)["body"], steps))
            elif instruction.opcode in ("call", "async-start"):
                waiting += [(n, times) for k, n in called if k in ("to_apply", "calls")]
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{(.*?)\}", line)
                names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
                names += [n for k, n in called if k.endswith("_computation")]
                waiting += [(n, times) for n in names]


def _steps(
    program: dict[str, Computation], loop: Instruction, called: dict[str, str]
) -> int:
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line)
    if known:
        return int(known[1])
    # It counts from 0 to the only number in its condition.
    lines = (each.line for each in program[called["condition"]].values())
    numbers = [
        int(n) for line in lines for n in re.findall(r"s32\[\].* constant\((\d+)\)", line)
    ]
    return max(numbers, default=1)


def moved(program: dict[str, Computation], instruction: Instruction, here: str) -> int:
    """Returns how many bytes a kernel reads and writes: of what it slices, the slices."""
    opcode, operands = instruction.opcode, instruction.operands
    if (
        opcode in NO_ARRAY
        or opcode.endswith("-done")
        or "AllocateBuffer" in instruction.line
    ):
        return 0
    if opcode.endswith("-start"):
        return 2 * instruction.arrays[0].bytes
    body = program[here]
    sizes = [body[name].bytes for name in operands if name in body]
    if opcode in SLICES:
        return 2 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2 * sizes[1]
    inner = re.search(r"calls=%?([\w.\-]+)", instruction.line)
    if opcode != "fusion" or not inner:
        return sum(sizes) + instruction.bytes
    return _moved_by(program[inner[1]])


def _moved_by(kernel: Computation) -> int:
    users: dict[str, list[Instruction]] = {name: [] for name in kernel}
    for each in kernel.values():
        for name in kernel.keys() & each.operands:
            users[name].append(each)

    def read(each: Instruction) -> int:
        size = 0
        for user in users[each.name]:
            if user.opcode in VIEWS:
                size += read(user)
            elif user.opcode in SLICES:
                size += user.bytes
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != each.name:
                return each.bytes
        return min(size, each.bytes)

    def written(each: Instruction) -> int:
        if each.opcode == "tuple":
            return sum(written(kernel[name]) for name in each.operands)
        if each.opcode in VIEWS:
            return written(kernel[each.operands[0]])
        if each.opcode == "dynamic-update-slice":
            return kernel[each.operands[1]].bytes
        return each.bytes

    parameters = (each for each in kernel.values() if each.opcode == "parameter")
    (root,) = (each for each in kernel.values() if each.root)
    return sum(map(read, parameters)) + written(root)


def cycles(instruction: Instruction) -> int:
    """Returns how many cycles the platform estimates for a kernel, 0 where it does not."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
    return int(found[1]) if found else 0
