# Tangled from rewriting: edit there, `make tangle`. sha256:4b360cfb5958
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from companion.buffer import Buffer
from companion.compiler.graph import OpNode, constant, interpret
from companion.compiler.index import INDEX, bounds
from companion.compiler.rewrite import (
    Hole, Holes, Pattern, Rule, as_node, filled, fits, is_number, later,
    replacement, rewrite, rule, value, weight, word)
from companion.compiler.rules import (
    RULES, alike, b, c, d, i, inverse, j, p, q, s, t, x, y)
from companion.device import CPU, Device
from companion.dtype import (
    DTYPES, DType, bfloat16, bool_, float16, float32, float64, int8, int32,
    int64)
from companion.literate import message
from companion.ops import (
    ADD, BUFFER, CAST, EXPAND, FAMILIES, FLIP, GATHER, IOTA, MAX, PAD, PERMUTE,
    RESHAPE, SHRINK, SUB, SUM, WHERE, Op)
from companion.view import Shape


def node_of(number: Any, dtype: DType = float32) -> OpNode:
    return OpNode(BUFFER, (), CPU.adopt(np.array(number, dtype.numpy)))


def test_a_rule_is_read_as_it_is_written():
    one, two = node_of([1.0, 2.0]), node_of([3.0, 4.0])
    both = filled(x + y * -1, {x: one, y: two})
    found = rule(x + y * -1, x - y)
    assert repr(found) == "x + (y * -1) → x - y"
    assert repr(word(WHERE)(True, x, y)) == "True.where(x, y)"
    assert repr(rule(x.flip(p), x, later(len)(p))) == (
        "x.flip(p) → x if len(p)")
    assert replacement(both, found) is OpNode(SUB, (one, two))
    swapped = OpNode(ADD, both.src[::-1])
    assert replacement(swapped, found) is OpNode(SUB, (one, two))
    assert replacement(OpNode(SUB, both.src), found) is None
    assert "no operation is called 'shout'" in message(
        lambda: x.shout(), AttributeError)
    for right, wanted in ((y * x, ()), (x.reshape(p), ()),
                          (x, (later(len)(q),))):
        assert "stands elsewhere alone" in message(
            lambda right=right, wanted=wanted: rule(x * 1, right, *wanted))


def test_numbers_are_told_apart():
    wide = constant(-0.0, float32, (2, 3))
    moved = OpNode(PERMUTE, (wide,), (1, 0))
    assert is_number(moved, -0.0) and not is_number(moved, 0.0)
    assert is_number(constant(0, int32), -0.0)  # it has one zero
    assert is_number(constant(True, bool_), 1)
    assert not is_number(constant(True, bool_), -1)
    assert not is_number(constant(0, int32), 0.5)
    assert value(constant(0.1, bfloat16, (2,))) == 0.10009765625
    assert value(OpNode(PAD, (wide,), ((1, 0, 1), (0, 0, 1)))) is None


class Ordered(Device):
    """The CPU on operands that lie in order: no kernel sees a stride."""

    def run(self, op: Op, *src: Buffer, arg: Any = None) -> Buffer:
        return super().run(op, *[each.dense() for each in src], arg=arg)


def bits(buffer: Buffer) -> tuple[Any, ...]:
    """Shape, dtype and bytes; any NaN is as good as any other."""
    array = np.array(buffer.array)
    if buffer.dtype.is_float:
        array[np.isnan(array)] = math.nan
    return buffer.shape, buffer.dtype, array.tobytes()


def same(old: Sequence[OpNode], new: Sequence[OpNode]) -> bool:
    """Whether two programs compute the same, in every bit."""
    found = [[*map(bits, interpret(roots, Ordered()))]
             for roots in (old, new)]
    return found[0] == found[1]


FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, -7.25, 0.1,
          math.inf, -math.inf, math.nan]


def specials(dtype: DType) -> list[Any]:
    """The numbers of a dtype on which a rule can fail."""
    if dtype is bool_:
        return [False, True]
    if dtype.is_float:
        most = ml_dtypes.finfo(dtype.numpy)
        return FLOATS + [float(n) for n in (
            most.max, -most.smallest_normal, most.smallest_subnormal)]
    range_ = np.iinfo(dtype.numpy)
    least, greatest = int(range_.min), int(range_.max)
    return [0, 1, 2, 3, 7, least, greatest, greatest // 2 + 1,
            *([-1, -2, -7] if least else [])]


def leaf(rng: Any, shape: Shape, dtype: DType, hole: Hole) -> OpNode:
    """Something for a hole: special numbers, or one of them throughout."""
    if dtype.kind not in hole.kinds:
        dtype = bool_ if hole.kinds == "b" else int32
    numbers = specials(dtype)
    if hole.constant:
        return constant(numbers[rng.integers(len(numbers))], dtype, shape)
    place = rng.integers(len(numbers), size=shape)
    values = np.array(numbers, object)[place]
    return OpNode(BUFFER, (), CPU.adopt(np.asarray(values, dtype.numpy)))


