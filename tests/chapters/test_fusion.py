# Tangled from fusion: edit there, `make tangle`. sha256:8ef74d266cd3
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from companion.attention import attention_weights
from companion.compiler.graph import OpNode, interpret
from companion.compiler.lazy import Lazy, realize
from companion.compiler.lower import (
    Guard, Index, Lowering, Scalar, Var, address_of, as_item, lower, stripped)
from companion.compiler.schedule import (
    Call, Kernel, Step, prepared, schedule, traffic)
from companion.device import CPU
from companion.dtype import float32
from companion.layers import LayerNorm
from companion.ops import (
    ADD, BUFFER, CONST, EXPAND, FLIP, MATMUL, MAX, MAXIMUM, MUL, PAD, PERMUTE,
    RESHAPE, SHRINK, SIN, SUM, Op)
from companion.optim import AdamW, decay_groups
from companion.tensor import Tensor
from companion.tensor.random import manual_seed
from companion.training import clip_grad_norm_
from companion.transformer import CONFIGS, GPT, MLP, Block, next_token_loss

ROWS = np.random.default_rng(0).normal(size=(768, 128))


def softmax(device: Any) -> list[Tensor]:
    return [Tensor(ROWS, float32, device).softmax(1)]


def norm(device: Any, back: bool = False) -> list[Tensor]:
    layer = LayerNorm(128).to(device)
    x = Tensor(ROWS, float32, device).requires_grad_()
    y = layer(x)
    if back:
        y.backward(Tensor(ROWS[::-1].copy(), float32, device))
    parts = [x, layer.weight, layer.bias] if back else []
    return [y.detach(), *[cast(Any, part).grad for part in parts]]


def mlp(device: Any) -> list[Tensor]:
    manual_seed(0)
    model = MLP(CONFIGS["cpu"]).to(device)
    return [model(Tensor(ROWS, float32, device)).detach()]


def attention(device: Any) -> list[Tensor]:
    q, k, v = [Tensor(ROWS.reshape(12, 4, 64, 32) * n, float32, device)
               for n in (1, 2, 3)]
    return [attention_weights(q, k) @ v]


def block(device: Any, back: bool = False) -> list[Tensor]:
    manual_seed(0)
    model = Block(CONFIGS["cpu"]).to(device)
    x = Tensor(ROWS.reshape(12, 64, 128), float32, device).requires_grad_()
    y = model(x)
    if back:
        y.backward(Tensor(ROWS.reshape(12, 64, 128), float32, device))
    parts: list[Any] = [x, *model.parameters()] if back else []
    return [y.detach(), *[part.grad for part in parts]]


PROGRAMS: dict[str, Callable[[Any], list[Tensor]]] = {
    "softmax": softmax, "layer norm": norm,
    "and its gradients": lambda device: norm(device, True),
    "gelu MLP": mlp, "plain attention": attention, "GPT block": block,
    "forth and back": lambda device: block(device, True)}


def training(device: Any) -> Callable[[], list[Tensor]]:
    """A function that takes one step, and returns what it changes."""
    manual_seed(0)
    model = GPT(CONFIGS["cpu"]).to(device)
    optimizer = AdamW(decay_groups(model, 0.1), 1e-3, (0.9, 0.99))
    numbers = np.random.default_rng(0)

    def take() -> list[Tensor]:
        tokens, after = [Tensor(numbers.integers(0, 65, (12, 64)),
                                device=device) for _ in range(2)]
        loss = next_token_loss(model, tokens, after)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state = [m for parameter in model.parameters()
                 for m in optimizer.state[parameter].values()
                 if isinstance(m, Tensor)]
        return [loss.detach(), *model.parameters(), *state]
    return take


def number(index: Index, place: Sequence[Any]) -> Any:
    """The index, where the loops stand at `place`: ints or arrays."""
    return index.const + sum([k * value_of(var, place)
                              for var, k in index.terms])


