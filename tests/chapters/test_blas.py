# Tangled from blas: edit there, `make tangle`. sha256:2c0dd0776247
from __future__ import annotations

import contextlib
import ctypes
import io
import os
from unittest import mock

import numpy as np
from hypothesis import given, settings, strategies as st

from companion.benchmark import EAGER, calls
from companion.blas import (
    FLAVOURS, LAYOUT, MR, POLICIES, Blocking, blocking, gemm, plan, product)
from companion.buffer import adopt
from companion.dtype import float32, float64
from companion.native import POOL, TOLD, compiler, cpu, kernel
from companion.tensor import Tensor
from companion.tensor.random import rand
from companion.timing import FORK, MISSING, compare, judged, row_of, turns
from companion.view import View

SIZES = st.sampled_from(
    [0, 1, 2, 3, 5, 6, 7, 12, 15, 16, 17, 31, 33, 48, 63, 64, 65, 66,
     100, 130])
STACKS = st.sampled_from([(), (1,), (3,), (2, 3), (0,)])


def matrices(draw, stack, m, n, dtype, writable=False):
    """A Buffer of random values in one of several layouts."""
    layout = draw(st.sampled_from(["dense", "turned", "steps", "flipped"]))
    seed = draw(st.integers(0, 99))
    if not writable and draw(st.booleans()):
        stack = (1,) * len(stack)
    shape = {"turned": (n, m), "steps": (2 * m, 3 * n)}.get(layout, (m, n))
    values = np.random.default_rng(seed).integers(-9, 10, stack + shape)
    x = values.astype(dtype)
    return {"dense": x, "turned": x.swapaxes(-1, -2),
            "steps": x[..., ::2, ::3], "flipped": x[..., ::-1, ::-1]}[layout]


@st.composite
def products(draw, dtypes=(np.float32, np.float64)):
    """c, a, b of shapes that fit, in any layouts."""
    dtype, stack = draw(st.sampled_from(dtypes)), draw(STACKS)
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)
    return (matrices(draw, stack, m, n, dtype, writable=True),
            matrices(draw, stack, m, k, dtype),
            matrices(draw, stack, k, n, dtype))


def spread_out(x, stack):
    """A Buffer whose stack is as long as it should be, by stride 0."""
    return adopt(np.broadcast_to(x, stack + x.shape[-2:]))


@settings(max_examples=300, deadline=None)
@given(products(), st.sampled_from([1, 0, -2]), st.sampled_from([0, 1, 3]),
       st.sampled_from([1, 2, 3]))
def test_gemm_against_numpy(operands, alpha, beta, threads):
    c, a, b = operands
    expected = alpha * np.matmul(a, b, dtype=np.float64) + beta * c
    if beta == 0:
        c[...] = np.nan
    if alpha == 0:
        a[...], b[...] = np.nan, np.nan
    stack = c.shape[:-2]
    with mock.patch.object(POOL, "threads", threads):
        gemm(adopt(c), spread_out(a, stack), spread_out(b, stack),
             alpha, beta)
    np.testing.assert_array_equal(c, expected)


def levels_of_x86():
    """Names of the x86 generations that this processor can run."""
    needs = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}
    return [level for level, flag in needs.items() if flag in cpu().split()]


def test_every_width_of_vector():
    whole = np.random.default_rng(0).integers(-9, 10, (70, 90))
    for level, dtype in [(level, dtype) for level in levels_of_x86()
                         for dtype in (float32, float64)]:
        library = kernel("kernels/sgemm.c", f"-march={level}",
                         *FLAVOURS[dtype])
        a = whole.astype(dtype.numpy)
        for n in (1, 17, 65, 70):
            c = np.full((70, n), np.nan, dtype.numpy)
            views = [adopt(x).view for x in (a, a.T[:, :n], c)]
            job = plan(*views, 1.0, 0.0, blocking(library, dtype.itemsize), 2)
            library.sgemm.argtypes = [ctypes.c_void_p] * 4
            library.sgemm(job, *[adopt(x).address
                                 for x in (a, a.T[:, :n], c)])
            np.testing.assert_array_equal(c, a @ a.T[:, :n])


