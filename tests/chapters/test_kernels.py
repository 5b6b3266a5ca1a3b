# Tangled from kernels: edit there, `make tangle`. sha256:347630b72416
from __future__ import annotations

import ml_dtypes
import numpy as np

from companion.cuda import (
    Emulator, Usage, kernel_text, occupancy, races, trace, traffic)

ORDERS = (1, -1, 1234)


def shipped(file, *flags):
    """A kernel file of the library, once for each order of threads."""
    text = kernel_text(f"kernels/{file}")
    return [Emulator(order).compile(text, *flags) for order in ORDERS]


def up(n, size):
    """How many blocks of a size cover n."""
    return -(-n // size)


def no_races(program, *launch):
    """A launch stays in its arrays, and order cannot matter to it."""
    assert len(races(trace(program, *launch))) == 0


def test_transpose():
    random = np.random.default_rng(0)
    for flag, dtype in (("float", "f4"), ("double", "f8"), ("char", "i1")):
        for program in shipped("transpose.cu", f"-DREAL={flag}"):
            for rows, columns in ((1, 1), (31, 33), (64, 97), (1, 100)):
                x = random.integers(-99, 99, (2, rows, columns)).astype(dtype)
                y = np.zeros((2, columns, rows), dtype)
                launch = ("transpose", (up(columns, 32), up(rows, 32), 2),
                          (32, 8), np.int32(rows), np.int32(columns), x, y)
                program["transpose"](*launch[1:])
                assert np.array_equal(y, x.transpose(0, 2, 1))
        no_races(program, *launch)


KINDS = (("float", "double", "f4", "f8"), ("double", "double", "f8", "f8"),
         ("signed char", "long long", "i1", "i8"))
REDUCTIONS = (("Sum", np.sum), ("Max", np.max))


def reductions():
    """Every kind and operation: programs, and what they should give."""
    for real, wide, dtype, out in KINDS:
        for op, right in REDUCTIONS:
            flags = f"-DREAL={real}", f"-DWIDE={wide}", f"-DOP={op}"
            yield shipped("reduce.cu", *flags), dtype, out, right


def integers(shape, dtype):
    """Small and negative: exact sums, and no maximum is 0."""
    return np.random.default_rng(0).integers(-99, 0, shape).astype(dtype)


def test_reduce_rows():
    for programs, dtype, out, right in reductions():
        for rows, n, parts, block in ((1, 1, 1, 32), (3, 31, 2, 64),
                                      (3, 33, 40, 32), (2, 4099, 7, 1024)):
            x, y = integers((rows, n), dtype), np.zeros((rows, parts), out)
            for program in programs:
                launch = (rows, parts), block, np.int64(n), x, y
                program["reduce_rows"](*launch)
                assert (right(y, axis=1) == right(x.astype(out), 1)).all()
        no_races(programs[0], "reduce_rows", *launch)


def test_reduce_columns():
    for programs, dtype, out, right in reductions():
        for outer, n, inner in ((1, 1, 1), (3, 31, 5), (5, 100, 33)):
            x, y = integers((outer, n, inner), dtype), np.zeros(
                (outer, 2, inner), out)
            for program in programs:
                launch = ((up(inner, 32), 2, min(outer, 3)), (32, 8),
                          np.int64(outer), np.int64(n), np.int64(inner), x, y)
                program["reduce_columns"](*launch)
                assert (right(y, axis=1) == right(x.astype(out), 1)).all()
        no_races(programs[0], "reduce_columns", *launch)


def test_reduce_what_is_special():
    x = np.random.default_rng(0).standard_normal((2, 9999)).astype("f4")
    y, z = np.zeros((2, 1)), np.zeros((2, 1))
    total, most = shipped("reduce.cu")[0], shipped("reduce.cu", "-DOP=Max")[0]
    total["reduce_rows"](2, 512, np.int64(9999), x, y)
    assert np.allclose(y[:, 0], x.sum(1, dtype="f8"))
    ones = np.ones((2, 301), "f4")
    ones[:, 0] = 2 ** 24  # beside which float32 has no room for a one
    total["reduce_rows"](2, 32, np.int64(301), ones, y)
    assert y.tolist() == [[2.0 ** 24 + 300]] * 2
    total["reduce_rows"](2, 512, np.int64(0), x, y)
    assert (y == 0).all()
    x[0, 5000], x[1] = np.nan, -np.inf
    most["reduce_rows"](2, 512, np.int64(9999), x, z)
    assert np.isnan(z[0, 0]) and z[1, 0] == -np.inf


def test_softmax():
    random = np.random.default_rng(0)
    for real, dtype, most in (("float", np.float32, 1e-6),
                              ("__half", np.float16, 1e-3),
                              ("__nv_bfloat16", ml_dtypes.bfloat16, 1e-2)):
        for program in shipped("softmax.cu", f"-DREAL={real}"):
            for rows, n, block in ((1, 1, 32), (3, 31, 32), (2, 33, 256),
                                   (4, 5003, 1024)):
                x = (random.standard_normal((rows, n)) * 20 + 300)
                x, y = x.astype(dtype), np.zeros((rows, n), dtype)
                launch = rows, block, np.int64(n), x, y
                program["softmax"](*launch)
                e = np.exp(x.astype("f8") - x.astype("f8").max(1)[:, None])
                right = e / e.sum(1)[:, None]
                assert np.abs(y.astype("f8") - right).max() < most
        no_races(program, "softmax", *launch)


def test_softmax_of_infinities():
    x = np.float32([[0, -np.inf, 0, -np.inf], [np.inf, 0, 1, 2]])
    y = np.zeros_like(x)
    shipped("softmax.cu")[0]["softmax"](2, 32, np.int64(4), x, y)
    assert y[0].tolist() == [0.5, 0, 0.5, 0] and np.isnan(y[1, 0])


def test_softmax_of_a_row_that_is_masked():
    lowest = np.finfo(np.float32).min
    x = np.float32([[lowest] * 4, [-np.inf] * 4, [lowest, 0, lowest, 0]])
    y = np.zeros_like(x)
    shipped("softmax.cu")[0]["softmax"](3, 32, np.int64(4), x, y)
    assert (y[0] == 0.25).all() and np.isnan(y[1]).all()
    assert y[2].tolist() == [0, 0.5, 0, 0.5]


def check_layernorm(x, g, w, b, y, dx, dw, db):
    """Against the formulas, in float64."""
    r = 1 / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    hat, h = (x - x.mean(1, keepdims=True)) * r, g * w.astype("f8")
    along = hat * (h * hat).mean(1, keepdims=True)
    right = r * (h - h.mean(1, keepdims=True) - along)
    for ours, theirs in ((y, hat * w + b), (dx, right), (db.sum(0), g.sum(0)),
                         (dw.sum(0), (g * hat).sum(0))):
        assert np.allclose(ours, theirs, atol=2e-4 * np.abs(r).max())


def test_layernorm():
    random = np.random.default_rng(0)
    for program in shipped("layernorm.cu"):
        for rows, n, block in ((1, 2, 32), (3, 31, 32), (40, 384, 128),
                               (5, 1001, 1024)):
            x, g = random.standard_normal((2, rows, n)).astype("f4")
            w, b = random.standard_normal((2, n)).astype("f4")
            y, dx = np.zeros((2, rows, n), "f4")
            mean, rstd = np.zeros((2, rows), "f4")
            dw, db = np.zeros((2, 2, n), "f4")
            size, kept = np.int32(n), (mean, rstd)
            program["layernorm"](rows, block, size, np.float32(1e-5), x, w,
                                 b, y, *kept)
            program["layernorm_backward"](rows, block, size, x, w, g, *kept,
                                          dx)
            last = ((up(n, 32), 2), (32, 8), np.int32(rows), size, x, g,
                    *kept, dw, db)
            program["layernorm_weights"](*last)
            check_layernorm(x.astype("f8"), g, w, b, y, dx, dw, db)
    no_races(program, "layernorm_weights", *last)
    no_races(program, "layernorm_backward", rows, block, size, x, w, g,
             *kept, dx)


def test_layernorm_far_from_zero():
    x = np.random.default_rng(0).standard_normal((8, 500)) + 10_000
    x = x.astype("f4")
    y, (mean, rstd) = np.zeros_like(x), np.zeros((2, 8), "f4")
    one, zero = np.ones(500, "f4"), np.zeros(500, "f4")
    shipped("layernorm.cu")[0]["layernorm"](
        8, 64, np.int32(500), np.float32(1e-5), x, one, zero, y, mean, rstd)
    z = x.astype("f8")
    assert np.allclose(1 / rstd, z.std(1), rtol=1e-3)
    assert np.abs(y.std(1) - 1).max() < 1e-3


def test_layernorm_of_rows_without_a_variance():
    x = np.ones((3, 64), "f4")
    x[0, 3], x[1, 3] = np.inf, np.nan
    y, (mean, rstd) = np.zeros_like(x), np.zeros((2, 3), "f4")
    shipped("layernorm.cu")[0]["layernorm"](
        3, 32, np.int32(64), np.float32(1e-5), x, *np.ones((2, 64), "f4"), y,
        mean, rstd)
    assert np.isnan(y[:2]).all() and np.isnan(rstd[:2]).all()
    assert (y[2] == 1).all()


SIZES = ((1, 1, 1), (31, 33, 17), (128, 128, 32), (130, 257, 40), (7, 1, 99))
ZERO = np.int64(0)


def check_product(program, name, dtype, tolerance, sizes=SIZES):
    """A stack of two products of each size, against float64."""
    random = np.random.default_rng(0)
    for m, n, k in sizes:
        a, b, c = [np.full((2, *shape), np.nan, "f4")
                   for shape in ((m, k), (k, n), (m, n))]
        a[:], b[:] = [random.standard_normal(x.shape) for x in (a, b)]
        a, b = a.astype(dtype), b.astype(dtype)
        program[name]((up(n, 128), up(m, 128), 2), 256, np.int32(m),
                      np.int32(n), np.int32(k), a, b, c, np.int64(m * k),
                      np.int64(k * n), np.int64(m * n))
        if "-DTF32" in program.flags:
            a, b = [(x.view("u4") + 0x1000 & ~np.uint32(0x1fff)).view("f4")
                    for x in (a, b)]
        right = a.astype("f8") @ b.astype("f8")
        assert np.abs(c - right).max() <= tolerance * np.sqrt(k), (m, n, k)


def test_gemm():
    for program in shipped("gemm.cu"):
        check_product(program, "gemm", np.float32, 1e-5)
    x = np.ones((200, 20), "f4")
    sizes = np.int32(200), np.int32(20), np.int32(20)
    no_races(program, "gemm", (1, 2), 256, *sizes, x, x.copy(), x.copy(),
             *[ZERO] * 3)


def test_gemm_tensor():
    for flags, dtype in (((), np.float16), (("-DTF32",), np.float32),
                         (("-DBF16",), ml_dtypes.bfloat16)):
        for program in shipped("gemm.cu", *flags):
            check_product(program, "gemm_tensor", dtype, 1e-5)
        x = np.ones((150, 40), dtype)
        sizes = np.int32(150), np.int32(40), np.int32(40)
        no_races(program, "gemm_tensor", (1, 2), 256, *sizes, x, x.copy(),
                 x.astype("f4"), *[ZERO] * 3)


def test_no_transaction_is_wasted():
    x, y, z = np.ones((3, 128, 128), "f4")
    one, sizes = np.int32(128), [np.int32(128)] * 3
    for file, name, launch in (
            ("transpose", "transpose", ((4, 4), (32, 8), one, one, x, y)),
            ("gemm", "gemm", (1, 256, *sizes, x, y, z, *[ZERO] * 3))):
        seen = trace(shipped(f"{file}.cu")[0], name, *launch)
        for asked in traffic(seen).values():
            assert asked.transactions == asked.least


def test_products_of_nothing_are_zero():
    check_product(shipped("gemm.cu")[0], "gemm", np.float32, 1, ((3, 5, 0),))


def test_occupancy():
    def share(registers, shared=0, threads=256, arch="sm_80"):
        return occupancy(Usage(registers, shared, 0), threads, arch)

    assert [share(n) for n in (32, 33, 64, 128, 129, 255)] == [
        1, 0.75, 0.5, 0.25, 0.125, 0.125]
    assert share(32, 40 << 10) == 4 * 256 / 2048
    assert share(32, 41 << 10) == 3 * 256 / 2048
    assert share(32, 64 << 10, arch="sm_75") == 0.25
    assert share(16, threads=33) == 1
    assert share(16, threads=32) == 0.5
    assert share(152, threads=416) == 0 == share(255, threads=1024)
