# Tangled from acceleration: edit there, `make tangle`. sha256:913e3d69334d
from __future__ import annotations

import math
import os
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from companion.accelerate import (
    CHOICES, GradScaler, Product, accumulate, checkpoint, computing_in,
    fastest, keep_winners, products_of, read_winners, tune, unforeseen, winner,
    winners_file)
from companion.activations import gelu
from companion.autograd import RECORDING, no_grad
from companion.blas import product
from companion.buffer import Buffer, Storage
from companion.cache import Ahead
from companion.compiler.capture import jit
from companion.dtype import bfloat16, float32, float64, int64
from companion.layers import (
    Dropout, LayerNorm, Linear, Module, Sequential, parameter)
from companion.literate import message
from companion.losses import cross_entropy
from companion.optim import SGD
from companion.tensor import Tensor
from companion.tensor.creation import ones
from companion.tensor.gradients import grad, gradcheck
from companion.tensor.random import (
    KEYS, Generator, manual_seed, own_key, rand, randint, randn)
from companion.timing import FORK
from companion.transformer import GPT, GPTConfig
from companion.view import View


def test_a_lucky_run_does_not_win():
    steady = [1.0] * 9
    lucky = [0.5] + [1.0] * 8  # by far the smallest
    noisy = [0.9, 1.1] * 4 + [0.9]  # ahead in more than half
    faster = [0.9] * 8 + [3.0]  # disturbed once
    assert winner({"usual": steady, "lucky": lucky}) == "usual"
    assert winner({"usual": steady, "noisy": noisy}) == "usual"
    assert winner({"usual": steady, "faster": faster}) == "faster"
    assert winner({"usual": steady, "same": [0.99] * 9}) == "usual"
    # A machine that gets slower and slower does not choose the earliest.
    drift = [1.0 + 0.1 * i for i in range(9)]
    assert winner({"usual": drift, "after": [1.001 * t for t in drift]}
                  ) == "usual"


PRODUCTS = (((37, 600), (600, 65)), ((2, 3, 5), (2, 5, 4)),
            ((700, 40), (40, 1100)), ((1, 300), (300, 7)))


