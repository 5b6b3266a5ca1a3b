"""Compiled programs beside the interpreter, and captured steps."""

import os
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import test_every_operation as table

from chapters import test_rewriting as page
from companion import (
    GPT,
    SGD,
    AdamW,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    MultiHeadAttention,
    Sequential,
    Tensor,
    arange,
    cat,
    clip_grad_norm_,
    cross_entropy,
    gelu,
    manual_seed,
    rand,
    set_threads,
    where,
)
from companion.activations import relu
from companion.compiler import program as compiler
from companion.compiler.capture import jit
from companion.compiler.graph import OpNode, interpret, toposort
from companion.compiler.lazy import Lazy, realize
from companion.compiler.render import C_TYPES
from companion.compiler.schedule import Kernel, Operand, prepared, schedule
from companion.device import CPU, named
from companion.dtype import bfloat16, float16, float32, float64, int64
from companion.native import POOL, key
from companion.ops import (
    ADD,
    ATTENTION,
    BUFFER,
    CONV,
    EXP,
    GATHER,
    IOTA,
    MATMUL,
    PERMUTE,
    RANDOM,
    RESHAPE,
    SCATTER,
    SHRINK,
    Window,
)
from companion.tensor import leaf
from companion.tensor.random import feed
from companion.transformer import GPTConfig, next_token_loss
from companion.view import View

LAZY = Lazy(CPU)


class Apart(compiler.Plan):
    """A plan in which every stored value keeps its memory."""

    def arrange(self):
        self.last |= dict.fromkeys(self.kept, len(self.steps))
        return super().arrange()


def values_of(program):
    """What the program has left in memory, by the node."""
    return {node: program.buffer(Operand(node, View.dense(node.shape)))
            for step in program.steps for node in step.stores
            if node in program.plan.places}


def check(roots, monkeypatch, *flags):
    """Each stored value is the interpreter's, of what it was made of."""
    monkeypatch.setattr(compiler, "Plan", Apart)
    program = compiler.compile_graph(roots, {}, *flags)
    program()
    values = values_of(program)
    for node, value in values.items():
        known = {x: v for x, v in values.items() if x is not node}
        (expected,) = interpret([node], CPU, known)
        assert_close(value.array, expected.array, repr(node))
    return program


CLOSE = {float16.numpy: 4e-3, bfloat16.numpy: 4e-2, float32.numpy: 1e-5,
         float64.numpy: 1e-12}


def assert_close(found, expected, what):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype in CLOSE:
        close = CLOSE[found.dtype]
        found, expected = [x.astype(np.float64) for x in (found, expected)]
        np.testing.assert_allclose(found, expected, close, close, err_msg=what)
    else:
        np.testing.assert_array_equal(found, expected, what)


def random_roots(seed):
    seeds = [*page.ANYTHING, *[r.left for r in [*page.RULES, *page.INDEX]]]
    for root in page.random_program(np.random.default_rng(seed), seeds):
        if all(node.dtype in C_TYPES for node in toposort(root)):
            try:
                interpret([root], CPU)
            except IndexError:
                continue  # a GATHER that is refused
            yield root


@pytest.mark.parametrize("start", range(0, 250, 25))
def test_random_programs(start, monkeypatch):
    roots = [root for seed in range(start, start + 25)
             for root in random_roots(seed)]
    check(roots, monkeypatch)


def operation_roots(name, examples):
    """What an operation makes of its usual operands, and the gradients."""
    operation, found = table.OPERATIONS[name], []

    def add(operation, draw, dtype, rng):
        results, leaves = table.computed(
            operation, draw, dtype, LAZY, operation.smooth
        )
        for y in results:
            found.append(y.buffer.node)
            if y.requires_grad:
                y.sum().backward(retain_graph=True)
        found.extend(x.grad.buffer.node for x in leaves if x.grad is not None)

    styles = (table.distinct,) if operation.smooth else operation.styles
    table.examine(name, styles, examples, add)
    return [x for x in found if x.dtype in C_TYPES]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(24))
def test_every_operation(part, monkeypatch):
    names = sorted(table.OPERATIONS)[part::24]
    roots = [root for name in names for root in operation_roots(name, 3)]
    check(roots, monkeypatch, "-O1")


def some(*shape, seed=0, device=LAZY):
    x = np.random.default_rng(seed).normal(size=shape)
    return Tensor(x, float32, device)


def kernels(*tensors):
    """How many kernels, and how many calls of the library."""
    program = compiler.compile_graph([t.buffer.node for t in tensors])
    made = [isinstance(step, Kernel) for step in program.steps]
    return sum(made), len(made) - sum(made)


def optimized():
    p = [some(64, 32, seed=s).requires_grad_() for s in range(3)]
    optimizer = AdamW(p, 1e-3)
    for _ in range(2):
        for x in p:
            x.grad = x.detach() * 2
        optimizer.step()
    return [*p, *[m for x in p for m in optimizer.state[x].values()
                  if isinstance(m, Tensor)]]


X = some(8, 96)
NAMED = {
    "softmax": (lambda: [some(8, 96).softmax(1)], (1, 0)),
    "layer norm": (lambda: [LayerNorm(96).to(LAZY)(some(8, 96))], (1, 0)),
    "a hidden layer": (lambda: [gelu(some(8, 16) @ some(16, 96) + some(96))],
                       (1, 1)),
    "mean and deviation": (lambda: [X.mean(1), X.std(1)], (1, 0)),
    "transposes": (lambda: [some(8, 6).T @ some(8, 5)], (0, 1)),
    "three updates": (optimized, (3, 0)),
}


@pytest.mark.parametrize("name", NAMED)
def test_kernels_of(name, monkeypatch):
    make, count = NAMED[name]
    tensors = make()
    assert kernels(*tensors) == count
    check([t.buffer.node for t in tensors], monkeypatch)


def network(device):
    manual_seed(3)
    model = Sequential(Linear(8, 16), LayerNorm(16), Dropout(0.3),
                       Linear(16, 4)).to(device)
    optimizer = AdamW(model.parameters(), 1e-2)

    def step(x, y):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()
    return model, optimizer, step


def batches(n):
    rng = np.random.default_rng(1)
    for _ in range(n):
        yield (Tensor(rng.normal(size=(6, 8)), float32),
               Tensor(rng.integers(0, 4, 6)))


def losses(device, wrap, n=6):
    model, optimizer, step = network(device)
    step = wrap(step)
    found = []
    manual_seed(5)
    for i, (x, y) in enumerate(batches(n)):
        if i == 4:
            optimizer.param_groups[0]["lr"] = 0.1
        found.append(step(x, y))
    return [x.item() for x in found], model, optimizer