def grown(rng: Any, term: Any, holes: Holes, make: Callable[..., OpNode],
          shape: Shape, dtype: DType) -> Any:
    """`term` with something of `make` in its holes."""
    if isinstance(term, Hole) and term not in holes:
        holes[term] = make(rng, shape, dtype, term)
    if not isinstance(term, Pattern):
        return holes.get(term, term)

    def last(at: int) -> bool:
        return getattr(term.src[at], "constant", False)
    # Constants last: their shape and dtype are those of the others.
    kind, src = (shape, dtype), dict[int, Any]()
    for at in sorted(range(len(term.src)), key=last):
        if src and last(at):
            (other, *_) = src.values()
            kind = other.shape, other.dtype
        src[at] = grown(rng, term.src[at], holes, make, *kind)
    found = [src[at] for at in range(len(src))]
    first = [x for x in found if isinstance(x, OpNode)][:1]
    nodes = [as_node(x, first[0]) for x in found]
    if isinstance(term.arg, Hole) and term.arg not in holes:
        holes[term.arg] = ARGUMENTS[term.op](rng, *nodes)
    return OpNode(term.op, tuple(nodes), filled(term.arg, holes))


def shape_of(rng: Any, size: int) -> Shape:
    """Some shape of so many elements."""
    lengths = [1] * int(rng.integers(3))
    for factor in (2, 2, 3):
        if size and size % factor == 0:
            size //= factor
            lengths.append(factor)
    lengths += [size] if size != 1 else []
    rng.shuffle(lengths)
    return tuple(lengths)


def some_axes(rng: Any, node: OpNode) -> tuple[int, ...]:
    return tuple([axis for axis in range(len(node.shape))
                  if rng.random() < 0.6])


def some_range(rng: Any, n: int) -> tuple[int, int, int]:
    start, stop = sorted(rng.integers(0, n + 1, 2).tolist())
    return (start, stop, int(rng.integers(1, 3))) \
        if rng.random() < 0.5 else (0, n, 1)


def some_margin(rng: Any, _: int) -> tuple[int, int, int]:
    before, after = (rng.integers(0, 3, 2) * rng.integers(2)).tolist()
    return before, after, int(rng.integers(1, 3))


def some_dtype(rng: Any, node: OpNode | None = None) -> DType:
    """Any; but what a float out of range becomes, C leaves open."""
    return [*DTYPES.values()][rng.integers(9)] if (
        node is None or not node.dtype.is_float) else [
        bool_, float16, bfloat16, float32, float64][rng.integers(5)]


ARGUMENTS: dict[Op, Callable[..., Any]] = {
    RESHAPE: lambda rng, node: node.shape if rng.random() < 0.2
    else shape_of(rng, math.prod(node.shape)),
    PERMUTE: lambda rng, node: tuple(
        rng.permutation(len(node.shape)).tolist()),
    EXPAND: lambda rng, node: (*rng.integers(1, 4, rng.integers(2)).tolist(),
                               *[int(rng.integers(4)) if n == 1 else n
                                 for n in node.shape]),
    SHRINK: lambda rng, node: tuple([some_range(rng, n)
                                     for n in node.shape]),
    PAD: lambda rng, node: tuple([some_margin(rng, n) for n in node.shape]),
    CAST: some_dtype, FLIP: some_axes, SUM: some_axes, MAX: some_axes,
    GATHER: lambda rng, *_: 0,
}

SHAPES: list[Shape] = [(), (1,), (12,), (0,), (2, 3), (1, 4), (4, 1),
                       (2, 0), (2, 1, 3)]


def examples(rule: Rule, times: int, seed: int = 0) -> Iterator[
        tuple[OpNode, OpNode]]:
    """What the rule makes of random programs that it fits."""
    rng = np.random.default_rng(seed)
    for _ in range(times):
        shape = SHAPES[rng.integers(len(SHAPES))]
        try:
            old = grown(rng, rule.left, {}, leaf, shape, some_dtype(rng))
        except (TypeError, ValueError):
            continue  # the tables have refused it
        new = replacement(old, rule)
        if new is not None:
            yield old, new


def test_a_rule_that_goes_round_is_told():
    node = filled(x + y, {x: node_of([1.0]), y: node_of([2.0])})
    for bad in (rule(x + y, y + x), rule(x + y, x + y + -0.0),
                rule(x + y, y + x + -0.0)):
        assert f"the rule {bad} goes round" in message(
            lambda bad=bad: rewrite([node], [bad]), RuntimeError)
    twice = filled(x + x, {x: node_of([1.0])})  # becomes itself
    assert "goes round" in message(
        lambda: rewrite([twice], [rule(x + y, y + x)]), RuntimeError)


def test_deep_graphs_are_rewritten_in_a_few_passes():
    first = node = node_of([1.0, 2.0])
    for _ in range(1_000):
        node = filled(x * 1 + -0.0, {x: OpNode(RESHAPE, (node,), (1, 2))})
        node = OpNode(RESHAPE, (node,), (2,))
    fired: list[Rule] = []
    roots = rewrite([node, first, node], RULES, fired.append)
    assert roots == [first] * 3
    assert len(fired) < 6_000  # of a thousand times five nodes