def test_every_choice_is_the_same_product():
    rng = np.random.default_rng(0)
    for shapes in PRODUCTS if product(float32) else ():
        for turn in (False, True):
            arrays = [rng.standard_normal(s).astype("f4") for s in shapes]
            views = [View.dense(s) for s in shapes]
            if turn:  # columns side by side
                arrays = [np.swapaxes(x, -1, -2).copy() for x in arrays]
                views = [View.dense(x.shape).permute(
                    (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
                    for x in arrays]
            a, b = [Buffer(Storage(x.ravel()), v, float32)
                    for x, v in zip(arrays, views)]
            wanted = np.matmul(a.array, b.array)
            for name in CHOICES:
                c = Buffer.empty(wanted.shape, float32)
                one = Product(a.view, b.view, c.view, float32)
                one.multiply(one.job(name), a, b, c)
                assert np.allclose(c.array, wanted, atol=1e-3), name


@contextmanager
def own_cache():
    """A folder of compiled code that nobody else uses."""
    before = os.environ.get("COMPANION_CACHE")
    with TemporaryDirectory() as folder:
        os.environ["COMPANION_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["COMPANION_CACHE"]
            if before is not None:
                os.environ["COMPANION_CACHE"] = before


def multiplied():
    """A captured product, and its result."""
    x, w = [Tensor(np.arange(n, dtype="f4").reshape(s) / n) for n, s in (
        (600, (20, 30)), (1200, (30, 40)))]
    w = w.to("lazy")
    step = jit(lambda x: x @ w)
    for _ in range(3):
        y = step(x)
    return step, x, y.numpy()


def test_a_record_decides_without_a_clock():
    if product(float32) is None:
        return  # no programs, and nothing to tune
    step, x, y = multiplied()
    call, = step.programs
    (_, one), = products_of(call.program)
    with own_cache():
        keep_winners(winners_file(), {str(one): "depth 256"})
        for _ in range(2):
            assert tune(step, rounds=0) == {str(one): "depth 256"}
        keep_winners(winners_file(), {"another": "as ever"})
        assert len(read_winners(winners_file())) == 2
    assert np.allclose(step(x).numpy(), y, atol=1e-4)
    assert call.program.told == [one.job("depth 256")]


def test_damaged_files_are_ignored():
    with own_cache() as folder, redirect_stderr(StringIO()) as told:
        path = folder / "tuned.json"
        for text in (b"", b"{", b"\xff\xfe", b"[1]", b'{"a": "depth -1"}',
                     b'{"a": ["b"]}', b'{"a": 3}', b"null", b"[" * 10 ** 5):
            path.write_bytes(text)
            assert read_winners(path) == {}, text
            assert "is ignored" in told.getvalue()
        keep_winners(path, {"a": "as ever"})
        assert read_winners(path) == {"a": "as ever"}
        path.unlink()
        path.mkdir()  # neither read nor written
        assert read_winners(path) == {}
        keep_winners(path, {"a": "as ever"})
    for function in (lambda x: x, partial(max, 1), Linear(1, 1)):
        assert "no program yet" in message(
            lambda function=function: tune(jit(function)))
    assert "what jit returns" in message(lambda: tune(print), TypeError)
    assert "2 rounds" in message(lambda: fastest({"a": print}, 1))


def test_two_processes_do_no_harm():
    def write(path, name):
        for i in range(20):
            keep_winners(path, {f"{name} {i}": "as ever"})
            assert read_winners(path), "seen in the middle of a write"

    with own_cache() as folder:
        path = folder / "tuned.json"
        both = [FORK.Process(target=write, args=(path, x)) for x in "ab"]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
        # Whole, and with what was written last; what one of them wrote
        # between the other's reading and writing may be lost.
        assert {"a 19", "b 19"} & set(read_winners(path))
        assert [p.name for p in folder.iterdir()] == ["tuned.json"]


def test_parts_weigh_what_they_hold():
    manual_seed(0)
    logits = randn(6, 4, 5).detach().requires_grad_()
    target = randint(0, 5, (6, 4))
    for i, n in enumerate((4, 1, 3, 0, 2, 4)):  # one text is all ignored
        target[i, n:] = -100
    cross_entropy(logits, target).backward()
    right, logits.grad = logits.grad.numpy().copy(), None
    parts = [(slice(0, 1),), (slice(1, 3),), (slice(3, 4),), (slice(4, 6),)]
    loss = accumulate(lambda s: cross_entropy(logits[s], target[s]),
                      parts, [4, 4, 0, 6])
    assert np.allclose(logits.grad.numpy(), right, atol=1e-6)
    assert np.isclose(loss.item(), cross_entropy(logits, target).item())
    logits.grad = None  # the trap: a mean of means
    for s, in (parts[0], parts[1], parts[3]):
        (cross_entropy(logits[s], target[s]) / 3).backward()
    assert not np.allclose(logits.grad.numpy(), right, atol=1e-3)
    for counts in ([1], [1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, math.nan],
                   [1, 1, 1, math.inf]):
        assert "expected for each of 4" in message(
            partial(accumulate, print, parts, counts))


def network(width=8, p=0.5):
    return Sequential(LayerNorm(width), Linear(width, 4 * width), gelu,
                      Dropout(p), Linear(4 * width, width), Dropout(p))


def gradients(way, parts, x):
    """Of the sum of squares through `parts`: of x and of all weights."""
    manual_seed(5)
    x = x.detach().requires_grad_()
    weights = [p for part in parts for p in part.parameters()]
    y = way(parts, x)
    found = grad(y.square().sum(), [x, *weights])
    after = rand(3).tolist()  # the stream goes on as if nothing had been
    return [y.numpy(), *[g.numpy() for g in found], after]


def kept(parts, x):
    for part in parts:
        x = part(x)
    return x


def forgotten(parts, x):
    for part in parts:
        x = checkpoint(part, x)
    return x


def nested(parts, x):
    return checkpoint(lambda x: checkpoint(
        lambda x: forgotten(parts[1:], x), checkpoint(parts[0], x)), x)


def test_gradients_are_the_same_bits():
    manual_seed(0)
    parts, x = [network() for _ in range(3)], randn(4, 8)
    right = gradients(kept, parts, x)
    for way in (forgotten, nested):
        for one, other in zip(right, gradients(way, parts, x)):
            assert np.array_equal(one, other), way


def test_other_masks_are_noticed():
    """The planted mistake: a second run that draws anew."""
    def careless(f, x):
        y = checkpoint(f, x)
        function, n, noted = y.record.arg
        y.record.arg = function, n, [
            Tensor(np.array([0, 77])) for _ in noted]
        return y
    manual_seed(0)
    parts, x = [network()], randn(4, 8)
    right = gradients(kept, parts, x)
    wrong = gradients(lambda parts, x: careless(parts[0], x), parts, x)
    assert np.array_equal(right[0], wrong[0])  # the value is right
    assert not np.allclose(right[1], wrong[1], atol=1e-2)


def test_small_steps_arrive():
    def after(compute):
        layer = Linear(1, 1, bias=False)
        layer.weight.detach().assign(Tensor([[1.0]]))
        optimizer = SGD(layer.parameters(), lr=1e-3)
        for _ in range(100):
            optimizer.zero_grad()
            compute(layer).backward()
            optimizer.step()
        return float(layer.weight.item())

    def careful(layer):
        with computing_in(bfloat16, layer):
            return layer(Tensor([[1.0]]).cast(bfloat16)).sum()

    def careless(layer):  # the planted mistake: the weights themselves
        w = layer.weight.detach()
        w.assign(w.cast(bfloat16).cast(float32))
        return layer(Tensor([[1.0]])).sum()
    assert abs(after(careful) - 0.9) < 1e-3
    assert after(careless) > 0.99


def test_what_cannot_be_computed_again_is_refused():
    x = randn(4).requires_grad_()
    w, h = randn(4).requires_grad_(), x * 2
    held = []
    for act, kind, words in (
            (lambda: checkpoint(lambda x: x * h, x), ValueError, "held by"),
            (lambda: checkpoint(
                lambda x: (held.append(x * 2), held[0] * 3)[1], x),
             ValueError, "held by"),
            (lambda: checkpoint(lambda x: (x, x), x), TypeError,
             "got a tuple"),
            (lambda: checkpoint(lambda x: x, 3), TypeError, "got a int"),
            (lambda: grad(checkpoint(lambda x: x * w, x).sum(), [x],
                          create_graph=True), RuntimeError, "second")):
        assert words in message(act, kind), words
    for moved in (x, w):
        y = checkpoint(lambda x: x * w, x).sum()
        moved.detach().assign(moved.detach() * 2)
        assert "written to" in message(y.backward, RuntimeError)
    assert "writes to an input" in message(lambda: checkpoint(
        lambda x: (x.detach().assign(x.detach() * 2), x * 3)[1], x))


def test_a_second_run_that_differs_is_refused():
    x = randn(4).requires_grad_()
    for first, second, words in (
            (lambda x: x * 2, lambda x: x * rand(4), "more numbers"),
            (lambda x: x * rand(4), lambda x: x * 2, "fewer numbers"),
            (lambda x: x * 2, lambda x: x[:3] * 2, "something else"),
            (lambda x: x * 2, lambda x: x.detach(), "something else")):
        turns = iter((first, second))
        y = checkpoint(lambda x, turns=turns: next(turns)(x), x)
        assert words in message(y.sum().backward, RuntimeError), words
        assert KEYS.get() is own_key and RECORDING.get()
    drop = Dropout(0.5)
    y = checkpoint(drop, x)
    drop.eval()
    assert "eval()" in message(y.sum().backward, RuntimeError)


def test_numbers_made_ahead_are_drawn_again():
    x = parameter(Tensor([1.0, 1.0, 1.0]))
    for shape in ((), (1,), (3,)):
        plain, ahead = Generator(7), Ahead(7)
        for dice in (plain, ahead):
            rand(1, generator=dice)  # a stock of numbers is there
            y = checkpoint(lambda x, shape=shape, dice=dice: x * rand(
                *shape, generator=dice), x)
            (g,) = grad(y.sum(), [x])
            assert np.array_equal(g.numpy(), y.numpy())
        assert plain.place == ahead.place
        assert rand(1, generator=plain).item() == rand(
            1, generator=ahead).item()


def test_any_function_of_tensors():
    x, w = randn(3, 4).requires_grad_(), randn(4).requires_grad_()
    ids = randint(0, 3, (5,))
    # Integers, an input twice, one that is not used, and a leaf beside it.
    y = checkpoint(lambda a, b, i, n: (a * b * w)[i] * x.sum(), x, x, ids,
                   randn(2).requires_grad_())
    one = grad(y.sum(), [x, w], retain_graph=True)
    two = grad(y.sum(), [x, w])  # backward twice, run again twice
    right = grad(((x * x * w)[ids] * x.sum()).sum(), [x, w])
    for a, b, c in zip(one, two, right):
        assert np.array_equal(a.numpy(), b.numpy())
        assert np.allclose(a.numpy(), c.numpy(), rtol=1e-5)
    unused = parameter(Tensor([math.inf, math.nan]))
    found = grad(checkpoint(lambda a, n: a * 2, x, unused).sum(), [unused])
    assert not found[0].numpy().any()
    for same in (checkpoint(lambda x: x, x), checkpoint(lambda x: w, x)):
        same.sum().backward()
    assert x.grad.numpy().all() and w.grad.numpy().all()
    with no_grad():
        assert not checkpoint(lambda x: x * 2, x).requires_grad
    assert not checkpoint(lambda x: x * 2, x.detach()).requires_grad
    wide = randn(3, dtype=float64).requires_grad_()
    gradcheck(lambda x: checkpoint(lambda x: x.exp() * x, x), wide)


def test_what_is_written_in_place_is_forgotten():
    x = randn(3, 4).requires_grad_()

    def in_place(x):  # z is an operand of itself
        z = x * 2
        z += x
        return z * z
    one, two = [grad(way(in_place, x).sum(), [x])[0].numpy()
                for way in (checkpoint, lambda f, x: f(x))]
    assert np.array_equal(one, two)


def test_programs_compute_again():
    found = {}
    for way in (kept, forgotten):
        manual_seed(0)
        parts, x = [network() for _ in range(6)], randn(200, 8)
        for part in parts:
            part.to("lazy")
        step = jit(lambda x, way=way, parts=parts: grad(
            way(parts, x).square().sum(), parts[0].parameters()))
        slopes = [[g.numpy() for g in step(x)] for _ in range(5)]
        found[way] = slopes, [c.program.plan.room for c in step.programs]
    (one, rooms), (two, less) = found.values()
    for a, b in zip(one, two):  # with other masks at each call
        assert all(np.allclose(*pair, rtol=1e-3, atol=1e-3)
                   for pair in zip(a, b))
    assert not np.allclose(one[3][0], one[4][0])
    assert not rooms or less[0] < 0.7 * rooms[0]


def test_whole_numbers_are_computed_with_again():
    """Of a table and of indices: floats are not among the inputs."""
    rooms = []
    for way in (lambda f, *x: f(*x), checkpoint):
        table = randn(50, 64).to("lazy").requires_grad_()
        w = (randn(64, 64) * 0.05).to("lazy").requires_grad_()

        def deep(ids, table=table, w=w):
            h = table[ids]
            for _ in range(4):
                h = (h @ w).exp().sin()
            return h
        step = jit(lambda ids, way=way, deep=deep, src=(table, w): grad(
            (way(deep, ids) * way(deep, ids + 1)).sum(), src))
        for _ in range(3):
            step(randint(0, 49, (200,)))
        rooms += [call.program.plan.room for call in step.programs]
    assert not rooms or rooms[1] < rooms[0]


def test_an_unforeseen_one_keeps_the_bits():
    arrays = [np.array([-0.0, math.inf, math.nan, 1e-40], "f4"),
              np.array([-2 ** 63, 0, 7]), np.array([True, False])]
    step = jit(lambda *x: [unforeseen(x) for x in x])
    for _ in range(4):
        found = step(*map(Tensor, arrays))
    assert [y.numpy().tobytes() for y in found] == [
        x.tobytes() for x in arrays]


def test_weights_return_to_their_places():
    net = GPT(GPTConfig(8, 11, 1, 2, 16, bias=False))
    before = {id(p) for p in net.parameters()}
    ids = randint(0, 11, (2, 8))
    with computing_in(bfloat16, net):
        y = net(ids)
    assert y.dtype is bfloat16 and {id(p) for p in net.parameters()} == before
    y.sum().backward()
    assert all(p.grad.dtype is float32 for p in net.parameters())

    def halved(block, x):
        with computing_in(bfloat16, block):
            return block(x)
    block, x = net.h[0], randn(2, 8, 16).requires_grad_()
    slopes = [grad(way(partial(halved, block), x).sum(),
                   [x, *block.parameters()])
              for way in (lambda f, x: f(x), checkpoint)]
    assert all(np.array_equal(a.numpy(), b.numpy())
               for a, b in zip(*slopes))
    with computing_in(bfloat16, net):  # copies from outside: refused
        assert "held by" in message(lambda: checkpoint(block, x))

    def failed():
        with computing_in(bfloat16, net):
            raise ValueError("inside")
    assert message(failed) == "inside"
    assert {id(p) for p in net.parameters()} == before


def test_weights_in_lists_are_copied_too():
    for bad in ((int64, Linear(1, 1)), ("float16", Linear(1, 1)),
                (bfloat16, gelu)):
        assert "dtype of floats and a Module" in message(
            lambda bad=bad: computing_in(*bad).__enter__(), TypeError)

    class Heads(Module):
        def __init__(self):
            w = parameter(ones(2))
            self.left, self.all = w, [w, {"a": (parameter(ones(2)), "b")}]

        def forward(self, x):
            return x * self.left * self.all[0] * self.all[1]["a"][0]
    net = Heads()
    held = net.all
    with computing_in(bfloat16, net):
        y = net(ones(2, dtype=bfloat16))
        assert net.left is net.all[0] and net.all[1]["a"][1] == "b"
    assert y.dtype is bfloat16 and net.all is held
    y.sum().backward()
    assert [p.grad.tolist() for p in net.parameters()] == [[2, 2], [1, 1]]


def test_a_factor_is_found():
    w = parameter(Tensor([1.0, 2.0]))
    optimizer = SGD([w], lr=0.5)
    scaler = GradScaler(8.0, growth_interval=2)
    for slope, moves, value in ((1.0, True, 8), (math.inf, False, 4),
                                (1.0, True, 4), (1.0, True, 8),
                                (math.nan, False, 4)):
        w.grad = Tensor([slope, 2.0]) * scaler.value
        before = w.numpy().copy()
        assert scaler.step(optimizer) is moves and scaler.value == value
        moved = 0.5 * np.array([1.0, 2.0]) * moves
        assert np.allclose(w.numpy(), before - moved)
    w.grad = Tensor([30.0, 40.0]) * scaler.value
    before = w.numpy().copy()  # clipped when it is divided, and not before
    scaler.step(optimizer, max_norm=5.0)
    assert np.allclose(w.numpy(), before - [1.5, 2.0])
    for bad in ((0.0,), (math.inf,), (1.0, 1.0), (1.0, math.inf),
                (1.0, 2.0, 1.0), (1.0, 2.0, 0.5, 0)):
        assert "GradScaler" in message(partial(GradScaler, *bad))


def test_a_program_asks_for_the_factor():
    scaler, x = GradScaler(2.0), randn(3, device="lazy")
    step = jit(lambda x: scaler.scale(x.sum()))
    for scaler.value in (2.0, 2.0, 2.0, 8.0):
        y = step(x).item()
    assert np.isclose(y, 8 * x.numpy().sum(), rtol=1e-5)