@pytest.fixture(params=["lazy", "lazy emulated"])
def place(request):
    """A device of each kind of program: in C, and of launches."""
    return request.param


def test_a_captured_step_is_the_step(place):
    expected, model, optimizer = losses(CPU, lambda step: step)
    found, twin, other = losses(place, partial(jit, device=place))
    np.testing.assert_allclose(found, expected, 1e-5)
    for p, q in zip(model.parameters(), twin.parameters()):
        np.testing.assert_allclose(q.numpy(), p.numpy(), 1e-4, 1e-6)
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), 1e-3, 1e-6)
        assert other.state[q]["step"] == optimizer.state[p]["step"]


def reading(device, wrap, steps=200):
    """Losses of a GPT that learns to read, and its parameters."""
    manual_seed(0)
    config = GPTConfig(12, 9, 2, 2, 16, dropout=0.1)
    net = GPT(config).to(float64).to(device)
    optimizer = AdamW(net.parameters(), weight_decay=0.1)

    @wrap
    def step(x, y):
        optimizer.zero_grad()
        loss = next_token_loss(net, x, y)
        loss.backward()
        clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss.detach()
    found, draw = [], np.random.default_rng(0)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - i / steps)
        letters = np.add.outer(draw.integers(0, 9, 4), np.arange(13)) ** 2 % 9
        found.append(step(Tensor(letters[:, :-1]), Tensor(letters[:, 1:])))
    return [loss.item() for loss in found], net.parameters()


@pytest.mark.slow
def test_two_hundred_steps_of_a_gpt():
    """In float64, where little is rounded: losses, gradients, weights."""
    (expected, ours), (found, theirs) = [reading(place, wrap) for place, wrap
        in ((CPU, lambda step: step), ("lazy", jit))]
    assert expected[-1] < 0.7 * expected[0]
    np.testing.assert_allclose(found, expected, 1e-8)
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(q.numpy(), p.numpy(), 1e-6, 1e-9)
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), 1e-6, 1e-9)


@pytest.fixture
def usual_threads():
    usual = POOL.threads
    yield
    set_threads(usual)


def test_threads_agree():
    usual, found = POOL.threads, []
    try:
        for threads in (1, 2):
            set_threads(threads)
            found.append(losses("lazy", jit)[0])
    finally:
        set_threads(usual)
    assert found[0] == found[1]


def test_a_gpt(monkeypatch):
    config = GPTConfig(8, 11, 2, 2, 16)
    manual_seed(0)
    model = GPT(config).to(LAZY)
    x, y = [Tensor(np.random.default_rng(s).integers(0, 11, (3, 8)),
                   device=LAZY) for s in (1, 2)]
    loss = next_token_loss(model, x, y)
    loss.backward()
    check([loss.detach().buffer.node, *[
        p.grad.buffer.node for p in model.parameters()]], monkeypatch)


def counter(function):
    """`function` as a program, on a tensor that it may change."""
    x = Tensor([1.0, 2.0, 3.0], float32, "lazy")
    return x, jit(lambda: function(x))


def test_what_was_read_before_keeps_its_value():
    def step(x):
        x += 1
        return x * 2
    x, run = counter(step)
    seen = [run() for _ in range(4)]
    before = x + 0
    seen.append(run())
    assert before.tolist() == [5, 6, 7]
    assert [y.tolist()[0] for y in seen] == [4, 6, 8, 10, 12]
    assert x.tolist() == [6, 7, 8]


def test_equal_values_do_not_share_memory():
    a = Tensor([1.0, 2.0], float32, "lazy")
    b = a.clone()
    realize(a, b)

    @jit
    def step():
        a.assign(a + 1)
        b.assign(b * 3)
    for _ in range(4):
        step()
    assert a.tolist() == [5, 6] and b.tolist() == [81, 162]


def test_what_is_overwritten_has_been_read():
    a, b = [Tensor([v, v], float32, "lazy") for v in (1.0, 2.0)]

    @jit
    def step(x):
        old = a * 1.5
        a.assign(x * 2)
        b.assign(old + a)
    for i in range(5):
        step(Tensor([1.0 + i, 0.0], float32))
    assert a.tolist() == [10, 0] and b.tolist() == [22, 0]


def test_names_that_change_places():
    a, b = [Tensor([v], float32, "lazy") for v in (1.0, 2.0)]

    @jit
    def swap():
        old = a.clone()
        a.assign(b)
        b.assign(old + 10)
    for _ in range(5):
        swap()
    assert (a.item(), b.item()) == (22, 31)


def test_what_is_assigned_from_outside_is_seen():
    def step(x):
        x.assign(x * 2)
    x, run = counter(step)
    for _ in range(3):
        run()
    y = Tensor([1.0, 1.0, 5.0], float32, "lazy")
    x.assign(y)
    run()
    assert x.tolist() == [2, 2, 10] and y.tolist() == [1, 1, 5]
    y.assign(x)
    run()
    assert x.tolist() == [4, 4, 20] and y.tolist() == [2, 2, 10]


STATEMENTS = [
    lambda x, y, z: x.assign((y + z) % 7),
    lambda x, y, z: x.assign(y.clone()),
    lambda x, y, z: x[1:].assign((y[:-1] * 2 + 1) % 5),
    lambda x, y, z: x.T[0].assign(z.T[1] + 1),
    lambda x, y, z: x.assign((x * 2 + y.flip((1,))) % 11),
    lambda x, y, z: x.assign(x + y.sum(1, keepdim=True) % 3),
    lambda x, y, z: x.assign(y.max(0, keepdim=True) - z + x.T),
]
OUTSIDE = [lambda s: None, lambda s: s[0].assign(s[1]),
           lambda s: s.append(s[2] + 0),  # asked for, and not computed
           lambda s: s[1][0].assign(s[2][1])]


def states_after(device, seed):
    """Three states that a random step and random writes have changed."""
    rng = np.random.default_rng(seed)
    states = [Tensor(rng.integers(0, 9, (3, 3)), float32, device)
              for _ in range(3)]
    program = [(STATEMENTS[rng.integers(len(STATEMENTS))],
                rng.integers(0, 3, 3)) for _ in range(rng.integers(2, 7))]

    def step():
        for statement, which in program:
            statement(*[states[i] for i in which])
        return states[0].sum()
    step = step if device is CPU else jit(step, device)
    found = []
    for _ in range(6):
        found.append(step().item())
        OUTSIDE[rng.integers(len(OUTSIDE))](states)
    return found, [x.tolist() for x in states]


