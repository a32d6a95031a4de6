"""Reading a compiled program's text: how often instructions run, what travels between devices, how large arrays are.

XLA's own cost analysis counts the body of a loop once, and compilers other than the CPU's drop the trip counts that
they knew; so loops are read here: a counter that starts at a constant, is compared with one, and grows by one.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-~]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-~]+) = (.*)$")
_SHAPE = re.compile(r"(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-~]+)")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-~]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-~]+))")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")
_STARTED = re.compile(r'"flag_start":"(?!-1)')
_CONSTANT = re.compile(r"^\(?(-?\d+)\)?")

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
"""Collectives; what is named after them (`-start`, `ragged-`) is of their kind."""


@dataclass(frozen=True)
class Instruction:
    """One line: `result` is its type, `rest` everything from its opcode's bracket on."""

    name: str
    result: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return _NAME.findall(self.rest[: _closing(self.rest)])


@dataclass
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""


@dataclass(frozen=True)
class Program:
    """A module's computations; `runs` is how often each is executed in one call, fused ones included.

    unknown_loops: loops whose trip count could not be read, whose bodies count once.
    """

    computations: Mapping[str, Computation]
    runs: Mapping[str, int]
    fused: frozenset[str]
    unknown_loops: int

    def instructions(self, *, fused: bool) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction that runs, its computation and how often it runs; those inside of fusions if `fused`."""
        for name, runs in self.runs.items():
            if runs and (fused or name not in self.fused):
                computation = self.computations[name]
                for instruction in computation.instructions.values():
                    yield instruction, computation, runs


def parse(text: str) -> Program:
    """A module's text as `compiled.as_text()` gives it."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":  # an attribute may go on over several lines
            current = None
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match[2], match[3])
            current.instructions[instruction.name] = instruction
            if match[1]:
                current.root = instruction.name
    runs: dict[str, int] = defaultdict(int)
    fused: set[str] = set()
    unknown: set[str] = set()
    _count(computations, entry, 1, runs, fused, unknown)
    return Program(computations, dict(runs), frozenset(fused), len(unknown))


def _instruction(name: str, text: str) -> Instruction:
    """`type opcode(operands), attributes`, where a tuple's type is in brackets."""
    end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
    result, rest = text[:end], text[end:].lstrip()
    opcode = _OPCODE.match(rest)
    return Instruction(name, result, opcode[1] if opcode else "", rest[opcode.end() - 1 :] if opcode else rest)


