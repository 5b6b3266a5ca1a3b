# Tangled from launches: edit there, `make tangle`. sha256:79ed99fd2d97
"""Kernels as CUDA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from companion.compiler.loops import Line, Loops, Nest
from companion.compiler.render import (
    C_CODE, C_TYPES, WRITTEN, Writer, indented, least)
from companion.cuda import kernel_text
from companion.dtype import DType, int32, int64
from companion.gpu import CUDA_CODE, TYPES
from companion.ops import (
    ADD, BUFFER, ERF, EXP, IDIV, LOG, MAX, MOD, MUL, POW, SIN, SQRT, SUB, SUM,
    WRITE, Op)
from companion.view import row_major

BLOCK = 256  # threads


def lanes_of(width: int) -> int:
    """How many threads work on a row."""
    if width > BLOCK:
        return BLOCK  # a block: its warps share the row
    # A warp at most, which can talk without memory; no more than the
    # row has numbers, and a power of two, so that warps hold whole rows.
    return min(above(width), 32)


def above(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


CALLED = EXP, LOG, SIN, SQRT, ERF, POW, IDIV, MOD
# As the device's own kernels have it, with places for a and b.
CUDA: dict[Op, str] = C_CODE | {op: re.sub(
    r"\b[ab]\b", lambda found: f"{{{'ab'.index(found[0])}}}", CUDA_CODE[op])
    for op in CALLED}


def divisions() -> str:
    """Quotients, remainders and powers of the device's own kernels."""
    text = kernel_text("kernels/primitives.cu")
    return "\n".join(re.findall(
        r"(?ms)^template <class N> __device__ N \w+\(.*?^}\n", text))