@pytest.mark.parametrize("seed", range(12))
def test_random_steps_on_shared_states(seed, place):
    one = Lazy(named(place).device)  # with no names but ours
    assert states_after(CPU, seed) == states_after(one, seed)


def test_two_programs_of_the_same_weights():
    w = Tensor([1.0, 2.0], float32, "lazy")

    @jit
    def train():
        w.assign(w * 2)

    @jit
    def evaluate():
        return w.sum()
    found = []
    for _ in range(4):
        train()
        found.append(evaluate().item())
    w.assign(Tensor([0.5, 0.5], float32, "lazy"))
    assert evaluate().item() == 1 and found == [6, 12, 24, 48]
    train()
    assert evaluate().item() == 2


def test_a_bad_index_leaves_all_as_it_was(place):
    """Also where the new value waits for the end in a place of its own."""
    table = Embedding(5, 4).to(place)
    count = Tensor([1.0, 2.0], device=place)
    optimizer = SGD(table.parameters(), 0.1)

    @partial(jit, device=place)
    def step(index):
        optimizer.zero_grad()
        table(index).square().sum().backward()
        optimizer.step()
        count.assign(count.flip(0) + 1)
    for _ in range(3):
        step(Tensor([0, 4, 2]))
    before = table.weight.numpy(), count.numpy()
    for _ in range(2):
        with pytest.raises(IndexError, match="the index 7 is out of range"):
            step(Tensor([0, 7, 2]))
        for now, then in zip((table.weight, count), before):
            assert np.array_equal(now.numpy(), then)
    step(Tensor([0, 1, 2]))
    assert not np.array_equal(table.weight.numpy(), before[0])
    assert not np.array_equal(count.numpy(), before[1])


def test_other_shapes_are_other_programs():
    run = jit(lambda x, scale: (x * scale).sum())
    for n in (3, 4, 3, 4, 3, 4):
        assert run(Tensor(np.ones(n)), 2).item() == 2 * n
        assert run(Tensor(np.ones(n)), 3).item() == 3 * n
    assert len(run.programs) == 4


def test_numbers_that_would_be_frozen_are_told():
    run = jit(lambda x: x + Tensor(np.ones(3), device="lazy"))
    x = Tensor(np.zeros(3))
    run(x)
    with pytest.raises(ValueError, match="pass them as an argument"):
        run(x)


def test_what_is_read_inside_is_told():
    """A branch on data, and a number that comes back as Python's."""
    def branches(x):
        y = x * 2
        return y if y.sum().item() > 1 else y * y.max()

    def returns(x):
        return x * float(x.sum().numpy())
    for function in (branches, returns):
        run, x = jit(function), Tensor([1.0, 2.0])
        for _ in range(2):
            with pytest.raises(ValueError, match="read it behind the call"):
                run(x)
        assert x.to("lazy").tolist() == [1, 2]  # may be read again


def test_one_tensor_for_another_is_told(capsys):
    """What Python exchanges stays exchanged only where Python runs."""
    w = Tensor([1.0, 2.0], float32, "lazy").requires_grad_()
    holder = Sequential()
    holder.state = Tensor([1.0], float32, "lazy")

    def accumulates():
        (w * w).sum().backward()

    def exchanges():
        holder.state = holder.state * 2
    for function in (accumulates, exchanges):
        run = jit(function)
        for _ in range(9):
            run()
        assert not run.programs
    assert w.grad.tolist() == [18, 36] and holder.state.item() == 512
    told = capsys.readouterr().err
    assert "asks for something else at every call" in told
    assert w.tolist() == [1, 2]

    @jit
    def assigns():
        holder.state.assign(holder.state * 2)
    before = holder.state.item()
    for _ in range(4):
        assigns()
    assert holder.state.item() == 16 * before


def test_a_gradient_outlives_its_step():
    w = Tensor([1.0, 2.0], float32, "lazy").requires_grad_()

    @jit
    def slope(x):
        w.grad = None
        (w * x).sum().backward()
    kept = []
    for n in range(5):
        slope(Tensor([n, -n], float32))
        kept.append(w.grad.clone())
        assert w.grad.tolist() == [n, -n]
    assert [g.tolist() for g in kept] == [[n, -n] for n in range(5)]


@pytest.mark.parametrize("dtype", (float16, bfloat16), ids=str)
def test_a_step_in_halves_is_the_eager_one(dtype, place):
    def trained(device, wrap):
        manual_seed(0)
        layer = Sequential(Linear(4, 8), relu, Linear(8, 2)).to(dtype)
        layer.to(device)
        optimizer = AdamW(layer.parameters(), 0.1)

        @wrap
        def step(x):
            optimizer.zero_grad()
            loss = layer(x).softmax(-1).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()
        x = Tensor(np.linspace(-1, 1, 12).reshape(3, 4), dtype, device)
        losses = [float(step(x).item()) for _ in range(6)]
        return losses, [p.to("cpu").numpy() for p in layer.parameters()]
    losses, weights = trained("cpu", lambda step: step)
    found, there = trained(place, partial(jit, device=place))
    np.testing.assert_allclose(found, losses, 2e-2)
    for x, y in zip(there, weights):
        assert x.dtype == y.dtype == dtype.numpy
        np.testing.assert_allclose(x.astype(float), y.astype(float), .1, .1)


SCALE = 1.0


def test_what_a_function_reads_is_seen(monkeypatch):
    """Modes, numbers of modules, closures, globals, and bound objects."""
    layer, factor = Sequential(Linear(2, 2), Dropout(0.9)).to("lazy"), 1.0

    class Held:
        power = 1

        def __init__(self):
            self.layer = layer

        def run(self, x):
            return (self.layer(x) * factor * SCALE).abs() ** self.power
    held = Held()
    run, x = jit(held.run), Tensor(np.ones((5, 2)), float32)

    def compare():
        for _ in range(3):
            manual_seed(1)
            found = run(x).numpy()
        manual_seed(1)
        assert np.array_equal(found, held.run(x.to("lazy")).numpy())
    compare()
    for change in (layer.eval, layer.train,
                   lambda: setattr(layer.layers[1], "p", 0.0),
                   lambda: setattr(held, "power", 2),
                   lambda: monkeypatch.setitem(globals(), "SCALE", -3.0)):
        change()
        compare()
    factor = 2.0
    compare()
    layer = held.layer = Linear(2, 2).to("lazy")
    compare()
    assert len(run.programs) == 7


def scaled_more(x):
    return x * SCALE if SCALE > 5 else scaled(x)


def scaled(x):
    return x * SCALE if SCALE < 5 else scaled_more(x)