def _closing(text: str) -> int:
    """Where the bracket that the text begins with is closed."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place
    return len(text)


def _count(
    computations: Mapping[str, Computation],
    name: str,
    times: int,
    runs: dict[str, int],
    fused: set[str],
    unknown: set[str],
) -> None:
    """Add `times` executions of a computation and of all that it calls; of branches, as if each were taken."""
    runs[name] += times
    computation = computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            body = re.search(r"body=%?([\w.\-~]+)", instruction.rest)
            assert body is not None, instruction.name
            trips = _trip_count(computations, computation, instruction)
            if trips is None:
                unknown.add(f"{name}/{instruction.name}")
            _count(computations, body[1], times * (1 if trips is None else trips), runs, fused, unknown)
            continue
        called = _CALLED.findall(instruction.rest) if instruction.opcode in ("fusion", "call", "async-start") else []
        for listed, single in _BRANCHES.findall(instruction.rest) if instruction.opcode == "conditional" else ():
            called += _NAME.findall(listed) + ([single] if single else [])
        for callee in called:
            if callee in computations:
                if instruction.opcode == "fusion" or name in fused:
                    fused.add(callee)
                _count(computations, callee, times, runs, fused, unknown)


def _trip_count(computations: Mapping[str, Computation], outer: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs; None if its counter cannot be followed."""
    if known := _TRIP_COUNT.search(loop.rest):
        return int(known[1])
    named = re.search(r"condition=%?([\w.\-~]+)", loop.rest), re.search(r"body=%?([\w.\-~]+)", loop.rest)
    if named[0] is None or named[1] is None:
        return None
    condition, body = computations[named[0][1]], computations[named[1][1]]
    compare = _resolved(condition, condition.root)
    if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.rest:
        return None
    left, right = (_resolved(condition, operand) for operand in compare.operands)
    if left is None or left.opcode != "get-tuple-element":
        return None
    index = int(left.rest.rpartition("index=")[2].split(",")[0])
    # the bound is a constant, or travels around the loop unchanged
    bound = _value(condition, compare.operands[1])
    if bound is None and right is not None and right.opcode == "get-tuple-element":
        bound = _element(outer, loop.operands[0], int(right.rest.rpartition("index=")[2].split(",")[0]))
    start = _element(outer, loop.operands[0], index)
    step = _step(body, index)
    if bound is None or start is None or not step:
        return None
    return max(0, -(-(bound - start) // step))


def _resolved(computation: Computation, name: str) -> Instruction | None:
    """The instruction behind copies and bitcasts."""
    found = computation.instructions.get(name)
    while found is not None and found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        found = computation.instructions.get(found.operands[0])
    return found


def _value(computation: Computation, name: str) -> int | None:
    """A constant's value."""
    found = _resolved(computation, name)
    if found is None or found.opcode != "constant":
        return None
    number = _CONSTANT.match(found.rest)
    return int(number[1]) if number else None


def _element(computation: Computation, name: str, index: int) -> int | None:
    """The constant at a place of a tuple."""
    found = _resolved(computation, name)
    if found is None or found.opcode != "tuple":
        return None
    return _value(computation, found.operands[index])


def _step(body: Computation, index: int) -> int | None:
    """By how much a loop's counter grows."""
    root = _resolved(body, body.root)
    if root is None or root.opcode != "tuple":
        return None
    total, name = 0, root.operands[index]
    while True:
        found = _resolved(body, name)
        if found is None:
            return None
        if found.opcode == "get-tuple-element":
            return total
        if found.opcode != "add":
            return None
        constants = [_value(body, operand) for operand in found.operands]
        if constants[1] is None:
            constants.reverse()
            name = found.operands[1]
        else:
            name = found.operands[0]
        if constants[1] is None:
            return None
        total += constants[1]


def arrays(result: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array in a type."""
    return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _SHAPE.findall(result)]


def array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes without padding; numbers below a byte count as one."""
    bits = re.search(r"\d+", dtype)
    return math.prod(shape) * max(1, int(bits[0]) // 8 if bits else 1)


@dataclass(frozen=True)
class Collectives:
    """Bytes that one device receives in one call, by kind, and how many of each kind are started."""

    bytes: Mapping[str, int]
    count: Mapping[str, int]


def collectives(program: Program, *, devices: int) -> Collectives:
    """What travels, as the best algorithm moves it.

    Of S bytes in a group of n devices, one device receives (n − 1)/n · S when S is gathered, its sum scattered, or S
    exchanged; twice that when S is summed on all of them; and S when it is passed on.
    """
    received: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for instruction, computation, runs in program.instructions(fused=True):
        kind = _kind(instruction)
        if kind is None or _continued(instruction, computation, fused=computation.name in program.fused):
            continue
        if kind == "all-reduce" and _scattered(computation, fused=computation.name in program.fused):
            kind = "reduce-scatter-of-all"
        size = _moved(instruction, kind)
        group = _group(instruction, devices)
        share = (group - 1) / group
        match kind:
            case "collective-permute":
                part = size
            case "reduce-scatter":  # the result is one device's part
                part = size * (group - 1)
            case "all-reduce":
                part = 2 * size * share
            case _:
                part = size * share
        kind = "reduce-scatter" if kind == "reduce-scatter-of-all" else kind
        received[kind] += round(part * runs)
        count[kind] += runs
    return Collectives(dict(received), dict(count))


def _kind(instruction: Instruction) -> str | None:
    opcode = instruction.opcode.removesuffix("-start").removeprefix("ragged-")
    return opcode if opcode in KINDS else None


def _continued(instruction: Instruction, computation: Computation, *, fused: bool) -> bool:
    """Whether a fusion only goes on with a collective that another one has started."""
    if not fused:
        return False
    targets = [each.rest for each in computation.instructions.values() if each.opcode == "custom-call"]
    if any('"AsyncCollectiveStart"' in target for target in targets):
        return False
    return any('"AsyncCollectiveDone"' in target for target in targets) or bool(_STARTED.search(instruction.rest))


def _scattered(computation: Computation, *, fused: bool) -> bool:
    """Whether a fusion's all-reduce keeps only this device's part: TPU's way of writing a reduce-scatter."""
    return fused and any(each.opcode == "dynamic-slice" for each in computation.instructions.values())


def _moved(instruction: Instruction, kind: str) -> int:
    """Bytes of a collective's result; of a started one's, the result within its (operands, results, …)."""
    found = arrays(instruction.result)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        data = [each for each in found if each[1]]
        found = data[len(data) // 2 :]
    return sum(array_bytes(*each) for each in found)


def _group(instruction: Instruction, devices: int) -> int:
    """How many devices take part."""
    if found := _GROUPS.search(instruction.rest):
        return found[1].count(",") + 1
    if found := _IOTA_GROUPS.search(instruction.rest):
        return int(found[2])
    if found := _MESH_GROUPS.search(instruction.rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]) if axis in sizes)
    return devices


def logits_sized(program: Program, *, tokens: int, classes: int, widths: set[int]) -> list[str]:
    """Arrays of at least half of `tokens` × `classes` that a program holds outside of fusions: none, if loss is fused.

    Args:
      program: of one device.
      tokens: of a micro-batch on one device.
      classes: of the vocabulary on one device.
      widths: sizes of the other axis of what is no logits: the models' widths, and their parts on one device.
    """
    found: dict[str, None] = {}
    for instruction, _, _ in program.instructions(fused=False):
        if instruction.opcode in ("parameter", "get-tuple-element", "tuple", "while", "bitcast"):
            continue
        for dtype, shape in arrays(instruction.result):
            others = math.prod(shape) // classes if classes in shape else 0
            if 2 * others >= tokens and others not in widths and not set(shape) & widths:
                found[f"{dtype}[{','.join(map(str, shape))}]"] = None
    return list(found)


def matmul_flops(program: Program) -> int:
    """FLOPs of the products that a program computes on one device, as often as it does; not those inside of kernels.

    Of a convolution, as which TPU's compiler writes most products, only what falls on real elements is counted.
    """
    total = 0
    for instruction, computation, runs in program.instructions(fused=True):
        if instruction.opcode in ("dot", "convolution"):
            shapes = [arrays(computation.instructions[name].result)[0][1] for name in instruction.operands]
            output = arrays(instruction.result)[0][1]
            added = _contracted(instruction.rest, shapes[0])
            if instruction.opcode == "convolution":
                added = _convolved(instruction.rest, shapes[0], shapes[1], output)
            total += round(2 * math.prod(output) * added * runs)
    return total


def _contracted(attributes: str, left: tuple[int, ...]) -> float:
    """Products that are added up for an element of a dot's output."""
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
    return math.prod(left[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1


def _convolved(attributes: str, left: tuple[int, ...], right: tuple[int, ...], output: tuple[int, ...]) -> float:
    """The same for a convolution's, on average: windows that stick out over padding add up less."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    window = re.search(r"window=\{([^}]*)\}", attributes)
    assert labels is not None
    found: float = right[labels[2].index("i")]
    if window is None:
        return found
    sizes = re.search(r"size=([\dx]+)", window[1])
    assert sizes is not None
    widths = [int(size) for size in sizes[1].split("x")]
    written = re.search(r"pad=([\d_x-]+)", window[1])
    lows = [int(pad.split("_")[0]) for pad in written[1].split("x")] if written else [0] * len(widths)
    for axis, (width, low) in enumerate(zip(widths, lows, strict=True)):
        length, outputs = left[labels[1].index(str(axis))], output[labels[3].index(str(axis))]
        real = sum(0 <= place + tap - low < length for place in range(outputs) for tap in range(width))
        found *= real / outputs
    return found
