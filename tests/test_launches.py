"""Programs of launches beside the interpreter, on the emulated card."""

import math
from functools import partial

import numpy as np
import pytest
import test_compiled as programs
from test_gpu import STAND_IN

from companion import (
    GPT,
    AdamW,
    LayerNorm,
    MultiHeadAttention,
    Tensor,
    gelu,
    manual_seed,
    where,
)
from companion.buffer import Buffer
from companion.compiler import program as compiler
from companion.compiler.capture import jit
from companion.compiler.cuda import CudaWriter
from companion.compiler.graph import OpNode, interpret, toposort
from companion.compiler.launch import LaunchProgram
from companion.compiler.lazy import Lazy
from companion.compiler.render import C_TYPES
from companion.compiler.schedule import Call, size_of
from companion.cuda import (
    PROCESSORS,
    Emulator,
    Recorded,
    kernel_names,
    races,
    trace,
    usage,
)
from companion.device import CPU, named
from companion.dtype import float32, int64
from companion.gpu import GPU
from companion.ops import BUFFER
from companion.transformer import GPTConfig, next_token_loss

LAZY = programs.LAZY
some = programs.some


def there(gpu, node):
    """A leaf in the card's memory, as it lies here."""
    x = node.arg
    memory = gpu.adopt(np.array(x.storage.bytes))
    return OpNode(BUFFER, (), Buffer(memory.storage, x.view, x.dtype))


def moved(gpu, roots):
    """The roots on leaves of the card, and what these are here."""
    new, known = {}, {}
    for node in toposort(*roots):
        if node.op is BUFFER:
            new[node] = there(gpu, node)
            known[new[node]] = node.arg
        else:
            new[node] = OpNode(
                node.op, tuple([new[x] for x in node.src]), node.arg)
    return [new[root] for root in roots], known


def compare(values, known):
    """Each value is the interpreter's, of what it was made of."""
    for node, value in values.items():
        others = {x: v for x, v in values.items() if x is not node}
        (expected,) = interpret([node], CPU, known | others)
        programs.assert_close(value.array, expected.array, repr(node))


def check(gpu, roots, monkeypatch, *flags):
    """A program of which each stored value is as it should be."""
    monkeypatch.setattr(compiler, "Plan", programs.Apart)
    roots, known = moved(gpu, roots)
    program = compiler.compile_graph(roots, {}, *flags, device=gpu)
    assert isinstance(program, LaunchProgram)
    program()
    compare({node: gpu.host(value) for node, value
             in programs.values_of(program).items()}, known)
    return program


def nodes(*tensors):
    return [t.buffer.node for t in tensors]


@pytest.fixture
def gpu():
    return named("emulated")


@pytest.mark.parametrize("start", range(0, 250, 25))
def test_random_programs(gpu, start, monkeypatch):
    roots = [root for seed in range(start, start + 25)
             for root in programs.random_roots(seed)]
    check(gpu, roots, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(24))
def test_every_operation(gpu, part, monkeypatch):
    names = sorted(programs.table.OPERATIONS)[part::24]
    roots = [root for name in names
             for root in programs.operation_roots(name, 3)]
    check(gpu, roots, monkeypatch)


def gradients(make, *leaves):
    """What is made of leaves, and the gradients of its sum."""
    for x in leaves:
        x.requires_grad_()
    y = make(*leaves)
    y.square().sum().backward()
    return nodes(y.detach(), *[x.grad for x in leaves])


def attention():
    manual_seed(1)
    layer = MultiHeadAttention(16, 4, num_kv_heads=2).to(LAZY)
    mask = where(some(5, 5) > 0, True, False)
    return gradients(lambda x: layer(x, mask), some(2, 5, 16))


def strange():
    """NaN, infinities, rows that are masked to the end; two zeros."""
    x = Tensor([[0.0, math.inf, 1.0], [math.nan, 3.0, -math.inf],
                [-math.inf, -math.inf, 2.0]], float32, LAZY)
    zeros = Tensor([-0.0, 0.0], float32, LAZY)
    return nodes(x.max(1), x.max(0), x.sum(1), x.sum(0), x.exp(), 1 / x,
                 x.maximum(x.T), x < 1, x.softmax(1), x.erf(), x == x,
                 (x * -math.inf).softmax(1), 1 / zeros.maximum(zeros.flip(0)),
                 1 / zeros.relu())


def empty():
    x = some(3, 4)
    none, nowhere = x[:0], some(5, 0)
    return nodes(none + 1, none.sum(0), none.sum(), none.T.sum(1), x.sum(),
                 x[:, :0].sum(1), x[:, :0].sum(0), x.max() + x[0, 0],
                 nowhere.exp().sum(), nowhere.sum(1), nowhere.flip(1).sum())