def test_functions_that_are_called_are_looked_through(monkeypatch):
    run = jit(lambda x: scaled(x) + 1)
    for scale in (2.0, 3.0, 7.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        for n in (1.0, 2.0, 3.0):
            assert run(Tensor([n])).item() == n * scale + 1
    assert len(run.programs) == 3


def test_settings_of_an_optimizer_are_seen():
    def trained(device, wrap):
        w = Tensor([1.0, 2.0], float64, device).requires_grad_()
        optimizer = AdamW([w], 0.1)

        @wrap
        def step():
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
        for i in range(9):
            if i == 4:
                optimizer.param_groups[0].update(betas=(0.5, 0.9))
            optimizer.param_groups[0]["lr"] *= 0.9
            step()
        return w.numpy()
    np.testing.assert_allclose(
        trained("lazy", jit), trained(CPU, lambda step: step), 1e-12)


def test_a_call_that_is_never_the_same_is_told(capsys):
    run = jit(lambda x, n: x + n)
    for n in range(20):
        assert run(Tensor([1.0]), n).item() == n + 1
    told = capsys.readouterr().err
    assert told.count("was called in 16 ways") == 1


def test_a_list_to_which_a_step_appends():
    """Never the same call, so it is run as ever."""
    seen = []

    @jit
    def step(x):
        seen.append(1)
        return x * len(seen)
    assert [step(Tensor([1.0])).item() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_an_error_leaves_all_as_it_was():
    calls = iter(range(9))

    def step(x):
        x += 1
        if next(calls) == 1:
            raise RuntimeError("stop")
    x, run = counter(step)
    run()
    with pytest.raises(RuntimeError, match="stop"):
        run()
    assert x.tolist() == [2, 3, 4]
    for _ in range(3):
        run()
    assert x.tolist() == [5, 6, 7]
    assert next(calls) == 3  # a capture that fails, one that does not


def key_of_gradients():
    """What the C of a network's gradients is kept under on disk."""
    manual_seed(3)
    model = Sequential(Linear(8, 16), LayerNorm(16), Linear(16, 4)).to(LAZY)
    labels = Tensor([0, 1, 2, 3, 0, 1], device=LAZY)
    cross_entropy(model(some(6, 8)), labels).backward()
    order, roots = prepared([p.grad.buffer.node for p in model.parameters()])
    plan = compiler.Plan(schedule(order, roots), roots, {})
    return key(compiler.Code(plan).text, ())


def test_another_process_finds_what_this_one_has_compiled():
    here = Path(__file__).parent
    code = "import test_compiled; print(test_compiled.key_of_gradients())"
    path = os.pathsep.join([str(here), str(here.parent)])
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, "-c", code], check=True, text=True,
            capture_output=True, env=os.environ | {"PYTHONPATH": path})
        assert found.stdout.split() == [key_of_gradients()]


def test_random_numbers_go_on():
    def drawn(device, wrap):
        manual_seed(9)
        run = wrap(lambda: rand(3, 5, device=device))
        return [run().numpy() for _ in range(4)]
    for a, b in zip(drawn("cpu", lambda f: f), drawn("lazy", jit)):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("size", (0, 1, 31, 33, 1 << 14, 50_001))
def test_random_numbers_are_drawn_in_parts(size, usual_threads):
    for threads in (1, 2):
        set_threads(threads)
        manual_seed(size)
        node = rand(size, device=LAZY).buffer.node
        (found,), (expected,) = compiler.compile_graph([node])(), interpret(
            [node], CPU)
        assert np.array_equal(found.array, expected.array)


def test_late_gradients_are_refused():
    w = Tensor([1.0, 2.0], float32, "lazy").requires_grad_()

    @jit
    def step():
        w.detach().assign(w.detach() * 2)
    step()
    step()
    y = (w * w).sum()
    step()
    with pytest.raises(RuntimeError, match="written to"):
        y.backward()


def test_results_of_every_kind(place):
    w = Tensor([1.0, 2.0], float32, place)
    run = jit(lambda x: {"w": w, "y": [x.T[1:], (None, x.sum() > 3)],
                         "n": leaf(IOTA, 4, named(place))}, place)
    for scale in (1.0, 2.0, 3.0):
        x = np.arange(6.0).reshape(2, 3) * scale
        found = run(Tensor(x))
        assert found["w"].tolist() == [1, 2]
        assert np.array_equal(found["y"][0].numpy(), x.T[1:])
        assert found["y"][1][0] is None and found["y"][1][1].item()
        assert found["n"].tolist() == [0, 1, 2, 3]


class Pair(NamedTuple):
    x: Tensor
    scale: float


def test_nests_keep_their_kind():
    run = jit(lambda pair: Pair(pair.x * pair.scale, pair.scale))
    for n in range(4):
        found = run(Pair(Tensor([1.0 + n]), 2.0))
        assert found.x.tolist() == [2 + 2 * n] and found.scale == 2


def test_attention_with_masks(monkeypatch):
    manual_seed(1)
    layer = MultiHeadAttention(16, 4, num_kv_heads=2).to(LAZY)
    mask = where(some(5, 5) > 0, True, False)
    x = some(2, 5, 16).requires_grad_()
    y = layer(x, mask)
    y.square().sum().backward()
    check([y.detach().buffer.node, x.grad.buffer.node], monkeypatch)


def test_long_sums(monkeypatch):
    """Of whole numbers, which are exact in any order."""
    numbers = np.random.default_rng(0).integers(-99, 99, (250, 400))
    x = Tensor(numbers, float32, LAZY)
    n = Tensor(np.arange(100_000), int64, LAZY)
    program = check([t.buffer.node for t in (
        x.sum(), x.max(), n.sum(), (x * x).sum(0),
        x.reshape(10, 10_000).sum(1), x.reshape(10, 100, 100).max((1, 2)),
    )], monkeypatch)
    assert program.results[0].array == numbers.sum()
    assert program.results[2].array == 4999950000
    assert np.array_equal(program.results[3].array, (numbers ** 2).sum(0))


def turned(*shape, dtype=np.float32):
    """A leaf that lies in memory as a transpose does."""
    x = np.random.default_rng(0).normal(size=shape[::-1]).astype(dtype)
    return OpNode(BUFFER, (), CPU.adopt(x.T))


def attention_of(q):
    k = OpNode(BUFFER, (), CPU.adopt(np.ones((5, 4), np.float32)))
    mask = OpNode(BUFFER, (), CPU.adopt(np.ones((5, 6), bool).T))
    kept = OpNode(BUFFER, (), CPU.adopt(np.eye(6, 5, dtype=bool)))
    return OpNode(ATTENTION, (q, k, k, mask, kept), (0.5, True, 0.5))


