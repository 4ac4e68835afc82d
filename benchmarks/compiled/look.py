"""What a compiled program says of itself."""

import dataclasses
import math
import re
from typing import Any

BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}
BYTES |= {f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32)}
# What makes no array of its own.
NO_ARRAY = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional"}
NO_ARRAY |= {"call", "constant", "after-all", "partition-id", "opt-barrier"}
COLLECTIVES = {"all-gather", "all-reduce", "all-to-all"}
COLLECTIVES |= {"collective-permute", "reduce-scatter"}
PRODUCT = re.compile(r" (?:dot|convolution)\(|__cublas|__triton|gemm")
# A loop over time that draws; a draw may have a loop of its own, over the digits of p.
DRAW = re.compile(r'op_name="(?:(?!draw)[^"])*while/body[^"]*(?:draw|threefry|random_bits)')


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


def look(compiled: Any) -> dict[str, Any]:
    """Reads a compiled program.

    Args:
      compiled: of ``jax.jit(...).lower(...).compile()``.

    Returns:
      Memory in MiB; how many ``kernels`` (fusions, products and calls outside of other
      kernels), ``loops`` and matrix ``products`` it has; the ``largest`` array that it
      materialises and the size of it; how many numbers its ``collectives`` send; whether
      it ``draws_in_loop`` over time; and what the cost model of the platform says, None
      where it says nothing. (A cost model takes the body of a loop once.)
    """
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    outside = list(_instructions(text))
    arrays = [array for _, _, arrays in outside for array in arrays]
    largest = max(arrays, key=lambda array: array.bytes, default=Array("pred", (0,)))
    seconds = cost.get("optimal_seconds", 0)
    return {
        "temporary": memory.temp_size_in_bytes / 2**20,
        "arguments": memory.argument_size_in_bytes / 2**20,
        "results": memory.output_size_in_bytes / 2**20,
        "kernels": sum(_is_kernel(opcode, line) for opcode, line, _ in outside),
        "loops": sum(opcode == "while" for opcode, _, _ in outside),
        "products": len(PRODUCT.findall(text)),
        "largest": str(largest),
        "largest_size": max((array.size for array in arrays), default=0),
        "collectives": _collectives(outside),
        "draws_in_loop": DRAW.search(text) is not None,
        "accessed": cost["bytes accessed"] / 2**20 if "bytes accessed" in cost else None,
        "microseconds": seconds * 1e6 if seconds > 0 else None,
    }


def _is_kernel(opcode: str, line: str) -> bool:
    if opcode == "custom-call":
        return "AllocateBuffer" not in line
    return opcode in ("fusion", "dot", "convolution", "reduce", "copy", "sort", "rng")


def _instructions(text: str) -> Any:
    """Yields opcode, line and arrays of each instruction that is no part of a kernel."""
    inner = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    name = ""
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header[1]
        found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z\-]+)\(", line)
        if not found or name in inner:
            continue
        shapes = [] if found[2] in NO_ARRAY else re.findall(r"(\w+)\[([\d,]*)\]", found[1])
        arrays = [Array(dtype, _numbers(shape)) for dtype, shape in shapes]
        yield found[2], line, arrays


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _collectives(instructions: list[Any]) -> dict[str, int]:
    sent: dict[str, int] = {}
    for opcode, _, arrays in instructions:
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            sent[kind] = sent.get(kind, 0) + sum(array.size for array in arrays)
    return sent