def test_large_products():
    random = np.random.default_rng(0)
    for m, n, k in ((200, 130, 2500), (1500, 300, 1100), (1, 5000, 3000),
                    (120, 1100, 700)):  # the last in two slabs
        for left in ((m, k), (k, m)):
            a = random.standard_normal(left, dtype=np.float32)
            a = a if left == (m, k) else a.T
            b = random.standard_normal((k, n), dtype=np.float32)
            c = np.empty((m, n), np.float32)
            with mock.patch.object(POOL, "threads", 3):
                gemm(adopt(c), adopt(a), adopt(b))
            error = np.abs(c - a.astype(np.float64) @ b).max()
            assert error < 1e-6 * k ** 0.5 * 10


def test_a_packed_chunk_serves_all_columns():
    """Each slab packs its chunk of A, so there is one slab."""
    copied = 0
    for bytes_, policy in POLICIES.items():
        how = Blocking(bytes_ // 2, *policy)
        for m, panels in np.ndindex(300, 9):
            n = 40 * panels
            b, c = View.dense((768, n)), View.dense((m, n))
            a = View.dense((768, m)).permute((1, 0))
            fields = LAYOUT.unpack(plan(a, b, c, 1.0, 0.0, how, 1))
            slabs, copy = fields[12], fields[16]
            copied += copy
            assert slabs == 1 or not copy or m <= MR
    assert copied > 1000


def multiply(results):
    """What a child of this process does."""
    x = np.eye(100, dtype=np.float32)
    with mock.patch.object(POOL, "threads", 3):
        gemm(adopt(c := np.empty_like(x)), adopt(x), adopt(x))
    results.put(np.array_equal(c, x))


def test_a_forked_process_multiplies():
    results = FORK.SimpleQueue()
    child = FORK.Process(target=multiply, args=(results,))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and results.get()


def test_gemm_refuses_what_does_not_fit():
    def ones(*shape, dtype=np.float32):
        return adopt(np.ones(shape, dtype))

    for c, a, b, message in (
            (ones(2, 2), ones(2, 3), ones(3, 9), "does not make (2, 2)"),
            (ones(2, 2), ones(2, 3), ones(2, 2), "(2, 3) @ (2, 2)"),
            (adopt(np.broadcast_to(np.float32(0), (2, 2))), ones(2, 2),
             ones(2, 2), "repeats elements"),
            (ones(2, 2), ones(2, 2, dtype="f8"), ones(2, 2), "one dtype")):
        try:
            gemm(c, a, b)
        except (TypeError, ValueError) as error:
            assert message in str(error)
        else:
            raise AssertionError(f"gemm made no objection: {message}")


def test_integers_are_multiplied_by_whole_numbers():
    for dtype in (np.int32, np.int64):
        a, c = np.array([[3, 4]], dtype), np.array([[10]], dtype)
        gemm(adopt(c), adopt(a), adopt(a.T), -2.0, 3.0)
        for factors in ((0.5, 0.0), (1.0, -1.5), (2.0 ** 70, 0.0)):
            try:
                gemm(adopt(c), adopt(a), adopt(a.T), *factors)
            except ValueError as error:
                assert "expected whole numbers" in str(error)
            else:
                raise AssertionError(f"{factors} went through")
        assert c.item() == -20


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([(3,), (2, 3), (4, 2, 3), (5, 1, 2, 3)]),
       st.sampled_from([(3,), (3, 2), (4, 3, 2), (4, 3, 1)]),
       st.sampled_from(["i1", "u1", "i4", "i8", "f2", "f4", "f8", "?"]))
def test_operator_follows_numpy(left, right, kind):
    random = np.random.default_rng(0)
    a, b = [random.integers(0, 9, s).astype(kind) for s in (left, right)]
    result = Tensor(a) @ Tensor(b)
    np.testing.assert_array_equal(result.numpy(), a @ b)
    assert result.numpy().dtype == a.dtype


