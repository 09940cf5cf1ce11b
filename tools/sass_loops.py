#!/usr/bin/env python3
"""Counts the instructions of a CUDA kernel's loops, by what executes them.

    cuobjdump -xelf all build/libkvquant_ops.a
    nvdisasm -c -g attend_cuda.1.sm_90.cubin > attend.sass
    tools/sass_loops.py attend.sass attend_direct_kernel

Prints for every loop how many instructions it has outside of inner loops, and which source line
most of them are of. How often a loop runs it does not know: that is to be multiplied by hand.
Blocks behind the kernel's end, to which rare cases branch, are no loops.
"""

import collections
import dataclasses
import pathlib
import re
import sys

UNITS = [
    ("tensor", r"HMMA"),
    ("shared", r"LDS|STS|ATOMS|SHFL"),
    ("global", r"LD|ST|RED|ATOM|CCTL"),
    ("halves", r"HFMA2|HMUL2|HADD2"),
    ("fma", r"FFMA|FMUL|FADD|IMAD"),
    ("special", r"MUFU|I2F|F2I|FRND|POPC|FLO"),
    ("control", r"BAR|WARPSYNC|BSSY|BSYNC|BRA|EXIT|CALL|RET|NOP|DEPBAR|VOTE|S2R|CS2R|R2UR"),
    ("uniform", r"U"),
]


@dataclasses.dataclass
class Instruction:
    opcode: str
    operands: str
    line: str
    is_conditional: bool


@dataclasses.dataclass
class Loop:
    begin: int
    end: int
    inner: list["Loop"] = dataclasses.field(default_factory=list)


def unit_of(opcode: str) -> str:
    return next((unit for unit, pattern in UNITS if re.match(pattern, opcode)), "integer")


def read_kernel(text: str, kernel: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of the first function whose name contains `kernel`, and its labels."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line, inside = "", False
    for row in text.splitlines():
        if section := re.match(r"\s*//-+\s+\.text\.(\S+)", row):
            if inside:
                break
            inside = kernel in section.group(1)
        elif source := re.match(r'\s*//## File "([^"]+)", line (\d+)', row):
            line = f"{source.group(1).rsplit('/', 1)[-1]}:{source.group(2)}"
        elif inside and (label := re.match(r"(\.L\w+):", row)):
            labels[label.group(1)] = len(instructions)
        elif inside and (found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(@\S+\s+)?(\S+)\s*(.*?);", row)):
            predicate, opcode, operands = found.groups()
            instructions.append(Instruction(opcode, operands, line, predicate is not None))
    return instructions, labels


def find_loops(instructions: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    ends: dict[int, int] = {}
    for i, instruction in enumerate(instructions):
        if instruction.opcode == "EXIT" and not instruction.is_conditional:
            break
        target = re.search(r"\.L\w+", instruction.operands)
        if not instruction.opcode.startswith("BRA") or target is None:
            continue
        if labels.get(target.group(), i) < i:
            ends[labels[target.group()]] = i
    top: list[Loop] = []
    open_loops: list[Loop] = []
    for begin, end in sorted(ends.items()):
        while open_loops and begin > open_loops[-1].end:
            open_loops.pop()
        loop = Loop(begin, end)
        (open_loops[-1].inner if open_loops else top).append(loop)
        open_loops.append(loop)
    return top


def show(instructions: list[Instruction], loop: Loop, depth: int) -> None:
    inner = {i for part in loop.inner for i in range(part.begin, part.end + 1)}
    own = [instructions[i] for i in range(loop.begin, loop.end + 1) if i not in inner]
    units = collections.Counter(unit_of(instruction.opcode) for instruction in own)
    lines = collections.Counter(instruction.line for instruction in own)
    parts = ", ".join(f"{unit} {count}" for unit, count in units.most_common())
    print(f"{'  ' * depth}{len(own)}: {parts}; {lines.most_common(1)[0][0]}")
    for part in loop.inner:
        show(instructions, part, depth + 1)


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    instructions, labels = read_kernel(text, sys.argv[2])
    if not instructions:
        print(f"sass_loops.py: {sys.argv[1]} has no kernel {sys.argv[2]}", file=sys.stderr)
        return 2
    print(f"{len(instructions)} instructions; in loops, their own:")
    for loop in find_loops(instructions, labels):
        show(instructions, loop, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