def value_of(var: Var, place: Sequence[Any]) -> Any:
    if not var.how:
        return place[var.depth]
    whole, by = number(var.of, place), max(var.by, 1)
    return {"=": whole, "/": whole // by, "%": whole % by}[var.how]


def holds(guard: Guard, place: Sequence[Any]) -> Any:
    at = number(guard.place, place)
    return (at >= 0) & (at < guard.size * guard.step) & (
        at % max(guard.step, 1) == 0)


Memory = dict[OpNode, np.ndarray]  # flat, and a 0 behind the last element


def computed(scalar: Scalar, place: Sequence[Any], memory: Memory,
             known: dict[Scalar, np.ndarray]) -> np.ndarray:
    """The scalar at a row and at all places within it."""
    if scalar in known:
        return known[scalar]
    src = [computed(x, place, memory, known) for x in scalar.src]
    if scalar.op is BUFFER:
        load, inside = scalar.arg, np.array(True)
        for guard in load.guards:
            inside = inside & holds(guard, place)
        found = memory[load.node][
            np.where(inside, number(load.address, place), -1)]
    elif scalar.op is PAD:
        found = np.where(holds(scalar.arg, place), src[0], 0)
    elif not src:
        found = scalar.arg if scalar.op is CONST else number(
            scalar.arg, place)
    else:
        found = CPU.run(scalar.op, *[
            CPU.adopt(np.array(x)) for x in np.broadcast_arrays(*src)],
            arg=scalar.arg).array
    known[scalar] = np.asarray(found).astype(scalar.dtype.numpy)
    return known[scalar]


def run_kernel(kernel: Kernel, memory: Memory, rng: Any) -> None:
    """Make the items, row by row, in any order of the rows."""
    parts = {node: np.zeros((kernel.rows, made.item.width), node.dtype.numpy)
             for node, made in kernel.lowered.items()
             if made.item.kind == "column"}
    for row in rng.permutation(kernel.rows).tolist():
        for node, made in kernel.lowered.items():
            place = [row, *np.indices(made.inner)]
            found, at = [np.broadcast_to(each, made.inner) for each in (
                computed(made.scalar, place, memory, {}),
                number(address_of(made.item, made.inner), place))]
            if made.item.kind == "column":
                parts[node][row, at] = found
            elif made.item.kind == "row":
                memory[node][row] = folded(node, found.reshape(-1, 1))[0]
            else:
                memory[node][at] = found
    for node, part in parts.items():
        memory[node][:-1] = folded(node, part)


def folded(node: OpNode, part: np.ndarray) -> np.ndarray:
    """A reduction of each column."""
    return CPU.run(node.op, CPU.adopt(part), arg=(0,)).array[0]


def run_steps(steps: Sequence[Step], order: Sequence[OpNode],
              seed: int = 0) -> Memory:
    """What the steps leave in memory."""
    rng, memory = np.random.default_rng(seed), Memory()
    for node in order:
        if node.op is BUFFER:
            flat = node.arg.storage.bytes.view(node.dtype.numpy)
            memory[node] = np.append(flat, flat.dtype.type(0))
    for node in [n for step in steps for n in step.stores]:
        size = math.prod(node.shape)
        memory[node] = np.append(np.full(size, 77), 0).astype(
            node.dtype.numpy)
    for step in steps:
        if isinstance(step, Kernel):
            run_kernel(step, memory, rng)
        else:
            src = [CPU.adopt(memory[x.node]).moved(x.view)
                   for x in step.operands]
            found = CPU.run(step.node.op, *src, arg=step.node.arg)
            memory[step.node][:-1] = found.array.ravel()
    return memory


def compare(roots: Sequence[OpNode], seed: int = 0,
            close: float = 1e-9) -> list[Step]:
    """Each root is the interpreter's; and the steps that made it."""
    order, new = prepared(roots)
    steps = schedule(order, new)
    memory = run_steps(steps, order, seed)
    for root, expected in zip(new, interpret(roots, CPU)):
        (found,) = interpret([root], CPU, {
            n: CPU.adopt(m[:-1].reshape(n.shape))
            for n, m in memory.items() if n.op is not BUFFER})
        np.testing.assert_allclose(
            found.array, expected.array, close, close, err_msg=repr(root))
    return steps


MOVES: dict[Op, Callable[..., Any]] = {
    PERMUTE: lambda rng, s: tuple(rng.permutation(len(s)).tolist()),
    FLIP: lambda rng, s: (int(rng.integers(len(s))),),
    RESHAPE: lambda rng, s: [(*s[::-1],), (math.prod(s),), (1, *s)][
        int(rng.integers(3))],
    SHRINK: lambda rng, s: tuple([(int(n > 3), n, 1 + (n > 4)) for n in s]),
    PAD: lambda rng, s: tuple([(1, 0, 1 + (n < 3)) for n in s]),
    EXPAND: lambda rng, s: (2, *s)}


def grown(rng: Any, pool: list[OpNode]) -> OpNode:
    """Some operation on nodes of the pool."""
    a = pool[rng.integers(len(pool))]
    alike = [node for node in pool if node.shape == a.shape]
    b = alike[rng.integers(len(alike))]
    axis = int(rng.integers(len(a.shape)))
    matrices = len(a.shape) == 2 and math.prod(a.shape) < 100
    turned = OpNode(PERMUTE, (b,), (1, 0)) if matrices else b
    empty = a.shape[axis] == 0  # and has no maximum
    fold = OpNode((SUM, MAX)[0 if empty else rng.integers(2)], (a,), (axis,))
    return [
        OpNode(SIN, (a,)), OpNode((ADD, MUL)[rng.integers(2)], (a, b)),
        OpNode(MAXIMUM, (a, b)), fold, OpNode(EXPAND, (fold,), a.shape),
        OpNode(MATMUL, (a, turned)) if matrices else a,
        *[OpNode(op, (a,), make(rng, a.shape)) for op, make in MOVES.items()
          if math.prod(a.shape) < 100]][rng.integers(6 + 6 * (
              math.prod(a.shape) < 100))]


def test_a_schedule_means_what_the_graph_means():
    sizes = list[int]()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        pool = [OpNode(BUFFER, (), CPU.adopt(rng.normal(size=shape)))
                for shape in ((4, 6), (6, 4), (4, 6), (0, 3))]
        # As a transpose lies in memory.
        pool += [OpNode(BUFFER, (), CPU.adopt(rng.normal(size=(6, 4)).T))]
        for _ in range(16):
            pool.append(grown(rng, pool))
        for step in compare(pool[-6:], seed):
            sizes.append(len(step.stores))
    # Some kernels must have had many items, or this would show little.
    assert max(sizes) > 4 and sum(size > 1 for size in sizes) > 30


def test_an_element_is_found_through_all_movements():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(1, 6, 3).tolist())
        count = math.prod(shape)
        base = OpNode(BUFFER, (), CPU.adopt(np.arange(1, count + 1)))
        node = OpNode(RESHAPE, (base,), shape)
        for op in rng.choice(np.array(list(MOVES), object), 4):
            node = OpNode(op, (node,), MOVES[op](rng, node.shape))
        made = lower(as_item(node), Lowering({base}))
        (expected,) = interpret([node], CPU)
        memory = {base: np.array([*range(1, count + 1), 0])}
        found = [np.broadcast_to(computed(
            made.scalar, [row, *np.indices(made.inner)], memory, {}),
            made.inner).ravel() for row in range(made.item.rows)]
        assert np.concatenate(found).tolist() == (
            expected.array.ravel().tolist())