def test_operands_that_do_not_fit():
    for a, b, message in (
            (rand(2, 3), rand(4, 5), "(2, 3) @ (4, 5)"),
            (rand(2, 3), 2, "expected vectors or matrices: use *")):
        try:
            a @ b
        except ValueError as error:
            assert message in str(error)
        else:
            raise AssertionError(f"{a.shape} @ {b} went through")


@contextlib.contextmanager
def no_compiler():
    """No compiler for a while, and nothing remembered of before."""
    remembered = compiler, product
    for function in remembered:
        function.cache_clear()
    with (mock.patch.dict(os.environ, PATH="", CC=""),
          mock.patch.dict(TOLD, clear=True),
          contextlib.redirect_stderr(io.StringIO()) as said):
        yield said
    for function in remembered:
        function.cache_clear()


def test_without_a_compiler():
    with no_compiler() as said:
        x = rand(3, 4)
        y = [x @ rand(4, 5) for _ in range(2)]
        gemm(adopt(z := np.ones((3, 3))), adopt(np.eye(3)),
             adopt(np.eye(3)), 2.0, 1.0)
        nothing = adopt(np.full((3, 3), np.nan))
        gemm(adopt(w := z.copy()), nothing, nothing, 0.0, 2.0)
        large = np.array([[2 ** 53 + 1]])
        gemm(adopt(n := large.copy()), adopt(large), adopt(large * 0 + 1),
             -2.0, 3.0)
    assert y[0].shape == (3, 5) and z[0].tolist() == [3, 1, 1]
    assert w[0].tolist() == [6, 2, 2] and n == large
    lines = said.getvalue().splitlines()
    assert len(lines) == 1 and "install one" in lines[0]


def test_rows_of_a_bench():
    row = {"case": "x", "threads": 1, "unit": "µs", "ours": 2.0,
           "ratio": 0.5, "spread": 0.02, "limit_fraction": None,
           "peer_name": "numpy"}
    assert row_of(row).split() == (
        "x 1 threads 2.0 µs 0.50 × numpy (± 0.01)".split())
    assert " 50 % " in row_of(row | {"limit_fraction": 0.5})
    assert "numpy: it is not installed" in row_of(row | MISSING)


def test_what_cannot_be_trusted_is_refused():
    row = {"case": "x", "threads": 1, "unit": "µs", "ours": 2.0,
           "peer": 1.0, "ratio": 0.67, "spread": 0.02,
           "limit_fraction": 0.5, "peer_name": "numpy"}
    assert judged(row) == row and judged(row | MISSING) == row | MISSING
    for fault, reason in (({"spread": 0.4}, "exceeds half its effect"),
                          ({"ratio": 473.0, "spread": 9.0},
                           "reaches 0% of the limit")):
        found = judged(row | fault)
        assert found["ratio"] is None and reason in row_of(found)


def test_a_rival_that_was_kept_waiting_decides_nothing():
    waiting = iter([1.0, 300.0, 1.1, 300.0, 300.0, 300.0, 300.0, 300.0])
    found = turns(lambda: 1.0, lambda: next(waiting), 7)
    row = found.line(lambda s: s) | {"peer_name": "a library"}
    assert judged(row)["ratio"] is None


def test_rivals_run_apart_and_agree():
    def setup(value):
        return lambda: lambda: (os.getpid() != parent, value)

    parent, seen = os.getpid(), []
    found = compare(setup(1), setup(2), 3,
                    agree=lambda *results: seen.append(results))
    assert seen == [((True, 1), (True, 2))] and found.ours > 0
    try:
        compare(lambda: lambda: os._exit(3), setup(2))
    except RuntimeError as error:
        assert "has failed" in str(error)
    else:
        raise AssertionError("a program that ended was timed")


def test_small_calls_are_measured():
    for case, run in list(EAGER.items())[:2]:
        found = calls(run, rounds=2)
        assert set(found) == set(MISSING), case
        assert found["ratio"] is None or found["ours"] < 1000
