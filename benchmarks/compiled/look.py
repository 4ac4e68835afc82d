"""What a compiled program says of itself."""

import re
from typing import Any

from benchmarks.compiled.traffic import (
    NO_ARRAY,
    Array,
    Instruction,
    computations,
    cycles,
    moved,
    runs,
)

COLLECTIVES = {"all-gather", "all-reduce", "all-to-all"}
COLLECTIVES |= {"collective-permute", "reduce-scatter"}
KERNELS = {"fusion", "dot", "convolution", "reduce", "copy", "sort", "rng"}
PRODUCT = re.compile(r" (?:dot|convolution)\(|__cublas|__triton|gemm")
# A loop over time that draws; a draw may have a loop of its own, over the digits of p.
DRAW = re.compile(r'op_name="(?:(?!draw)[^"])*while/body[^"]*(?:draw|threefry|random_bits)')


def look(compiled: Any) -> dict[str, Any]:
    """Reads a compiled program.

    Args:
      compiled: of ``jax.jit(...).lower(...).compile()``.

    Returns:
      Memory in MiB; how many ``kernels`` (fusions, products and calls outside of other
      kernels), ``loops`` and matrix ``products`` it has; the ``largest`` array that it
      materialises and the size of it; how many numbers its ``collectives`` send; whether
      it ``draws_in_loop`` over time. How much its kernels ``moved``, read and wrote, in
      MiB, and how many ``cycles`` the platform estimates for them, the body of a loop as
      often as it runs. The ``microseconds`` of the platform's cost model, which takes the
      body of a loop once, where there is none; None where it says nothing.
    """
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    program, entry = computations(text)
    inner = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    outside = [
        instruction
        for name, computation in program.items()
        if name not in inner
        for instruction in computation.values()
    ]
    arrays = [a for each in outside if each.opcode not in NO_ARRAY for a in each.arrays]
    kernels = [
        (instruction, name, times)
        for name, times in runs(program, entry)
        for instruction in program[name].values()
    ]
    size = sum(times * moved(program, each, name) for each, name, times in kernels)
    estimate = sum(times * cycles(each) for each, _, times in kernels)
    loops = sum(each.opcode == "while" for each in outside)
    largest = max(arrays, key=lambda array: array.bytes, default=Array("pred", (0,)))
    seconds = cost.get("optimal_seconds", 0)
    return {
        "temporary": memory.temp_size_in_bytes / 2**20,
        "arguments": memory.argument_size_in_bytes / 2**20,
        "results": memory.output_size_in_bytes / 2**20,
        "kernels": sum(map(_is_kernel, outside)),
        "loops": loops,
        "products": len(PRODUCT.findall(text)),
        "largest": str(largest),
        "largest_size": max((array.size for array in arrays), default=0),
        "collectives": _collectives(outside),
        "draws_in_loop": DRAW.search(text) is not None,
        "moved": size / 2**20,
        "cycles": estimate or None,
        "microseconds": seconds * 1e6 if seconds > 0 and not loops else None,
    }


def _is_kernel(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return "AllocateBuffer" not in instruction.line
    return instruction.opcode in KERNELS


def _collectives(instructions: list[Instruction]) -> dict[str, int]:
    sent: dict[str, int] = {}
    for instruction in instructions:
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            size = sum(array.size for array in instruction.arrays)
            sent[kind] = sent.get(kind, 0) + size
    return sent