def variables(*counts: int) -> list[OpNode]:
    """The loop variables of a nest, each over the whole grid."""
    found = []
    for axis, n in enumerate(counts):
        own = tuple([n if k == axis else 1 for k in range(len(counts))])
        one = OpNode(RESHAPE, (OpNode(IOTA, (), n),), own)
        found.append(OpNode(EXPAND, (one,), counts))
    return found


def some_index(rng: Any, shape: Shape, dtype: DType, hole: Hole) -> OpNode:
    """A loop variable, shifted; or a small constant."""
    if hole.constant:
        return constant(int(rng.integers(-2, 13)), dtype, shape)
    variable = variables(*shape)[rng.integers(len(shape))]
    shift = constant(int(rng.integers(-20, 5)), int64, shape)
    shifted = OpNode(ADD, (variable, shift))
    return OpNode(CAST, (shifted if rng.random() < 0.5 else variable,),
                  dtype)


def test_indices_keep_their_values():
    rng = np.random.default_rng(0)
    fired: Counter[Rule] = Counter()
    for _ in range(60):
        for each in INDEX:
            dtype = (int64, int32, int8)[rng.integers(3)]
            old = grown(rng, each.left, {}, some_index, (12, 7), dtype)
            new = replacement(old, each)
            if new is not None:
                fired[each] += 1
                assert same([old], [new]), each
                assert weight(new) < weight(old), each
    assert set(fired) == {*INDEX}


def test_bounds_hold():
    rng = np.random.default_rng(1)
    terms = [each.left for each in INDEX] + [i - j, (i - j) * i % c]
    for _ in range(20):
        for term in terms:
            node = grown(rng, term, {}, some_index, (12, 7), int8)
            low, high = bounds(node)
            found = interpret([node], CPU)[0].array
            assert low <= found.min() and found.max() <= high


def test_every_rule_on_its_own():
    for number, each in enumerate(RULES):
        fired = 0
        for old, new in examples(each, 4000, number):
            assert same([old], [new]), each
            assert weight(new) < weight(old), each
            fired += 1
            if fired == 12:
                break
        assert fired, f"{each} never fires"


WRONG = [
    rule(x + 0.0, x), rule(x - -0.0, x), rule(x * 0, 0),
    rule(x - x, 0), rule(x / x, 1), rule(x.equal(x), True),
    rule(x + c - c, x), rule(x / c, x * inverse(c)), rule(x * c / c, x),
    rule(x.sum(p), x, alike(x, x.sum(p))),
    rule(i // i, 1), rule(i * c // c, i), rule(i % c % d, i % d),
    rule(i.cast(s).cast(t), i.cast(t)),
]


def test_wrong_rules_are_refuted():
    for each in WRONG:
        assert not all(same([old], [new])
                       for old, new in examples(each, 2000)), each


ANYTHING: list[Any] = [
    word(op)(*(x, y)[:op.arity], *[p] * (op in ARGUMENTS))
    for family in ("elementwise", "reduce", "movement")
    for op in FAMILIES[family] if op.arity < 3]
ANYTHING += [b.where(x, y), x.gather(word(IOTA)(2), 0)]


def random_program(rng: Any, seeds: Sequence[Any]) -> list[OpNode]:
    """Some roots of a graph that has grown from special numbers."""
    shape, dtype = SHAPES[rng.integers(len(SHAPES))], some_dtype(rng)
    pool = [leaf(rng, shape, dtype, x), leaf(rng, shape, dtype, c)]

    def make(rng: Any, shape: Shape, dtype: DType, hole: Hole) -> OpNode:
        able = [node for node in pool if node.shape == shape
                and (node.dtype is dtype or hole.kinds == "b")
                and fits(hole, node)]
        return able[rng.integers(len(able))] if able else leaf(
            rng, shape, dtype, hole)
    for _ in range(16):
        some = pool[rng.integers(len(pool))]
        try:
            pool.append(grown(rng, seeds[rng.integers(len(seeds))], {},
                              make, some.shape, some.dtype))
        except (TypeError, ValueError):
            continue  # the tables have refused it
    return pool[-4:]


def survives(rules: Sequence[Rule], seed: int,
             fired: Counter[Rule]) -> bool:
    """Whether a random program means the same when it is rewritten."""
    rng = np.random.default_rng(seed)
    seeds = [*ANYTHING, *[each.left for each in rules]]
    roots = random_program(rng, seeds)
    new = rewrite(roots, rules, lambda each: fired.update([each]))
    try:
        return same(roots, new)
    except IndexError:
        return True  # of a GATHER, which may be refused


def test_a_thousand_programs_mean_what_they_meant():
    fired: Counter[Rule] = Counter()
    rules = [*RULES, *INDEX]
    assert all(survives(rules, seed, fired) for seed in range(1_000))
    assert fired.total() > 3_000 and len(fired) > 0.9 * len(rules)


def test_a_wrong_rule_among_right_ones_is_found():
    for bad in (rule(x + 0.0, x), rule(x * 0, 0)):
        assert not all(survives([*RULES, bad], seed, Counter())
                       for seed in range(400)), bad
