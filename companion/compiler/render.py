# Tangled from codegen: edit there, `make tangle`. sha256:e97ad9386adc
"""Kernels as C."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from companion.compiler.index import limits
from companion.compiler.loops import Line, Loops, Nest
from companion.compiler.lower import Guard, Index, Load, Lowered, Var
from companion.compiler.rules import HALVES
from companion.compiler.schedule import Kernel
from companion.dtype import (
    DType, bfloat16, bool_, float16, float32, float64, int8, int32, int64,
    uint8)
from companion.ops import (
    ADD, AND, BUFFER, CAST, CONST, DIV, EQUAL, ERF, EXP, IDIV, IOTA, LESS, LOG,
    MAX, MAXIMUM, MOD, MUL, PAD, POW, SIN, SQRT, SUB, SUM, WHERE, WRITE, Op)

C_TYPES = {float32: "float", float64: "double", int32: "int", int64: "long",
           int8: "signed char", uint8: "unsigned char", bool_: "_Bool",
           float16: "half", bfloat16: "bf16"}  # two types of our own
C_CODE: dict[Op, str] = {
    ADD: "{0} + {1}", SUB: "{0} - {1}", MUL: "{0} * {1}", DIV: "{0} / {1}",
    AND: "{0} & {1}", LESS: "{0} < {1}", EQUAL: "{0} == {1}",
    MAXIMUM: "{0} > {1} | {0} != {0} ? {0} : {1}",
    WHERE: "{0} ? {1} : {2}", CAST: "({type}){0}",
    **{op: f"{str(op).lower()}_{{name}}({{args}})"
       for op in (EXP, LOG, SIN, SQRT, ERF, POW, IDIV, MOD)}}


def literal(value: Any, dtype: DType) -> str:
    """A constant, to the last bit."""
    if not dtype.is_float:
        # The least number cannot be written: its digits are read first.
        return f"({C_TYPES[dtype]})({value + 1}l - 1)" if (
            value < 0) else f"({C_TYPES[dtype]}){int(value)}l"
    if not math.isfinite(value):
        return {"nan": "NAN", "inf": "INFINITY"}.get(
            str(value), "-INFINITY")
    return f"({C_TYPES[dtype]}){value.hex()}"


def index_code(index: Index) -> str:
    terms = [f"{k} * {var_name(var)}" if k != 1 else var_name(var)
             for var, k in index.terms]
    return " + ".join([*terms, *[str(c) for c in [index.const] if c]]) or "0"


def var_name(var: Var) -> str:
    """The row's is r, a loop's i and its depth; others by their text."""
    if not var.how:
        return f"i{var.depth}" if var.depth else "r"
    sign = {"/": "q", "%": "m", "=": "g"}[var.how]
    return f"{sign}_{word_of(var.of)}_{var.by}_{var.size}"


def word_of(index: Index) -> str:
    """An index as a part of a name."""
    return re.sub(r"\W+", "_", index_code(index).replace("-", "n"))


def var_code(var: Var) -> str:
    value = index_code(var.of)
    return f"({value}) {var.how} {var.by}" if var.how != "=" else value


def guard_name(guard: Guard) -> str:
    return f"is_{word_of(guard.place)}_{guard.size}_{guard.step}"


def guard_code(guard: Guard) -> str:
    # Below zero, an unsigned number is larger than any length.
    place = index_code(guard.place)
    most = max(guard.size - 1, 0) * guard.step + min(guard.size, 1)
    inside = f"(unsigned long)({place}) < {most}"
    return inside if guard.step == 1 else (
        f"({inside}) & (({place}) % {guard.step} == 0)")


class Writer:
    """The C of one kernel; its NAME is filled in later."""

    def __init__(self, loops: Loops):
        self.loops, self.kernel = loops, loops.kernel
        self.slots = {node: f"a{i}" for i, node in enumerate(loops.nodes)}
        self.rows = {node: f"b{i}" for i, node in enumerate(loops.buffers)}
        self.parts = parts_of(self.kernel, loops)

    def place(self, load: Load) -> str:
        if load.node in self.slots:
            return f"{self.slots[load.node]}[{index_code(load.address)}]"
        near = Index(load.address.const, tuple(
            [(v, k) for v, k in load.address.terms if v.depth]))
        return f"{self.rows[load.node]}[{index_code(near)}]"

    def line(self, line: Line) -> str:
        return WRITTEN.get(line.op, Writer.computed)(self, line)

    def computed(self, line: Line) -> str:
        kind = C_TYPES[line.dtype]
        code = C_CODE[line.op].format(
            *line.args, args=", ".join(line.args), type=kind,
            name=kind.replace(" ", "_"))
        return f"{kind} {line.name} = {code};"

    def read(self, line: Line) -> str:
        value = line.args[0] if line.args else self.place(line.arg)
        if line.arg.guards:
            inside = " & ".join(map(guard_name, line.arg.guards))
            value = f"{inside} ? {value} : {self.zero(line.dtype)}"
        return f"{C_TYPES[line.dtype]} {line.name} = {value};"

    def store(self, line: Line) -> str:
        node = line.arg.node
        if node not in self.slots and node not in self.rows:
            return ""
        *where, value = line.args
        return (f"if ({where[0]}) " if where else "") + (
            f"{self.place(line.arg)} = {value};")

    def folded(self, line: Line) -> str:
        (x,) = line.args
        at = f"[{index_code(line.arg)}]" if line.arg is not None else ""
        into = f"{line.name}{at}"
        if line.op is SUM:
            return f"{into} += {x};"
        flag = (f"n{line.name}{at} |= {x} != {x}; "
                if has_flag(line.op, line.dtype) else "")
        return f"{flag}{into} = {into} > {x} ? {into} : {x};"

    def variable(self, line: Line) -> str:
        return (f"long {var_name(line.arg)} = {var_code(line.arg)};"
                if isinstance(line.arg, Var) else self.computed(line))

    def constant(self, line: Line) -> str:
        value = self.number(line.arg, line.dtype)
        return f"const {C_TYPES[line.dtype]} {line.name} = {value};"

    def position(self, line: Line) -> str:
        return f"long {line.name} = {index_code(line.arg)};"

    def padded(self, line: Line) -> str:
        name = guard_name(line.arg)
        if not line.args:
            return f"_Bool {name} = {guard_code(line.arg)};"
        return (f"{C_TYPES[line.dtype]} {line.name} = "
                f"{name} ? {line.args[0]} : {self.zero(line.dtype)};")

    def cast(self, line: Line) -> str:
        value = self.converted(line.args[0], line.arg, line.dtype)
        return f"{C_TYPES[line.dtype]} {line.name} = {value};"

    def converted(self, code: str, old: DType, new: DType) -> str:
        """The element of one dtype as one of another."""
        if HALVES & {old, new} and old is not new:
            return f"{C_TYPES[old]}_to_{C_TYPES[new]}({code})"
        return C_CODE[CAST].format(code, type=C_TYPES[new])

    def number(self, value: Any, dtype: DType) -> str:
        """A constant; of a half, by way of float32."""
        if dtype not in HALVES:
            return literal(value, dtype)
        return self.converted(literal(value, float32), float32, dtype)

    def zero(self, dtype: DType) -> str:
        """What is around a padded array."""
        return self.number(0.0, dtype) if dtype in HALVES else "0"

    def nest(self, nest: Nest) -> Iterator[str]:
        """Loops inside each other, and what they fold."""
        for line in nest.folds:
            yield f"{C_TYPES[line.dtype]} {line.name} = " + (
                f"{least(line.op, line.dtype)};")
            if has_flag(line.op, line.dtype):
                yield f"int n{line.name} = 0;"
        for level, (n, lines) in enumerate(zip(nest.inner, nest.lines), 1):
            if level == len(nest.inner):
                yield simd(nest.folds)
            yield f"for (long i{level} = 0; i{level} < {n}; i{level}++) {{"
            yield from map(self.line, lines)
        yield from "}" * len(nest.inner)
        for line in nest.folds:
            if has_flag(line.op, line.dtype):
                yield f"if (n{line.name}) {line.name} = NAN;"

    def body(self) -> Iterator[str]:
        """All that is done for one row."""
        for node, name in self.rows.items():
            width = self.kernel.lowered[node].item.width
            yield f"{C_TYPES[node.dtype]} {name}[{width}];"
        for phase in self.loops.phases:
            yield from map(self.line, phase.lines)
            for nest in phase.nests.values():
                yield from self.nest(nest)

    def pointers(self) -> Iterator[str]:
        for i, (node, name) in enumerate(self.slots.items()):
            kind = C_TYPES[node.dtype]
            yield f"{kind} *{name} = ({kind} *)p[{i}];"

    def main(self) -> str:
        """The function of one part of the rows."""
        rows, parts = self.kernel.rows, self.parts
        return indented([
            "static void NAME(void *job, long part) {", "char **p = job;",
            *self.pointers(), *self.begun(),
            f"long end = {rows}l * (part + 1) / {parts};",
            f"for (long r = {rows}l * part / {parts}; r < end; r++) {{",
            *self.body(), "}", *self.ended(), "}"])

    def totals(self) -> Iterator[tuple[str, str, int, Lowered]]:
        """Sums of columns: name, type, width and item."""
        for made, name in self.loops.columns:
            dtype = made.item.node.dtype
            kind = wide(dtype) if made.item.node.op is SUM else C_TYPES[dtype]
            yield name, kind, made.item.width, made

    def begun(self) -> Iterator[str]:
        for i, (name, kind, width, made) in enumerate(self.totals()):
            node = made.item.node
            slot = len(self.slots) + i
            yield f"{kind} *{name} = ({kind} *)p[{slot}] + part * {width};"
            yield (f"for (long i = 0; i < {width}; i++) {name}[i] = "
                   f"{least(node.op, node.dtype)};")
            if has_flag(node.op, node.dtype):
                yield f"char n{name}[{width}] = {{0}};"

    def ended(self) -> Iterator[str]:
        for name, _, width, made in self.totals():
            if has_flag(made.item.node.op, made.item.node.dtype):
                yield (f"for (long i = 0; i < {width}; i++) "
                       f"if (n{name}[i]) {name}[i] = NAN;")

    def last(self) -> str:
        """The function that adds the columns of all parts."""
        lines = ["static void NAME_end(char **p) {"]
        for name, kind, width, made in self.totals():
            node, out = made.item.node, C_TYPES[made.item.node.dtype]
            slot = len(self.slots) + int(name[1:])
            join = "s += x" if node.op is SUM else (
                "s = x > s | x != x ? x : s")
            to = list(self.slots).index(node)
            lines += [
                f"{kind} *{name} = ({kind} *)p[{slot}];",
                f"for (long i = 0; i < {width}; i++) {{",
                f"{kind} s = {name}[i], x;",
                f"for (long part = 1; part < {self.parts}; part++)",
                f"x = {name}[part * {width} + i], {join};",
                f"(({out} *)p[{to}])[i] = s;", "}"]
        return indented([*lines, "}"]) if self.loops.columns else ""

    room = 1 << 18  # bytes of row buffers: the stacks of threads are small

    def near(self) -> int:
        """Bytes of the row buffers."""
        return sum([self.kernel.lowered[x].item.width * x.dtype.itemsize
                    for x in self.rows])


WRITTEN: dict[Op, Callable[[Writer, Line], str]] = {
    BUFFER: Writer.read, WRITE: Writer.store, SUM: Writer.folded,
    MAX: Writer.folded, IDIV: Writer.variable, CONST: Writer.constant,
    IOTA: Writer.position, PAD: Writer.padded, CAST: Writer.cast}


def simd(folds: Sequence[Line]) -> str:
    """What a compiler may do with the rounds of an inner loop."""
    names = [f"reduction({'+' if f.op is SUM else 'max'}:{f.name})"
             for f in folds]
    names += [f"reduction(|:n{f.name})" for f in folds
              if has_flag(f.op, f.dtype)]
    return " ".join(["#pragma omp simd", *names])


def has_flag(op: Op, dtype: DType) -> bool:
    """Whether NaN is looked for beside a fold."""
    return op is MAX and dtype.is_float


def least(op: Op, dtype: DType) -> str:
    """What a fold begins with."""
    if op is SUM:
        return "0"
    return "-INFINITY" if dtype.is_float else literal(
        limits(dtype)[0], dtype)


def parts_of(kernel: Kernel, loops: Loops) -> int:
    """In how many parts a kernel's rows are shared among threads.

    By the shape and not by the threads: sums of columns keep their bits.
    """
    width = max([x.item.width for x in kernel.lowered.values()])
    work = kernel.rows * width * len(loops.names)
    return max(min(kernel.rows, 16, work >> 16), 1)


def indented(lines: Iterable[str]) -> str:
    """Lines of C, further to the right inside of braces."""
    found, level = [], 0
    for line in filter(None, lines):
        ends = len(line) - len(line.lstrip("}"))
        found.append("  " * (level - ends) + line)
        level += line.count("{") - line.count("}")
    return "\n".join(found)


def wide(dtype: DType) -> str:
    """What sums of columns are kept in on the way."""
    return "double" if dtype.is_float else C_TYPES[dtype]