def of_kind(dtype):
    x = Tensor([[0, 1, 2], [3, 4, 250]], int64, LAZY).to(dtype)
    return nodes(x.T @ x, x[[1, 0, -1]], x.max(0), x.max(1), x.flip(1),
                 x == x[0], x[:, ::2], x.pad(((1, 0), (0, 2))))


def wide_rows():
    """More row buffers than a block has room for."""
    x, total = some(3, 4096), 0
    for i in range(5):
        e = (x * (0.1 * i + 0.1)).exp()
        total = total + e / e.sum(1, keepdim=True)
    return nodes(total)


def wholes():
    numbers = np.random.default_rng(0).integers(-99, 99, (120, 150))
    x = Tensor(numbers, float32, LAZY)
    n = Tensor(np.arange(20_000), int64, LAZY)
    return nodes(x.sum(), x.max(), n.sum(), (x * x).sum(0), x.max(0),
                 x.reshape(2, 9_000).sum(1), n.reshape(1000, 20).max(0),
                 x.reshape(10, 60, 30).max((1, 2)))


def turned(rows, width):
    """Threads read what others of their row have written."""
    e = some(rows, width).exp()
    return nodes(e, e.flip(1) + 1)


NAMED = {
    "turned, 12": partial(turned, 9, 12),
    "turned, 96": partial(turned, 9, 96),
    "turned, 1000": partial(turned, 9, 1000),
    "sums of rows": lambda: nodes(some(9, 70).sum(1), some(9, 700).max(1)),
    "softmax": lambda: gradients(lambda x: x.softmax(1), some(70, 96)),
    "wide softmax": lambda: gradients(lambda x: x.softmax(1), some(3, 1000)),
    "layer norm": lambda: gradients(
        LayerNorm(40).to(LAZY), some(300, 40)),
    "wide layer norm": lambda: gradients(
        LayerNorm(300).to(LAZY), some(70, 300)),
    "narrow layer norm": lambda: gradients(
        LayerNorm(5).to(LAZY), some(999, 5)),
    "hidden": lambda: gradients(
        lambda x, w, b: gelu(x @ w + b), some(8, 16), some(16, 96), some(96)),
    "updates": lambda: nodes(*programs.optimized()),
    "attention": attention, "strange": strange, "empty": empty,
    "wide rows": wide_rows, "whole numbers": wholes,
    "slices": lambda: gradients(
        lambda a: (a[3:8].exp()).sum() + (a[3:9] * a[3:9]).sum(), some(9)),
    "stepped": lambda: gradients(
        lambda a: (a[1::3, ::2] * a[:3, 4:]).flip((0, 1)), some(9, 9)),
    **{str(dtype): partial(of_kind, dtype) for dtype in C_TYPES}}


@pytest.mark.parametrize("name", NAMED)
def test_named_programs(gpu, name, monkeypatch):
    check(gpu, NAMED[name](), monkeypatch)


def traced(gpu, roots):
    """The program, each launch of its kernels with its accesses noted."""
    roots, known = moved(gpu, roots)
    program = compiler.compile_graph(roots, {}, device=gpu)
    room = {node: np.array(x.storage.bytes) for node, x in known.items()}
    room["fault"] = np.zeros(4, np.int64)
    for step in program.steps:
        room |= {x: np.zeros(max(size_of(x), 8), np.uint8)
                 for x in step.stores}
    room |= {key: np.zeros(size, np.uint8) for key, (size, *_)
             in program.plan.spans.items() if isinstance(key, tuple)}

    def value(node):
        return known.get(node) or CPU.adopt(room[node][:size_of(node)].view(
            node.dtype.numpy).reshape(node.shape))
    for i, step in enumerate(program.steps):
        if isinstance(step, Call):
            here = {x: value(x) for x in step.reads}
            (found,) = interpret([step.node], CPU, here)
            room[step.node][:size_of(step.node)] = (
                found.dense().storage.bytes[:size_of(step.node)])
            continue
        for one in program.code.launches[i]:
            yield one.kernel, trace(
                program.compiled, one.kernel, one.grid, one.block,
                *[room[what] for what in one.told])
    compare({node: value(node) for node in program.plan.places
             if isinstance(node, OpNode) and node not in known}, known)


@pytest.mark.parametrize("name", NAMED)
def test_kernels_have_no_races(gpu, name):
    """Nor does any of them leave its arrays."""
    for kernel, seen in traced(gpu, NAMED[name]()):
        assert not len(races(seen)), kernel


def test_random_kernels_have_no_races(gpu):
    roots = [root for seed in range(24)
             for root in programs.random_roots(seed)]
    for kernel, seen in traced(gpu, roots):
        assert not len(races(seen)), kernel


BROKEN = {
    "barrier": ("", ["turned, 12", "turned, 96", "turned, 1000"]),
    "row_line": (lambda writer, line: writer.line(line), ["sums of rows"])}


@pytest.mark.parametrize("method, name", [
    (method, name) for method, (_, names) in BROKEN.items()
    for name in names])
