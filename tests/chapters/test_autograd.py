# Tangled from autograd: edit there, `make tangle`. sha256:5cdd6ce131b7
from __future__ import annotations

import math
import pickle
import sys
import tracemalloc
import weakref
from copy import copy, deepcopy

import numpy as np

from companion.autograd import GRADIENT, NEEDS, RECORDING, no_grad
from companion.device import Device
from companion.dtype import bool_, float16, float32, float64, int64
from companion.layers import Linear
from companion.literate import message
from companion.ops import (
    ADD, AND, CAST, DIV, EQUAL, ERF, EXP, EXPAND, FAMILIES, FLIP, GATHER, IDIV,
    LESS, LOG, MATMUL, MAX, MAXIMUM, MOD, MUL, PAD, PERMUTE, POW, RESHAPE,
    SCATTER, SHRINK, SIN, SQRT, SUB, SUM, WHERE)
from companion.tensor import Tensor
from companion.tensor.creation import (
    arange, ones, ones_like, zeros, zeros_like)
from companion.tensor.gradients import grad, gradcheck, hessian_product
from companion.tensor.random import rand


def push(f, x, change):
    """How f(x) changes when x does: J · change, by two sweeps."""
    x = x.detach().requires_grad_()
    y = f(x)
    u = zeros_like(y).requires_grad_()
    (pulled,) = grad(y, [x], u, create_graph=True)
    (pushed,) = grad((pulled * change).sum(), [u])
    return pushed


class Scales(Device):
    """The CPU, with the bytes that its results hold at each moment."""

    def __init__(self):
        self.alive, self.known, self.curve = 0, set(), []

    def run(self, op, *src, arg=None):
        out = super().run(op, *src, arg=arg)
        self.weigh(out.storage)
        return out

    def weigh(self, storage):
        if id(storage) not in self.known:
            self.known.add(id(storage))
            self.alive += storage.nbytes
            weakref.finalize(storage, self.drop, id(storage),
                             storage.nbytes)
        self.curve.append(self.alive)

    def drop(self, key, nbytes):
        self.known.remove(key)
        self.alive -= nbytes


def deep(x, layers):
    for _ in range(layers):
        x = x.sin()
    return x.sum()


def weighed(retain=False, layers=50):
    """The scales after a deep chain, forwards and backwards."""
    scales = Scales()
    x = zeros(1000, 250, device=scales).requires_grad_()
    loss = deep(x, layers)
    forward = len(scales.curve)
    loss.backward(retain_graph=retain)
    return scales, forward, scales.alive, loss


def wide(*shape, low=-1.0):
    """A float64 leaf with values from `low` to 1."""
    x = rand(*shape, dtype=float64) * (1 - low) + low
    return x.requires_grad_()


ROWS, PLACES = Tensor([2, 0, 2, -1]), Tensor([[2, 0, 2], [1, 1, 0]])
EXAMPLES = {
    SIN: ([wide(4)], None), SUB: ([wide(3, 4), wide(3, 4)], None),
    EXP: ([wide(3)], None), CAST: ([wide(3)], float64),
    ERF: ([wide(3)], None), DIV: ([wide(3), wide(3, low=0.3)], None),
    LOG: ([wide(3, low=0.3)], None), SQRT: ([wide(3, low=0.3)], None),
    ADD: ([wide(3), wide(3)], None), MUL: ([wide(3), wide(3)], None),
    MAXIMUM: ([wide(9), wide(9)], None),
    POW: ([wide(5, low=0.3), wide(5)], None),
    MOD: ([wide(4, low=0.7), wide(4, low=0.3)], None),
    WHERE: ([wide(5) > 0, wide(5), wide(5)], None),
    SUM: ([wide(2, 3, 4)], (0, 2)), MAX: ([wide(2, 3, 4)], (0, 2)),
    RESHAPE: ([wide(2, 3)], (3, 2)), FLIP: ([wide(3, 4)], (1,)),
    PERMUTE: ([wide(2, 3, 4)], (2, 0, 1)),
    EXPAND: ([wide(1, 3, 1)], (2, 2, 3, 4)),
    PAD: ([wide(3, 4)], ((1, 2, 1), (0, 1, 3))),
    SHRINK: ([wide(5, 7)], ((1, 4, 2), (0, 7, 3))),
    MATMUL: ([wide(2, 3, 4), wide(2, 4, 5)], None),
    GATHER: ([wide(2, 3, 2), PLACES], 1),
    SCATTER: ([wide(4, 2), ROWS], (0, 3)),
}
FLAT = {LESS, EQUAL, IDIV, AND}