WEIGHT = OpNode(BUFFER, (), CPU.adopt(np.eye(12, 5, dtype=np.float32)))
PLACES = OpNode(BUFFER, (), CPU.adopt(np.array([1, 0, 1])))
SPREAD = OpNode(BUFFER, (), CPU.adopt(np.arange(4)[::2]))
KERNEL = OpNode(BUFFER, (), CPU.adopt(
    np.arange(24, dtype=np.float32).reshape(3, 1, 2, 2, 2).swapaxes(0, 1)))
SEEN = Window(2, 1, 2, 1, 0), Window(1, 2, 1, 2, -1)


@pytest.mark.parametrize("make", [
    lambda x: OpNode(RESHAPE, (x,), (2, 12)),
    lambda x: OpNode(MATMUL, (OpNode(RESHAPE, (x,), (2, 12)), WEIGHT)),
    lambda x: OpNode(EXP, (OpNode(RESHAPE, (x,), (2, 12)),)),
    lambda x: OpNode(GATHER, (x, PLACES), 0),
    lambda x: OpNode(GATHER, (OpNode(RESHAPE, (x,), (2, 12)), PLACES), 0),
    lambda x: OpNode(SCATTER, (OpNode(PERMUTE, (
        OpNode(SHRINK, (x,), ((0, 4, 1), (0, 3, 1))),), (1, 0)), PLACES),
        (0, 2)),
    lambda x: OpNode(SCATTER, (turned(3, 4), PLACES), (0, 2)),
    lambda x: attention_of(OpNode(PERMUTE, (x,), (1, 0))),
    lambda x: attention_of(turned(6, 4)),
    lambda x: OpNode(RANDOM, (SPREAD,), (3, 5)),
    lambda x: OpNode(CONV, (OpNode(RESHAPE, (x,), (2, 1, 2, 2, 3)), KERNEL),
                     SEEN),
    lambda x: OpNode(CONV, (OpNode(PERMUTE, (OpNode(
        RESHAPE, (x,), (1, 1, 2, 3, 4)),), (0, 1, 2, 4, 3)), KERNEL), SEEN),
], ids="reshape matmul exp gather gather-reshaped scatter scatter-leaf "
       "attention attention-leaf random conv conv-turned".split())
def test_leaves_that_lie_otherwise(make, monkeypatch):
    root = make(turned(4, 6))
    program = check([root], monkeypatch)
    (expected,) = interpret([root], CPU)
    assert_close(program.results[0].array, expected.array, repr(root))


def test_lazy_leaves_lie_in_order():
    x = Tensor(np.arange(6.0).reshape(2, 3).T, device=LAZY)
    assert x.buffer.node.arg.view.is_dense


def test_long_chains_are_cut(monkeypatch):
    x = y = some(4, 6)
    for i in range(60):
        x, y = (x * 0.5).log().exp() + i, y.T[:, ::-1].reshape(4, 6)
    check([t.buffer.node for t in (x, y)], monkeypatch)


@pytest.mark.parametrize("dtype", C_TYPES, ids=str)
def test_every_dtype_is_computed(dtype, monkeypatch):
    x = Tensor([[0, 1, 2], [3, 4, 250]], int64, LAZY).to(dtype)
    found = [x.T @ x, x[[1, 0, -1]], x.max(0), x.flip(1), x == x[0]]
    check([t.buffer.node for t in found], monkeypatch)
    assert all(node.op is not BUFFER for node in toposort(
        found[0].buffer.node)[-1:])


def test_a_variable_without_a_value_is_no_matter():
    """A function may name what is assigned behind it."""
    @jit
    def early(x):
        return x + later if x.shape[0] > 1 else x
    for _ in range(3):
        assert early(Tensor([1.0])).item() == 1
    for later in (1.0, 5.0):
        for _ in range(3):
            assert early(Tensor([1.0, 2.0])).tolist() == [1 + later, 2 + later]


class Recurrent(Module):
    """A state that each call exchanges for another."""

    def __init__(self, device):
        self.h = Tensor([0.0], float32, device)

    def forward(self, x):
        self.h = self.h * 2 + x
        return self.h


def repeated(device, wrap, make, calls=8):
    """What several calls of a function return."""
    manual_seed(0)
    random.seed(0)
    run = make(device, wrap)
    return [run(i) for i in range(calls)]


def gradients_are_taken_away_outside(device, wrap):
    w = Tensor([1.0, 2.0], float32, device).requires_grad_()
    optimizer = SGD([w], 0.1)
    grads = wrap(lambda x: (w * x).sum().backward())

    def run(i):
        if i != 5:  # once they are added up
            optimizer.zero_grad()
        grads(Tensor([1.0, i], float32, device))
        clip_grad_norm_([w], 0.5)
        optimizer.step()
        return w.grad.tolist(), w.tolist()
    return run


def gradients_are_held(device, wrap):
    w, held = Tensor([1.0, 2.0], float32, device).requires_grad_(), []
    more = wrap(lambda x: (w * x).sum().backward())

    def run(i):
        more(Tensor([1.0, 1.0], float32, device))
        held.append(w.grad)
        return w.grad.tolist()
    return run


def states_are_held(device, wrap):
    net, held = Recurrent(device), []
    step = wrap(lambda x: net(x))

    def run(i):
        held.append(step(Tensor([1.0], float32, device)))
        return [h.item() for h in held]
    return run


def python_draws(device, wrap):
    step = wrap(lambda x: x * random.random())
    return lambda i: step(Tensor([1.0], float64, device)).item()


def the_next_of_an_iterator(device, wrap):
    every = iter([Tensor([i], float32, device) for i in range(9)])
    step = wrap(lambda: next(every) * 1)
    return lambda i: step().item()


def memory_is_made_late(device, wrap):
    w = Tensor([1.0, 2.0], float64, device).requires_grad_()
    optimizer = AdamW([w], 0.1)

    @wrap
    def step(x):
        optimizer.zero_grad()
        loss = (w * w * x).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def run(i):
        if i in (1, 6):
            optimizer.state.clear()
        return round(step(Tensor([1.0, 1.0], float64, device)).item(), 9)
    return run


def a_layer_is_frozen(device, wrap):
    layers = Sequential(Linear(2, 2), Linear(2, 1)).to(float64).to(device)
    optimizer = SGD(layers.parameters(), 0.1)

    @wrap
    def step(x):
        optimizer.zero_grad()
        layers(x).square().sum().backward()
        optimizer.step()

    def run(i):
        if i == 4:
            layers.layers[0].weight.requires_grad = False
        if i == 6:
            manual_seed(1)
            layers.layers[1] = Linear(2, 1).to(float64).to(device)
        step(Tensor([[1.0, -1.0]], float64, device))
        return [round(n, 9) for p in layers.parameters()
                for n in p.numpy().ravel().tolist()]
    return run