class CudaWriter(Writer):
    """The CUDA of one kernel: a block is `up` rows of `lanes` threads."""

    room = 40 << 10  # bytes of row buffers: a block has 48 KB to share

    def __init__(self, loops: Loops):
        super().__init__(loops)
        rows = self.kernel.rows
        self.lanes = lanes_of(max([
            x.item.width for x in self.kernel.lowered.values()]))
        self.up = min(BLOCK // self.lanes, above(rows))
        # By the shape alone: sums of columns keep their bits.
        each, most = (16, 256) if loops.columns else (1, 4096)
        self.parts = max(min(-(-rows // (self.up * each)), most), 1)

    def near(self) -> int:
        return self.up * super().near()

    def line(self, line: Line) -> str:
        return CUDA_WRITTEN.get(line.op, CudaWriter.computed)(self, line)

    def computed(self, line: Line) -> str:
        kind, seen = C_TYPES[line.dtype], self.seen_as(line)
        args = [f"({seen}){x}" if seen else x for x in line.args]
        code = CUDA[line.op].format(*args, type=kind)
        return f"{kind} {line.name} = {code};"

    def converted(self, code: str, old: DType, new: DType) -> str:
        """CUDA's halves know how to become numbers, and numbers halves."""
        return f"({C_TYPES[new]})({code})"

    def seen_as(self, line: Line) -> str:
        """The type in which an operation has to see its operands, if it
        is not their own."""
        work = TYPES[line.dtype].work
        if line.op in CALLED and work is not line.dtype:
            return C_TYPES[work]
        # C++ does not say what an overflow is, but of unsigned numbers.
        wraps = line.op in (ADD, SUB, MUL) and line.dtype in (int32, int64)
        return f"unsigned {C_TYPES[line.dtype]}" if wraps else ""

    def folded(self, line: Line) -> str:
        """The next number of a thread's own share of a fold."""
        (x,) = line.args
        into = line.name if line.arg is None else f"{line.name}[k]"
        if line.op is SUM:
            return f"{into} += {x};"
        return f"{into} = {x} > {into} | {x} != {x} ? {x} : {into};"

    def walk(self, nest: Nest) -> Iterator[str]:
        """The head of a loop in which neighbours take neighbours."""
        n, size = self.lanes, math.prod(nest.inner)
        j = "i1" if len(nest.inner) == 1 else "j"
        if any(line.arg is not None for lines in nest.lines
               for line in lines if line.op in (SUM, MAX)):
            yield "#pragma unroll"
            yield f"for (int k = 0; k < {-(-size // n)}; k++) {{"
            yield f"const long {j} = threadIdx.x + {n} * k;"
            yield f"if ({j} < {size}) {{" if size % n else ""
        else:
            yield (f"for (long {j} = threadIdx.x; {j} < {size}; "
                   f"{j} += {n}) {{")
        inner = row_major(nest.inner)
        for level, (length, step) in enumerate(zip(nest.inner, inner), 1):
            if len(nest.inner) > 1:
                yield (f"const long i{level} = (int)j / {max(step, 1)} "
                       f"% {max(length, 1)};")

    def nest(self, nest: Nest) -> Iterator[str]:
        """One loop for all, and what its threads fold together."""
        for line in nest.folds:
            yield (f"{C_TYPES[line.dtype]} {line.name} = "
                   f"{least(line.op, line.dtype)};")
        head = list(self.walk(nest))
        yield from head
        for lines in nest.lines:
            yield from map(self.line, lines)
        yield from "}" * "".join(head).count("{")
        for line in nest.folds if self.lanes > 1 else ():
            yield f"{line.name} = {self.together(line)};"

    def together(self, line: Line) -> str:
        """What the threads of a row have folded, as one."""
        how = str(line.op).capitalize()
        return (f"in_block<{how}>({line.name}, room)" if self.lanes == BLOCK
                else f"in_warp<{how}, {self.lanes}>({line.name})")

    def row_line(self, line: Line) -> str:
        """A line outside of all loops; one thread is enough to write."""
        text = self.line(line)
        first = line.op is WRITE and text and self.lanes > 1
        return f"if (threadIdx.x == 0) {text}" if first else text

    def barrier(self) -> str:
        """Where threads of a row wait for what others have written."""
        if self.lanes == 1 or not self.meeting():
            return ""
        return "__syncthreads();" if self.lanes == BLOCK else (
            f"__syncwarp(lanes<{self.lanes}>());")

    def meeting(self) -> bool:
        """Whether memory is read that this kernel has written."""
        lines = [line for phase in self.loops.phases for line in [
            *phase.lines, *[x for nest in phase.nests.values()
                            for lines in nest.lines for x in lines]]]
        return any(line.op is BUFFER and not line.args
                   and line.arg.node in self.loops.at for line in lines)

    def body(self) -> Iterator[str]:
        """All that is done for one row."""
        for phase in self.loops.phases:
            yield from map(self.row_line, phase.lines)
            for nest in phase.nests.values():
                yield from self.nest(nest)
            yield self.barrier()

    def told(self) -> Iterator[str]:
        """What the kernel is told: addresses."""
        for node, name in self.slots.items():
            yield f"{C_TYPES[node.dtype]} *{name}"
        for name, kind, *_ in self.totals():
            yield f"{kind} *{name}_parts"

    def shared(self) -> Iterator[str]:
        """The block's own memory."""
        for node, name in self.rows.items():
            width = self.kernel.lowered[node].item.width
            yield f"__shared__ {C_TYPES[node.dtype]} all_{name}[" + (
                f"{max(self.up * width, 1)}];")
            yield (f"{C_TYPES[node.dtype]} *{name} = all_{name} + "
                   f"{width} * threadIdx.y;")
        size = 64 if self.lanes == BLOCK else (
            8 * BLOCK if self.loops.columns and self.up > 1 else 0)
        if size:
            yield f"__shared__ __align__(8) char room[{size}];"

    def main(self, guard: bool = False) -> str:
        """The kernel; behind a `guard` it does nothing after a fault."""
        fault = ["const long *fault"] if guard else []
        return HEAD + indented([
            f"NAME({', '.join([*fault, *self.told()])})", "{",
            "if (*fault) return;" if guard else "",
            *self.shared(), *self.begun(),
            f"for (long r = blockIdx.x * {self.up} + threadIdx.y; "
            f"r < {self.kernel.rows}; r += gridDim.x * {self.up}) {{",
            *self.body(), "}", *self.ended(), "}"])

    def begun(self) -> Iterator[str]:
        """A thread's own share of each sum of columns."""
        for name, kind, width, made in self.totals():
            first = least(made.item.node.op, made.item.node.dtype)
            yield f"{kind} {name}[{max(-(-width // self.lanes), 1)}];"
            yield f"for ({kind} &c : {name}) c = {first};"

    def ended(self) -> Iterator[str]:
        """The shares of a block's rows as one, to memory."""
        for name, _, width, made in self.totals():
            how = str(made.item.node.op).capitalize()
            whole = f"{name}[k]" if self.up == 1 else (
                f"in_column<{how}, {self.lanes}, {self.up}>"
                f"({name}[k], room)")
            yield "#pragma unroll"
            yield f"for (int k = 0; k < {-(-width // self.lanes)}; k++) {{"
            yield f"const long j = threadIdx.x + {self.lanes} * k;"
            yield f"const auto c = {whole};"
            yield (f"if (threadIdx.y == 0 && j < {width}) "
                   f"{name}_parts[blockIdx.x * {width} + j] = c;")
            yield "}"

    def last(self, guard: bool = False) -> str:
        """The kernel that adds the columns of all blocks, in order."""
        fault = ["const long *fault"] if guard else []
        lines = ["{", "if (*fault) return;" if guard else "",
                 f"__shared__ __align__(8) char room[{8 * BLOCK}];",
                 "const long j = blockIdx.x * 32 + threadIdx.x;"]
        for name, kind, width, made in self.totals():
            op, dtype = made.item.node.op, made.item.node.dtype
            how, to = str(op).capitalize(), self.slots[made.item.node]
            lines += [
                "{", f"{kind} s = {least(op, dtype)};",
                f"for (int part = threadIdx.y; part < {self.parts} && "
                f"j < {width}; part += 8)",
                f"s = {how}::join(s, {name}_parts[part * {width} + j]);",
                f"s = in_column<{how}, 32, 8>(s, room);",
                f"if (threadIdx.y == 0 && j < {width}) {to}[j] = s;", "}"]
        names = ", ".join([*fault, *self.told()])
        return HEAD + indented([f"NAME_end({names})", *lines, "}"]) if (
            self.loops.columns) else ""


CUDA_WRITTEN = WRITTEN | {SUM: CudaWriter.folded, MAX: CudaWriter.folded}

HEAD = 'extern "C" __global__ void __launch_bounds__(256)\n'