def test_every_rule_agrees_with_finite_differences():
    words = {op for family in FAMILIES.values() for op in family}
    assert set(EXAMPLES) | FLAT == set(GRADIENT) & words
    for op, (inputs, arg) in EXAMPLES.items():
        gradcheck(
            lambda *xs, op=op, arg=arg: Tensor.apply(op, *xs, arg=arg),
            *inputs)


def test_every_rule_can_be_differentiated_again():
    for op, (inputs, arg) in EXAMPLES.items():
        def slope_of(*xs, op=op, arg=arg):
            y = Tensor.apply(op, *xs, arg=arg)
            wanted = [x for x in xs if x.requires_grad]
            found = grad((y * y).sum(), wanted, create_graph=True)
            return sum(((g * g).sum() for g in found), zeros(1))
        gradcheck(slope_of, *inputs, tolerance=1e-4)


def gradients_in(dtype, op, inputs, arg):
    """The gradients of an example with its floats cast to `dtype`."""
    xs = [x.detach().cast(dtype).requires_grad_() if x.requires_grad
          else x for x in inputs]
    y = Tensor.apply(op, *xs, arg=dtype if op is CAST else arg)
    return grad((y * y).sum(), [x for x in xs if x.requires_grad])


def test_float32_gives_the_numbers_of_float64():
    for op, example in EXAMPLES.items():
        exact = gradients_in(float64, op, *example)
        for g, e in zip(gradients_in(float32, op, *example), exact):
            assert g.dtype is float32, op
            assert np.allclose(g.numpy(), e.numpy(), 1e-5, 1e-6), op


def spoilt(x):
    """The shape and dtype of x, and none of its values."""
    if x.dtype.is_float:
        return x.detach() * math.nan
    return x == ~x if x.dtype is bool_ else x * 0 - 1000


def test_rules_read_only_what_the_table_says():
    for op, (inputs, arg) in EXAMPLES.items():
        values = [*inputs, Tensor.apply(op, *inputs, arg=arg)]
        g, nothing = ones_like(values[-1]), ((),) * op.arity
        for rule, reads in zip(GRADIENT[op], NEEDS.get(op, nothing)):
            needs = [values[i] for i in reads]
            seen = [v if any(v is n for n in needs) else spoilt(v)
                    for v in values]
            if rule is None:
                continue
            with no_grad():
                clean = rule(g, values[-1], *inputs, arg).numpy()
                dirty = rule(g, seen[-1], *seen[:-1], arg).numpy()
            assert np.array_equal(clean, dirty), op


def test_a_value_used_twice():
    gradcheck(lambda x: (y := x * x) * y + y.sin(), wide(3))


def test_broadcasting_both_ways():
    gradcheck(lambda a, b: a * b, wide(3, 1), wide(1, 4))
    gradcheck(lambda a, b: a - b, wide(2, 3), wide(3))
    gradcheck(lambda a, b: a / b, wide(), wide(2, 2, low=0.3))


def test_slices_that_overlap():
    gradcheck(lambda x: x[1:] * x[:-1] + x[::2].sum(), wide(6))


def test_repeated_indices_add_up():
    gradcheck(lambda x: x[Tensor([0, 2, 2, 2])].square(), wide(3, 2))


def test_shared_weights():
    gradcheck(lambda w, x: ((x @ w).sin() @ w).sin() @ w,
              wide(3, 3), wide(2, 3))


def test_ties_share_the_gradient():
    x = Tensor([3.0, 1.0, 3.0]).requires_grad_()
    x.max().backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]
    x = Tensor([2.0]).requires_grad_()
    x.maximum(x).backward()
    assert x.grad.tolist() == [1.0]


def test_corners_have_the_slopes_that_frameworks_give():
    flat, ends = [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]
    for f, slopes in ((Tensor.relu, flat), (lambda x: x.clamp(0, 1), ends),
                      (lambda x: x.clamp(min=0), [0.0, 1.0, 1.0, 1.0]),
                      (lambda x: x.clamp(max=1), [1.0, 1.0, 1.0, 0.0]),
                      (lambda x: x.clamp(zeros(4), ones(4)), ends),
                      (abs, [-1.0, 0.0, 1.0, 1.0])):
        x = Tensor([-1.0, 0.0, 1.0, 2.0]).requires_grad_()
        f(x).sum().backward()
        assert x.grad.tolist() == slopes