def a_helper_reads_a_mode(device, wrap):
    layer = Dropout(0.5)

    def helper(x):
        return layer(x).sum()
    step = wrap(lambda x: helper(x))

    def run(i):
        if i == 5:
            layer.eval()
        return step(Tensor(np.ones(100), float32, device)).item()
    return run


def numbers_are_fed_twice(device, wrap):
    clock = iter(range(1, 99))

    def now():
        return {"t": np.array([next(clock)], np.float32)}

    @wrap
    def step(x):
        one, other = [feed(now, device)["t"] for _ in "ab"]
        rand(3, device=device)  # which nobody reads
        return cat([one, other, rand(1, device=device)]) * x
    return lambda i: step(Tensor([1.0], float32, device)).tolist()


@pytest.mark.parametrize("make", (
    gradients_are_taken_away_outside, gradients_are_held, states_are_held,
    python_draws, the_next_of_an_iterator, memory_is_made_late,
    a_layer_is_frozen, a_helper_reads_a_mode, numbers_are_fed_twice))
def test_calls_give_what_they_would_give_without_jit(make, place):
    assert repeated(place, partial(jit, device=place), make) == repeated(
        "cpu", lambda function: function, make)


def test_a_call_that_fails_is_no_first_call():
    w = Tensor([1.0, 2.0], float64, "lazy").requires_grad_()
    optimizer, fails = AdamW([w], 0.1), [True]

    @jit
    def step():
        optimizer.zero_grad()
        (w * w).sum().backward()
        if fails:
            fails.pop()
            raise KeyboardInterrupt
        optimizer.step()
    with pytest.raises(KeyboardInterrupt):
        step()
    expected = Tensor([1.0, 2.0], float64).requires_grad_()
    eager = AdamW([expected], 0.1)
    for _ in range(6):
        step()
        eager.zero_grad()
        (expected * expected).sum().backward()
        eager.step()
    np.testing.assert_allclose(w.numpy(), expected.numpy(), 1e-12)


def test_arguments_of_all_kinds_are_told_apart():
    one, other = [Linear(2, 2).to("lazy") for _ in "ab"]
    run, x = jit(lambda f, *more, k=1: f(*more) * k), Tensor([[1.0, 2.0]])
    for f in (one, one, one, other):
        assert np.array_equal(run(f, x).numpy(), f(x.to("lazy")).numpy())
    for k in range(12):
        double = run(lambda t, k=k: t * k, x, k=2)
        assert double.tolist() == [[2 * k, 4 * k]]
    first = jit(lambda pair: pair[0] * (2 if isinstance(pair, list) else 3))
    for pair, factor in (([x], 2), ([x], 2), ((x,), 3), ([x], 2)):
        assert first(pair).tolist() == [[factor, 2 * factor]]


def test_what_is_left_on_the_processor_is_told():
    net = Linear(2, 1)
    run = jit(lambda: net(Tensor([[1.0, 2.0]])).sum().item())
    with pytest.raises(ValueError, match="asked nothing of"):
        run()
    with pytest.raises(TypeError, match="expected a lazy device, got"):
        jit(run, "cpu")


def test_results_are_detached_and_apart():
    layer = Linear(2, 2).to("lazy")
    run, x = jit(lambda x: layer(x)), Tensor([[1.0, 2.0]])
    found = [run(x * i) for i in range(1, 6)]
    assert not any(y.requires_grad for y in found)
    for i, y in enumerate(found, 1):
        expected = layer(x.to("lazy") * i).numpy()
        np.testing.assert_allclose(y.numpy(), expected, 1e-6)


def test_a_captured_function_inside_of_another():
    inner = jit(lambda x: x * 2)
    outer = jit(lambda x: inner(x) + 1)
    for i in range(5):
        assert outer(Tensor([i], float32)).item() == 2 * i + 1
    assert len(outer.programs) == 1 and not inner.programs