def test_a_race_would_be_found(gpu, method, name, monkeypatch):
    wrong = BROKEN[method][0]
    monkeypatch.setattr(CudaWriter, method, wrong or (lambda writer: ""))
    launches = traced(gpu, NAMED[name]())
    assert len(races(next(launches)[1]))


def in_order(order, roots):
    gpu = GPU("emulated", Emulator(order))
    program = compiler.compile_graph(moved(gpu, roots)[0], device=gpu)
    return [gpu.host(x).array.tobytes() for x in program()]


def test_threads_in_any_order_give_the_same_bits():
    roots = [root for name in ("layer norm", "wide softmax", "slices",
                               "whole numbers", "narrow layer norm")
             for root in NAMED[name]()]
    found = in_order(1, roots)
    for order in (-1, 7, 1001):
        assert in_order(order, roots) == found


def recorded(gpu, roots, calls=3):
    """What a program gives on its leaves as they grow from call to call."""
    roots, known = moved(gpu, roots)
    program = compiler.compile_graph(roots, device=gpu)
    for _ in range(calls):
        found = [gpu.host(x) for x in program()]
        for value, expected in zip(found, interpret(roots, CPU, known)):
            programs.assert_close(value.array, expected.array, "a root")
        for leaf, here in known.items():
            if here.dtype.is_float:
                here.array[...] *= 1.1
                gpu.put(leaf.arg, here.array)
    return program


@pytest.mark.parametrize("name", ["hidden", "attention", "whole numbers"])
def test_a_card_records_what_stands_between_products(name):
    """On a stand-in for CuPy, which refuses in a recording what it does."""
    program = recorded(STAND_IN, NAMED[name]())
    products = sum(part.product for part in program.parts)
    graphs = [run for run in program.replay if isinstance(run, Recorded)]
    assert len(program.replay) == products + len(graphs)
    assert len(graphs) <= products + 1 and graphs
    inside = sum(len(run.graph.launches) for run in graphs)
    assert inside >= len(program.parts) - products


def launched(function):
    return jit(function, "lazy emulated")


def test_a_gpt_learns_as_ever():
    """In float64, where little is rounded: losses, gradients, weights."""
    (expected, ours), (found, theirs) = [
        programs.reading(place, wrap, 20) for place, wrap in (
            (CPU, lambda step: step), ("lazy emulated", launched))]
    np.testing.assert_allclose(found, expected, 1e-8)
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(q.numpy(), p.numpy(), 1e-6, 1e-9)
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), 1e-6, 1e-9)


def test_what_another_has_asked_is_told_first():
    """A wrong index of others is not taken for the program's."""
    gpu = named("emulated")
    double = launched(lambda x: x * 2)
    for _ in range(2):
        double(Tensor([1.0]))
    Tensor([1.0, 2.0], device=gpu)[Tensor([9], device=gpu)]
    with pytest.raises(IndexError, match="the index 9 is out of range"):
        double(Tensor([1.0]))
    assert double(Tensor([3.0])).item() == 6


def test_devices_without_programs_are_told():
    class Other(type(CPU)):
        name = "other"
    with pytest.raises(TypeError, match="no programs are made for .* other"):
        jit(lambda x: x * 2, Lazy(Other()))


def step_text():
    """The CUDA of a GPT's training step."""
    program = capture_gpt().program
    return program.code.text


def capture_gpt():
    manual_seed(0)
    net = GPT(GPTConfig(8, 11, 2, 2, 16, dropout=0.1)).to("lazy emulated")
    optimizer = AdamW(net.parameters(), 1e-3)

    @launched
    def step(x, y):
        optimizer.zero_grad()
        loss = next_token_loss(net, x, y)
        loss.backward()
        optimizer.step()
        return loss.detach()
    for seed in range(3):
        x, y = [Tensor(np.random.default_rng(seed).integers(0, 11, (3, 8)))
                for _ in "xy"]
        step(x, y)
    return step.programs[0]


def texts():
    """All CUDA of this file, as one program for each."""
    gpu = named("emulated")
    for name in NAMED:
        yield name, compiler.compile_graph(
            moved(gpu, NAMED[name]())[0], device=gpu).code.text
    roots = [r for seed in range(250) for r in programs.random_roots(seed)]
    yield "random programs", compiler.compile_graph(
        moved(gpu, roots)[0], {}, device=gpu).code.text
    yield "a step", step_text()


@pytest.mark.needs("cupy")
@pytest.mark.slow
@pytest.mark.parametrize("arch", PROCESSORS)
def test_nvidias_compiler_takes_every_text(arch):
    for name, text in texts():
        found = usage(text, arch=arch)
        assert sorted(found) == sorted(kernel_names(text))
        for kernel, use in found.items():
            # The slow way through a division may save a few registers.
            assert use.spilled <= 64, (name, kernel)
            assert use.shared <= 48 << 10, (name, kernel)