def test_slopes_of_powers_where_logarithms_end():
    inf, nan = math.inf, math.nan
    for base, power, slopes in (
            (0, 0.3, (inf, 0)), (0, -0.3, (-inf, -inf)), (0, 0, (0, 0)),
            (0, 1, (1, 0)), (0, 2, (0, 0)), (0, -1, (-inf, -inf)),
            (-2, 3, (12, nan)), (-2, 0.5, (nan, nan)), (nan, 0, (0, nan)),
            (inf, 2, (inf, inf)), (2, inf, (inf, inf)), (1, inf, (inf, 0))):
        x, y = [Tensor(float(v)).requires_grad_() for v in (base, power)]
        (x ** y).backward()
        found = x.grad.item(), y.grad.item()
        assert np.array_equal(found, slopes, equal_nan=True), (base, power)
    x = Tensor([-2.0, 0.0]).requires_grad_()
    (x ** 0).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]


def test_second_slopes_of_powers_at_zero():
    for power, bend in ((1, 0.0), (2, 2.0), (3, 0.0), (0, 0.0)):
        x, y = Tensor(0.0).requires_grad_(), Tensor(float(power))
        (g,) = grad(x ** y.requires_grad_(), x, create_graph=True)
        assert grad(g, x)[0].item() == bend


def test_nothing_at_all():
    for f in (lambda x: x * x, lambda x: x[:, 1:].exp(),
              lambda x: x @ x.T, lambda x: x.T @ x, lambda x: x.max(1),
              lambda x: x[Tensor([], int64)], lambda x: x.pad([(1, 1)] * 2),
              lambda x: x.T.reshape(3, 0).broadcast((2, 3, 0))):
        x = zeros(0, 3).requires_grad_()
        f(x).sum().backward()
        assert x.grad.shape == (0, 3)


def test_gradients_accumulate_until_they_are_cleared():
    x = Tensor(3.0).requires_grad_()
    for _ in range(2):
        (x * x).backward()
    assert x.grad.item() == 12.0


def test_integers_between_floats_do_not_pass_gradients():
    x = Tensor([1.5, -0.5]).requires_grad_()
    (x * (x > 0)).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_bad_requests_say_what_to_do():
    x = Tensor([1.0, 2.0]).requires_grad_()
    assert "nothing here asks" in message(zeros(1).backward, RuntimeError)
    assert "defined for one number" in message((x * 2).backward)
    assert "int64" in message(arange(3).requires_grad_, TypeError)
    y = (x * x).sum()
    y.backward()
    assert "retain_graph=True" in message(y.backward, RuntimeError)
    assert "no_grad" in message(lambda: x.assign(0), TypeError)
    assert x.tolist() == [1.0, 2.0]


def test_bad_checks_say_what_to_do():
    x = Tensor([1.0]).requires_grad_()
    assert "cast first" in message(
        lambda: gradcheck(Tensor.sin, x), TypeError)
    assert "nothing to check" in message(
        lambda: gradcheck(Tensor.sin, x.detach()))
    assert "use .detach()" in message(
        lambda: (x * 2).requires_grad_(False), RuntimeError)
    assert "of shape (1,), got Tensor" in message(
        lambda: (x * 2).backward(zeros(3)))
    assert "got [1.0]" in message(lambda: (x * 2).backward([1.0]))
    assert "asks for no gradient" in message(
        lambda: grad(x * 2, [x, zeros(1)]))


def test_one_input_needs_no_list():
    x = Tensor([3.0]).requires_grad_()
    assert [g.item() for g in grad(x * x, x)] == [6.0]


def test_a_check_leaves_its_input_as_it_was():
    x = wide(3)
    before, calls = x.tolist(), iter((x * 2, x.detach()))  # then none
    message(lambda: gradcheck(lambda v: next(calls), x), StopIteration)
    assert x.tolist() == before
    gradcheck(lambda v: ones(2, dtype=float64), x)  # all slopes are 0


def test_a_cast_brings_the_gradient_back_in_its_own_dtype():
    for narrow, wide_one in ((float32, float64), (float16, float32)):
        x = Tensor([1.0, 2.0], narrow).requires_grad_()
        (x.cast(wide_one) * 3).sum().backward()
        assert x.grad.dtype is narrow and x.grad.tolist() == [3.0, 3.0]