@pytest.mark.parametrize("dtype", (float32, float64, int64), ids=str)
@pytest.mark.parametrize("axis", (0, 1))
def test_rows_are_added_as_the_device_adds_them(dtype, axis, usual_threads):
    """In every bit, on one thread and on two; and a bad place is told."""
    rng, shape = np.random.default_rng(0), (3, 200, 70)[1 - axis:]
    x = Tensor(rng.normal(size=shape) * 9, dtype, LAZY)
    for places in (5, 2_000):
        least = 0 if axis else -places
        index = Tensor(rng.integers(least, places, shape[:-1]), int64, LAZY)
        node = OpNode(SCATTER, (x.buffer.node, index.buffer.node),
                      (axis, places))
        (expected,) = interpret([node], CPU)
        for threads in (1, 2):
            set_threads(threads)
            program = compiler.compile_graph([node])
            assert np.array_equal(program()[0].array, expected.array)
        # Floats by the library's kernel, which needs no second table.
        assert len(program.code.tasks) == dtype.is_float
        broken = OpNode(SCATTER, (x.buffer.node, index.buffer.node),
                        (axis, places // 2))
        with pytest.raises(IndexError, match="is out of range"):
            compiler.compile_graph([broken])()


def test_what_is_assigned_comes_home_or_is_told():
    """A constant without a shape; and what a bad index has broken."""
    w, table = Tensor(1.0, float32, "lazy"), Tensor(np.eye(3), device="lazy")

    @jit
    def step():
        w.assign(w * 2)
    for _ in range(3):
        step()
    w.assign(Tensor(5.0, float32, "lazy"))
    step()
    assert w.item() == 10
    w.assign(table[Tensor([7], int64, "lazy")].sum().to(float32))
    with pytest.raises(IndexError, match="the index 7 is out of range"):
        step()


def test_what_is_fed_outside_leaves_no_trace():
    run, device = jit(lambda x: x * rand(2, device="lazy")), named("lazy")
    for _ in range(3):
        run(Tensor([1.0, 2.0]))
    rand(2, device="lazy").numpy()
    assert device.feeds is None


def test_a_call_of_another_thread_is_no_part_of_a_capture():
    count, begun = Tensor([0.0], float32, "lazy"), threading.Event()
    over = threading.Event()

    @jit
    def slow(x):
        begun.set()
        over.wait(0.1)  # long enough for the other to begin
        return x * 2

    @jit
    def other(x):
        count.assign(count + x)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(6):
            begun.clear()
            called = pool.submit(slow, Tensor([1.0]))
            begun.wait(0.1)
            pool.submit(other, Tensor([1.0])).result()
            assert called.result().tolist() == [2]
    assert count.item() == 6 and len(slow.programs) == 1


def test_several_threads_call_one_program():
    w = Tensor([0.0], float64, "lazy")

    @jit
    def step(x):
        w.assign(w + x)
        return x * 2

    def calls(n):
        return [step(Tensor([n], float64)).item() for _ in range(60)]
    with ThreadPoolExecutor(3) as pool:
        for n, found in enumerate(pool.map(calls, range(3))):
            assert found == [2 * n] * 60
    assert w.item() == 180


VARIABLES = {
    "two slices": lambda a, b: [((a[3:8].exp()).sum()
                                 + (a[3:9] * a[3:9]).sum())],
    "joined both ways": lambda a, b: [cat([a, b, a]) + cat([b, a, a])],
    "padded": lambda a, b: [a.pad(((3, 2),)) + b.pad(((3, 1),))],
}


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_of_other_sizes_have_other_names(name, monkeypatch):
    a, b = some(9).requires_grad_(), some(10, seed=1)
    (made,) = VARIABLES[name](a, b)
    made.sum().backward()
    check([t.buffer.node for t in (made.detach(), a.grad)], monkeypatch)


def test_of_two_zeros_the_maximum_is_the_second():
    x, y = [Tensor(v, float32, LAZY) for v in ([-0.0, 0.0], [0.0, -0.0])]
    program = compiler.compile_graph([t.buffer.node for t in (
        1 / x.relu(), 1 / x.maximum(y), 1 / y.maximum(x))])
    assert [found.array.tolist() for found in program()] == [
        [np.inf, np.inf], [np.inf, -np.inf], [-np.inf, np.inf]]


def test_a_bad_index_that_is_a_root_is_told():
    x, k = some(9, 4), Tensor([1, 2], int64, LAZY)
    index = k * 7
    roots = [t.buffer.node for t in (index, x[index])]
    with pytest.raises(IndexError, match="the index 14 is out of range"):
        compiler.compile_graph(roots)()


def test_nothing_is_overwritten_before_a_call_that_may_fail():
    w, x = some(6, 6), some(6, 6, seed=1)

    def in_place(i, *tensors):
        order, roots = prepared([t.buffer.node for t in tensors])
        steps = schedule(order, roots)
        return not compiler.Plan(steps, roots, {i: w.buffer.node}).copies
    early, product = w - w / 10, x @ x
    assert in_place(0, early) and not in_place(0, early, product)
    assert in_place(1, product, w - w / 5)


def row(i, n=6):
    """A mask of one row, whose number is a tensor."""
    return arange(n, device=i.device).unsqueeze(1) == i


def write_rows(w, v, x, i):
    w.assign(where(row(i), x[0], w))
    v.assign(where(row(i + 1), x[1], v))
    return x @ x.T


def write_slices(w, v, x, i):
    w[1:3].assign(x[1:3] * 2)
    v[:, 2].assign(x[:, 0])
    return w.sum(1)


def exchange(w, v, x, i):
    mask = row(i) == (x < 0)
    new, other = where(mask, v, w), where(mask, w, v)
    w.assign(new), v.assign(other)
    return (x @ x.T).softmax(1)


def read_behind(w, v, x, i):
    w.assign(where(row(i), x, w))
    v.assign(where(row(i), w * 2, v))
    return w @ v.T


def move_up(w, v, x, i):
    w.assign(where(x > 0, w.flip(0), w))
    v.assign(where(row(i), v.sum(0), v))
    return w[i.reshape(1)]


def both_the_same(w, v, x, i):
    new = where(row(i), x + 1, w)
    w.assign(new), v.assign(new)
    return x.exp()


def one_in_the_other(w, v, x, i):
    w.assign(where(row(i), x, w))
    w.assign(where(row(i + 1), x + 1, w))
    v.assign(where(row(i), v, x))  # the other way round
    return x[i.reshape(1) * 1]


def of_one_row(w, v, x, i):
    w.assign(where(row(i), where(x > 0, x, w), w))
    v.assign(where(row(i).broadcast((6, 4)) & (x < 1), 0.0, v))
    return (w * 1).sum()


PATCHES = [write_rows, write_slices, exchange, read_behind, move_up,
           both_the_same, one_in_the_other, of_one_row]


def patched(step, place, wrap, dtype=float32):
    """All that four calls return and leave behind."""
    draw = np.random.default_rng(0)
    w, v = [Tensor(draw.normal(size=(6, 4)), dtype).to(place) for _ in "wv"]
    run, found = wrap(lambda x, i: step(w, v, x, i)), []
    for n in range(5):
        x = Tensor(draw.normal(size=(6, 4)), dtype).to(place)
        y = run(x, Tensor(n, int64, place))
        found += [np.array(t.float().numpy()) for t in (y, w, v)]
    return found


@pytest.mark.parametrize("dtype", [float32, bfloat16])
@pytest.mark.parametrize("device", ["lazy", "lazy emulated"])
@pytest.mark.parametrize("step", PATCHES)
def test_patches_leave_all_else_as_it_was(step, device, dtype):
    want = patched(step, CPU, lambda f: f, dtype)
    found = patched(step, device, lambda f: jit(f, device), dtype)
    tolerance = 1e-5 if dtype is float32 else 2e-2
    for one, other in zip(found, want):
        np.testing.assert_allclose(one, other, tolerance, tolerance)


@pytest.mark.parametrize("device", ["lazy", "lazy emulated"])
def test_a_patch_is_in_place_behind_all_calls(device):
    w = some(6, 4, device=device)

    def step(x, i):
        w.assign(where(row(i), x[0], w))
        return x @ x.T, x[i.reshape(1)]
    step = jit(step, device)
    for n in range(4):
        step(some(6, 4, seed=n), Tensor(n))
    (capture,) = step.programs
    plan = capture.program.plan
    assert plan.patched and not plan.copies
    before = np.array(w.numpy())
    with pytest.raises(IndexError, match="the index 6 is out of range"):
        step(some(6, 4, seed=5), Tensor(6))
    np.testing.assert_array_equal(w.numpy(), before)
    step(some(6, 4, seed=5), Tensor(5))
    np.testing.assert_array_equal(w.numpy()[5], some(6, 4, seed=5).numpy()[0])


def test_row_buffers_fit_on_the_stack_of_a_thread(monkeypatch):
    x, total = some(3, 4096), 0
    for i in range(20):
        e = (x * (0.1 * i + 0.1)).exp()
        total = total + e / e.sum(1, keepdim=True)
    program = check([total.buffer.node], monkeypatch)
    for text in program.code.texts:
        sizes = re.findall(r"float b\d+\[(\d+)\];", text)
        assert 4 * sum(map(int, sizes)) <= 1 << 18


def test_no_function_is_compiled_that_is_never_called():
    text = compiler.mathematics()
    made = re.findall(r"(?m)^static INLINE [\w ]+?(\w+)\(", text)
    assert made and all(len(re.findall(rf"\b{name}\b", text)) > 1
                        for name in made)


def test_what_is_overwritten_lies_in_order():
    x = CPU.adopt(np.arange(6.0).reshape(2, 3))
    turned = OpNode(BUFFER, (), x.moved(x.view.permute((1, 0))))
    root = OpNode(ADD, (turned, turned), turned.dtype)
    with pytest.raises(ValueError, match=r"has strides \(1, 3\); expected"):
        compiler.compile_graph([root], {0: turned})


WAYS = {"in order": lambda x: x, "a part": lambda x: x[1:3],
        "turned": lambda x: x[:3].T, "backwards": lambda x: x[::-1],
        "every other": lambda x: x[:, ::2], "promised": lambda x: x + 1}


@pytest.mark.parametrize("device", ["cpu", "lazy"])
@pytest.mark.parametrize("way", WAYS)
def test_arguments_are_read_where_they_lie(way, device):
    step = jit(lambda x: ((x * 2).sum(0), x.exp()))
    for seed in range(5):
        x = WAYS[way](Tensor(np.random.default_rng(seed).random(
            (4, 6), np.float32), device=device))
        want = np.array(x.numpy())
        for found, wanted in zip(step(x), (
                (want * 2).sum(0, dtype=float), np.exp(want))):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)
    assert len(step.programs) == 1


def test_arguments_that_are_kept_or_written():
    """What is seen of an argument behind the call has its numbers."""
    class Keeper:
        pass
    w, keeper = Tensor([1.0, 2.0], float32, device="lazy"), Keeper()

    @jit
    def step(x, y):
        keeper.x = x
        total = (x * w).sum() + y.sum()
        w.assign(w + x)
        return x, total

    value = np.array([1.0, 2.0])
    for i in range(5):
        new = np.array([i, 1.0])
        x, total = step(Tensor(new, float32), w)
        assert total.item() == (new * value).sum() + value.sum()
        value = value + new
        assert np.array_equal(w.numpy(), value)
        assert np.array_equal(x.numpy(), new)
        assert np.array_equal(keeper.x.numpy(), new)
    assert len(step.programs) == 1


def test_a_bad_index_is_told_where_it_lies():
    table = Tensor(np.eye(4), float32, device="lazy")
    step = jit(lambda at: table[at])
    for _ in range(3):
        step(Tensor([0, 3, 1])[1:])
    with pytest.raises(IndexError, match="the index 7 is out of range"):
        step(Tensor([0, 3, 7])[1:])
    assert np.array_equal(step(Tensor([9, 2, 1])[1:]).numpy(),
                          np.eye(4)[[2, 1]])


def test_a_program_forgets_what_was_lent():
    step = jit(lambda x: x * 2)
    for i in range(3):
        step(Tensor([float(i)], float32))
    program, = step.programs
    (found,) = program.program()
    assert found.array == 2  # of the call that was captured: the second


def test_results_have_memory_of_their_own_at_each_call():
    """Also those that somebody inside has kept, or that are a part."""
    class Keeper:
        pass
    keeper, w = Keeper(), Tensor(np.ones(3), float32, device="lazy")
    w.requires_grad = True

    @jit
    def step(x):
        w.grad = None
        y = w * x
        y.sum().backward()
        keeper.y = y.detach()
        return keeper.y, y.detach()[1:], w.grad, x, y.detach()[::-1]

    def wanted(i):
        x = np.arange(3.0) + i
        return [x, x[1:], x, x, x[::-1]]
    told = []
    for i in range(6):
        told.append(step(Tensor(np.arange(3.0) + i, float32)))
        assert np.array_equal(keeper.y.numpy(), wanted(i)[0])
        assert np.array_equal(w.grad.numpy(), wanted(i)[0])
    assert len(step.programs) == 1
    for i, found in enumerate(told):
        for x, want in zip(found, wanted(i)):
            assert np.array_equal(x.numpy(), want)
    told[-1][0].assign(told[-1][0] * 0)  # the name is the caller's own
    assert np.array_equal(keeper.y.numpy(), wanted(5)[0])


def test_a_result_may_become_the_state_of_another_program():
    make, start = jit(lambda x: x * 2), Tensor([1.0], float32)
    states = [make(start) for _ in range(4)]
    state = states[-1]

    @jit
    def add(x):
        state.assign(state + x)
        return state * 1
    for i in range(5):
        assert add(start).item() == 3 + i
        assert make(start).item() == 2
    assert state.item() == 7 and [x.item() for x in states[:3]] == [2, 2, 2]


@pytest.mark.parametrize("device", ["lazy", "lazy emulated"])
def test_a_maximum_equals_what_it_was_found_in(device):
    """Where a product has another reader, it may be rounded by itself,
    and in the loop of the maximum not: no gradient, or NaN."""
    def gradient(place):
        x = Tensor(np.random.default_rng(0).normal(size=(5, 33)), float32,
                   place).requires_grad_()
        scaled = x * 0.3
        y = scaled + 0.7
        highest = y.max(1, keepdim=True)
        (highest.sum() + ((y - highest) * scaled).sum()
         + (y.softmax(1) * scaled).sum()).backward()
        return x.grad
    there = gradient(device)
    (found,) = compiler.compile_graph([there.buffer.node],
                                      device=named(device).device)()
    np.testing.assert_allclose(named(device).device.host(found).array,
                               gradient("cpu").numpy(), 1e-4, 1e-5)


HITS = {"equal": lambda y: y == y.max(1, keepdim=True),
        "no difference": lambda y: y - y.max(1, keepdim=True) == 0,
        "not below": lambda y: y >= y.max(1, keepdim=True),
        "turned": lambda y: (y.max(1) == y.T).T,
        "a part": lambda y: y[:, 5:] >= y[:, 5:].max(1, keepdim=True)}


@pytest.mark.parametrize("way", HITS)
def test_a_maximum_is_found_again(way, place):
    """In another loop, whose products have another reader."""
    x = Tensor(np.random.default_rng(0).normal(size=(64, 33)), float32, place)
    scaled = x * 0.3
    y = scaled + 0.7
    hits = HITS[way](y)
    found, _ = compiler.compile_graph([
        where(hits, scaled[:, -hits.shape[1]:], 9.0).buffer.node,
        y.max(1).buffer.node], device=named(place).device)()
    chosen = named(place).device.host(found).array != 9
    assert (chosen.sum(1) == 1).all()