LAZY = Lazy(CPU)


def some(*shape: int) -> Tensor:
    x = np.random.default_rng(0).normal(size=shape)
    return Tensor(x, float32, LAZY)


def steps_of(*tensors: Tensor) -> list[Step]:
    roots: list[Any] = [t.buffer for t in tensors]
    return schedule(*prepared([x.node for x in roots]))


def kinds(*tensors: Tensor) -> list[str]:
    """Of each step: the operations that reach memory."""
    return [" ".join(str(x.op) for x in step.stores)
            for step in steps_of(*tensors)]


def test_softmax_is_one_kernel():
    assert kinds(some(4, 96).softmax(1)) == ["MAX EXP SUM DIV"]
    assert kinds((some(4, 8) @ some(8, 96)).softmax(1)) == [
        "MATMUL", "MAX EXP SUM DIV"]
    # Of columns, a kernel knows no sum before its end.
    assert kinds(some(4, 96).softmax(0)) == ["MAX", "EXP SUM", "DIV"]


def test_what_is_cheap_is_computed_again():
    x, y = [some(4, 64) for _ in range(2)]
    y = y + 1
    a = x * 2
    assert kinds(a.sum(1), a.T + 1) == ["SUM ADD"]
    # Two reads, or an exponential: it had better be stored.
    for b, op in ((x * y, "MUL"), (x.exp(), "EXP")):
        assert kinds(b.sum(1), b.T + 1) == [f"{op} SUM", "ADD"]
    # An exponential for each row is no reason to store the matrix.
    b = x * some(4, 1).exp()
    assert kinds(b.sum(1), b.T + 1) == ["EXP SUM", "ADD"]
    # What is made of a stored value by one cheap operation is not.
    b = x.exp()
    assert kinds(b.sum(1), (b * 2).T + 1, (b * 2).max(1)) == [
        "EXP SUM MAX", "ADD"]


MOST = {"softmax": (1, 0), "layer norm": (1, 0), "and its gradients": (1, 0),
        "gelu MLP": (1, 2), "plain attention": (2, 1), "GPT block": (6, 5),
        "forth and back": (11, 14)}


def numbers_of(tensors: Sequence[Tensor]) -> tuple[int, int]:
    found = Counter(type(step) for step in steps_of(*tensors))
    return found[Kernel], found[Call]


def test_named_programs_have_few_kernels():
    for name, make in PROGRAMS.items():
        kernels, calls = numbers_of(make(LAZY))
        assert kernels <= MOST[name][0] and calls <= MOST[name][1], name


def test_bytes_of_a_softmax():
    roots: Any = [x.buffer for x in softmax(LAZY)]
    order, new = prepared([x.node for x in roots])
    assert traffic(schedule(order, new), new) == 2 * 4 * 768 * 128


def test_a_training_step_has_few_kernels():
    take = training(LAZY)
    realize(*take())
    buffers: list[Any] = [t.buffer for t in take()]
    order, roots = prepared([x.node for x in buffers])
    steps = schedule(order, roots)
    kernels = [step for step in steps if isinstance(step, Kernel)]
    assert len(kernels) <= 95 and len(steps) <= 160
    assert traffic(steps, roots) < 225e6
    new = {stripped(root) for root in roots}
    updates = [len(new & {*step.stores}) for step in kernels]
    assert sum(n > 1 for n in updates) <= 5  # AdamW, over all parameters
    assert sum(n for n in updates if n > 1) >= len(new) - 1