def test_a_gradient_may_be_written_to():
    x = Tensor([1.0]).requires_grad_()
    (x + 2).backward()
    assert x.grad.assign(7).tolist() == [7.0]


def test_a_failed_block_turns_recording_on_again():
    try:
        with no_grad():
            raise KeyError
    except KeyError:
        assert RECORDING.get()


def test_no_grad_and_detach_leave_no_record():
    x = Tensor([1.0]).requires_grad_()
    with no_grad():
        assert (x * 2).is_leaf
    assert (x.detach() * 2).is_leaf
    assert x.detach().buffer.storage is x.buffer.storage


def test_leaves_are_copied_whole_and_graphs_are_not():
    x = Tensor([1.0, 2.0]).requires_grad_()
    y = x.square().sum()
    z = y.exp()
    y.backward()
    for computed in y, z:  # of one the graph has been let go
        for way in deepcopy, pickle.dumps:
            words = message(
                lambda way=way, x=computed: way(x), TypeError)
            assert "its whole graph" in words and ".detach()" in words
        assert copy(computed).record is computed.record
        assert deepcopy(computed.detach()).item() == computed.item()
    for twin in (deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert twin.requires_grad and twin.grad.tolist() == [2.0, 4.0]
        twin.detach().assign(0.0)
        assert x.tolist() == [1.0, 2.0]


def test_a_value_overwritten_in_place_keeps_both_pasts():
    w, v = wide(3), wide(3)

    def steps(w, v):
        h, early = w * v, []
        early.append(h + 0)
        h += v
        early.append(h * 3)
        h *= 2
        h -= w
        h /= 4
        total = zeros((), dtype=float64)
        total += (h + early[0] * early[1]).sum()
        total += h.square().sum()
        return total
    gradcheck(steps, w, v)
    x = Tensor([1.0, 2.0]).requires_grad_()
    h = x * 3
    before, name = h + 0, h
    h *= 9
    assert h is name and h.tolist() == [27, 54]
    g, = grad(h.sum(), [h], retain_graph=True)
    assert g.tolist() == [1, 1]
    assert grad(before.sum(), [x])[0].tolist() == [3, 3]


def test_in_place_under_no_grad_moves_the_parameter():
    model = Linear(2, 1)
    was = [p.tolist() for p in model.parameters()]
    model(ones(4, 2)).sum().backward()
    with no_grad():
        for p in model.parameters():
            p -= p.grad
    assert [p.tolist() for p in model.parameters()] == [
        (Tensor(old) - p.grad).tolist()
        for old, p in zip(was, model.parameters())]
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


def behind_its_back(x, h):
    total = h.sum()
    h.detach().assign(0)
    total.backward()
    assert x.grad.tolist() == [3, 3]
    (h + 1).sum()


def the_root_itself(x, h):
    total = h.sum()
    total.detach().assign(0)
    total.backward()


def a_part(x, h):
    h[0] += 1


def a_view_of_it(x, h):
    turned = h.flip()
    turned *= 2
    h.sum()


def needed_later(x, h):
    y = h * x
    h *= x
    y.sum().backward()


def test_writes_that_no_record_could_tell_are_refused():
    for act, words in [(lambda x, h: x.__iadd__(1), "leaf"),
                       (a_part, "a part"), (behind_its_back, "another"),
                       (the_root_itself, "another"),
                       (a_view_of_it, "another"),
                       (needed_later, "after it was")]:
        x = Tensor([1.0, 2.0]).requires_grad_()
        assert words in message(
            lambda x=x, act=act: act(x, x * 3), RuntimeError), act
    data = zeros(2)
    data += Tensor([1.0, 2.0]).requires_grad_()
    assert data.requires_grad and not data.is_leaf
    data //= 2
    assert not data.requires_grad and data.is_leaf
    whole, h = arange(2), Tensor([1.0, 2.0]).requires_grad_() * 3
    whole.copy_(h)
    assert whole.tolist() == [3, 6] and not whole.requires_grad
    h.copy_([7.0, 8.0])
    assert h.tolist() == [7, 8] and not h.requires_grad and h.is_leaf


def test_numpy_does_not_lose_a_gradient_in_silence():
    w, plain = wide(2), rand(2, dtype=float64)
    for act in (np.exp, np.asarray, np.array, Tensor, np.from_dlpack,
                lambda w: np.maximum(w, 0), lambda w: np.add(1, w),
                lambda w: Tensor([w[0]]), lambda w: np.ones(2).dot(w),
                lambda w: plain.assign([w[0], w[1]]), Tensor.from_dlpack):
        for x in (w, w * 2):
            assert ".detach()" in message(
                lambda x=x, act=act: act(x), TypeError), act
        act(w.detach()) if act is not Tensor else None
    gradcheck(lambda w: np.ones(2) * w + np.float64(2) * w - w / np.ones(2),
              w)
    with no_grad():
        assert np.exp(w).shape == (2,)
    assert w.numpy() is not None and w[0].item() and w.tolist()


def effort(program, n):
    """Calls, and the most bytes held, of a gradient through n steps."""
    calls, x = [0], Tensor([1.0]).requires_grad_()

    def count(frame, event, argument):
        calls[0] += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        program(x, n).sum().backward()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return calls[0], peak


def ladder(x, n):
    """Every value is used twice, by the next and by the one after."""
    a = b = x
    for _ in range(n):
        a, b = a * 0.5 + b * 0.5, a
    return a


def fan(x, n):
    """One leaf is used n times."""
    total = x
    for _ in range(n):
        total = total + x * x
    return total


def test_a_program_four_times_as_long_costs_four_times_as_much():
    def line(x, n):
        for _ in range(n):
            x = -x
        return x

    for program in (line, ladder, fan):
        _, short, long = [effort(program, n) for n in (9, 100, 400)]
        assert long[0] < 4.2 * short[0], program
        assert long[1] < 6 * short[1], program  # tables double in size


def test_twenty_thousand_operations_in_a_row():
    x = Tensor([1.0]).requires_grad_()
    y = x
    for _ in range(20_000):
        y = -y
    y.backward()
    assert x.grad.tolist() == [1.0]


def test_overwritten_values_are_noticed():
    for write_over, f in (
            ("y", lambda x, a: a.exp()), ("a", lambda x, a: x * a),
            ("a", lambda x, a: a.sin()), ("y", lambda x, a: a.max())):
        x = Tensor([1.0, 2.0]).requires_grad_()
        a = x * 3
        y = f(x, a)
        total = y.sum()
        (y if write_over == "y" else a).detach().assign(0)
        assert "written to after" in message(total.backward, RuntimeError)


def test_harmless_writes_are_allowed():
    table, bias = zeros(3, 2).requires_grad_(), zeros(2)
    y = table[Tensor([1, 1])] + bias
    table.detach().assign(5)
    bias.assign(7)
    y.sum().backward()
    assert table.grad.tolist() == [[0, 0], [2, 2], [0, 0]]


def test_a_sweep_lets_go_of_the_graph():
    scales, _, after, loss = weighed(layers=9)
    assert max(scales.curve) > 10 * 10 ** 6
    assert 2 * 10 ** 6 <= after < 2.1 * 10 ** 6 and loss.item() == 0


def test_a_dropped_graph_is_gone_at_once():
    scales = Scales()
    x = zeros(1000, 250, device=scales).requires_grad_()
    start = scales.alive
    loss = deep(x, 9)
    assert scales.alive > start + 8 * 10 ** 6
    del loss
    assert scales.alive == start


def test_gradients_own_their_memory():
    a, b = zeros(3).requires_grad_(), zeros(3).requires_grad_()
    weight = Tensor([1.0, 2.0, 3.0])
    (a + b).backward(weight)
    a.grad.assign(0)
    assert b.grad.tolist() == weight.tolist() == [1.0, 2.0, 3.0]


def test_kept_graphs_can_be_walked_again():
    x = Tensor(3.0).requires_grad_()
    y = x * x
    y.backward(retain_graph=True)
    assert grad(y, [x], create_graph=True)[0].item() == 6.0
    y.backward()
    assert x.grad.item() == 12.0


def test_products_with_hessians_and_jacobians():
    x, v = wide(4).detach(), wide(4).detach()

    def f(x):
        return (x[1:] * x[:-1].sin()).sum()

    h = Tensor(1e-5, float64)
    ahead, behind = [grad(f(at), [at])[0] for at in (
        (x + v * h).requires_grad_(), (x - v * h).requires_grad_())]
    found = hessian_product(f, x, v).numpy()
    assert np.allclose(found, ((ahead - behind) / (2 * h)).numpy())
    assert hessian_product(lambda x: x.sum(), x, v).tolist() == [0] * 4
    x.requires_grad_()
    (g,) = grad(f(x), [x])
    assert np.isclose(push(f, x, v).item(), (g * v).sum().item())
