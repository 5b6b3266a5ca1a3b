# Tangled from cuda: edit there, `make tangle`. sha256:09fdb8a53f17
from __future__ import annotations

import numpy as np

from companion.cuda import (
    Emulator, Traffic, Usage, check_marks, cuda_cell, numbered, on_card, races,
    read_usage, trace, traffic)
from companion.dtype import bfloat16
from companion.native import complaint

WAITING = """
extern "C" __global__ void leave(float *y) {
  __shared__ float room[64];
  if (threadIdx.x >= 20) return;
  room[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = room[19 - threadIdx.x];
}
extern "C" __global__ void halves(float *y) {
  float v = threadIdx.x;
  if (threadIdx.x & 1) v = __shfl_xor_sync(0xaaaaaaaa, v, 2);
  else v = __shfl_down_sync(0x55555555, v, 2);
  y[threadIdx.x] = v;
}
extern "C" __global__ void depart(int *y) {
  if (threadIdx.x >= 20) return;
  int left = __shfl_up_sync(~0u, int(threadIdx.x), 1);
  y[threadIdx.x] = 100 * left + __shfl_sync(~0u, left, -13);
  y[20] = __shfl_sync(~0u, left, 25);  // a lane that has left
}
"""

VOTING = """
extern "C" __global__ void vote(unsigned *y) {
  unsigned all = __ballot_sync(~0u, threadIdx.x % 3 == 0);
  bool one = threadIdx.x == 5;
  unsigned votes = __any_sync(~0u, one) + 2 * __all_sync(~0u, !one) +
                   4 * __all_sync(~0u, true) + 8 * __any_sync(~0u, false);
  if (threadIdx.x == 0 && threadIdx.y == 0) y[0] = all, y[1] = votes;
}
extern "C" __global__ void where(int *y) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  y[block * blockDim.x * blockDim.y * blockDim.z + t] = 10 * block + t;
}
"""

ORDERS = (1, -1, 7, 1234)


def test_threads_wait_in_every_order():
    for order in ORDERS:
        program = Emulator(order).compile(WAITING)
        y = np.full(64, 99, np.float32)
        program["leave"](2, 64, y)
        assert y[:20].tolist() == list(range(20))[::-1] and y[20] == 99
        program["halves"](1, 32, y)
        even = [min(i + 2, 30) for i in range(0, 32, 2)]
        odd = [i ^ 2 for i in range(1, 32, 2)]
        assert y[:32:2].tolist() == even and y[1:32:2].tolist() == odd
        y = np.zeros(32, np.int32)
        program["depart"](1, 32, y)
        assert y[:20].tolist() == [100 * max(i - 1, 0) + 18
                                   for i in range(20)]
        assert y[20] == -1
        bits = np.zeros(2, np.uint32)
        Emulator(order).compile(VOTING)["vote"](1, (32, 2), bits)
        assert bits[0] == sum(1 << i for i in range(0, 32, 3))
        assert bits[1] == 1 + 4


def test_every_thread_of_every_block_runs_once():
    for order in ORDERS:
        place = np.zeros((2 * 3 * 2, 4 * 2 * 3), np.int32)
        Emulator(order).compile(VOTING)["where"](
            (2, 3, 2), (4, 2, 3), place)
        expected = np.add.outer(10 * np.arange(12), np.arange(24))
        assert (place == expected).all()


def test_orders_are_what_they_say():
    text = """extern "C" __global__ void f(int *turn, int *y) {
      y[atomicAdd(turn, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
    }"""
    for order in (1, -1, 7):
        turn, y = np.zeros(1, np.int32), np.zeros(48, np.int32)
        Emulator(order).compile(text)["f"](6, 8, turn, y)
        assert sorted(y) == list(range(48))
        steps = set(np.diff(y).tolist())
        assert steps == {order} if abs(order) == 1 else len(steps) > 1


BROKEN = """
extern "C" __global__ void divided(float *x) {
  if (threadIdx.x < 16)
    __syncthreads();
  else
    __syncthreads();
}
extern "C" __global__ void stuck(float *x) {
  if (threadIdx.x < 16) __syncwarp();
  else __syncthreads();
}
extern "C" __global__ void unset(float *x) {
  __shared__ float room[32];
  x[threadIdx.x] = room[threadIdx.x];
}
"""


def complaint_of(run, *arguments):
    """What a call that must fail says."""
    try:
        run(*arguments)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("it went through")


def test_broken_kernels_are_told():
    x = np.zeros(32, np.float32)
    for order in ORDERS:
        program = Emulator(order).compile(BROKEN)
        said = complaint_of(program["divided"], 3, 32, x)
        assert "line 4" in said and "line 6" in said and "hang" in said
        said = complaint_of(program["stuck"], 1, 32, x)
        assert "line 10" in said and "within its warp" in said
        program["unset"](1, 32, x)
        assert np.isnan(x).all()
    for _ in range(100):  # more stacks than there are, if any were lost
        complaint_of(program["stuck"], 1, 32, x)


COUNTED = """
extern "C" __global__ void f(const float4 *x, float *y, const short *z) {
  __shared__ float room[64];
  int i = threadIdx.x;
  float4 v = x[i];
  room[2 * i % 64] = v.x + v.y + v.z + v.w;
  __syncthreads();
  y[0] = room[0] + z[i];
}
"""


def test_traffic_is_what_one_counts_by_hand():
    x, y, z = np.ones((32, 4), "f4"), np.ones(1, "f4"), np.ones(32, "i2")
    seen = trace(Emulator().compile(COUNTED), "f", 1, 32, x, y, z)
    assert traffic(seen) == {
        (0, "load"): Traffic(1, 16, 16), (1, "store"): Traffic(1, 1, 1),
        (2, "load"): Traffic(1, 2, 2), ("shared", "load"): Traffic(1, 1, 1),
        ("shared", "store"): Traffic(1, 2, 1)}
    assert set(races(seen)["address"]) == {1 << 40}  # all write y[0]


def test_races_between_blocks_and_within_warps():
    text = """extern "C" __global__ void f(int safe, int *x) {
      __shared__ int room[32];
      room[threadIdx.x] = 1;
      if (safe) __syncwarp();
      x[32 * blockIdx.x * safe + threadIdx.x] = room[31 - threadIdx.x];
    }"""
    program, x = Emulator().compile(text), np.zeros(64, np.int32)
    assert len(races(trace(program, "f", 2, 32, np.int32(1), x))) == 0
    found = races(trace(program, "f", 2, 32, np.int32(0), x))
    assert found["shared"].sum() == 128 and len(found) == 192


def test_atomics_do_not_race():
    text = """extern "C" __global__ void f(int safe, int *x) {
      if (safe) atomicMax(x, 3), atomicCAS(x, 3, 4);
      else atomicMax(x, *x);
    }"""
    program, x = Emulator().compile(text), np.zeros(1, np.int32)
    for safe in (1, 0):
        seen = trace(program, "f", 1, 64, np.int32(safe), x)
        assert (len(races(seen)) == 0) == safe


def test_bad_launches_are_told():
    program = Emulator().compile(BROKEN)
    unset, x = program["unset"], np.zeros(32, np.float32)
    for size in (0, 2048, 1.5, (32, 64), (1, 1, 65), (1, 1, 1, 1)):
        assert "expected 1 to 3" in complaint_of(unset, 1, size, x)
    assert "grid 0;" in complaint_of(unset, 0, 1, x)
    assert "has divided, stuck" in complaint_of(lambda: program["none"])
    assert "0 arguments, expected 1" in complaint_of(unset, 1, 1)
    assert "4 bytes long, expected 8" in complaint_of(
        unset, 1, 1, np.float32(1))
    assert "np.float32" in complaint_of(unset, 1, 1, 1.5)
    assert "pass a copy" in complaint_of(unset, 1, 1, x[::2])
    assert "cupy.asarray" in complaint_of(on_card, x)
    assert "np.float32" in complaint_of(on_card, 1.5)
    assert on_card(2 ** 40) == 2 ** 40 and on_card(print) is print
    assert "longer one" in complaint_of(
        Emulator().compile, BROKEN, "-DT=float")
    assert "no file" in complaint_of(cuda_cell, None, " ", BROKEN)


def test_kernels_are_found_by_name():
    text = """// __global__ void old(int n)
    /* __global__ void older() {} */
    extern "C" __global__ void f(int *x);
    extern "C" __global__ void __launch_bounds__(32) f(int *x) { *x = 1; }
    template <class T> __device__ T g(T x) { return x; }"""
    program, x = Emulator().compile(text), np.zeros(1, np.int32)
    program["f"](1, 1, x)
    assert program.names == ["f"] and x[0] == 1


PASSING = """
struct Range { int first, last; double step; };
extern "C" __global__ void fill(Range r, char tag, bool on, float *y) {
  int i = r.first + threadIdx.x;
  if (i < r.last && on) y[i] = r.step * i + tag;
}
"""


def test_arguments_of_every_size():
    kind = np.dtype([("first", "i4"), ("last", "i4"), ("step", "f8")])
    some = np.array((2, 5, 0.5), kind)
    for struct in (some, some[()]):
        assert on_card(struct).shape == (1,) and on_card(struct)[0] == some
        y = np.zeros(8, np.float32)
        Emulator().compile(PASSING)["fill"](
            1, 8, struct, np.int8(10), np.bool_(True), y.ctypes.data)
        assert y.tolist() == [0, 0, 11, 11.5, 12, 0, 0, 0]


def test_errors_in_kernels_name_the_line():
    text = '#line 7 "page.md"\nextern "C" __global__ void f() {\n  x = 1;\n}'
    said = complaint_of(Emulator().compile, text)
    assert said.startswith("page.md, line 8: ")
    moved = '#line 40 "other.md"\n' + BROKEN
    said = complaint_of(Emulator().compile(moved)["stuck"], 1, 32,
                        np.zeros(32, np.float32))
    assert "other.md, line 49" in said
    nvrtc = 'page.md(8): error: identifier "x" is undefined\n    x = 1;'
    assert complaint(nvrtc) == 'page.md, line 8: identifier "x" is undefined'
    ptxas = """f' for 'sm_80'\nptxas info : Function properties for f
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
    ptxas info : Used 40 registers, 8320 bytes smem, 400 bytes cmem[0]"""
    assert read_usage(ptxas) == ("f", Usage(40, 8320, 12))


FRAGMENTS = """
#include <mma.h>
using namespace nvcuda::wmma;
extern "C" __global__ void product(const half *a, const half *b, float *c) {
  fragment<matrix_a, 16, 16, 16, half, SIDE_major> x;
  fragment<matrix_b, 16, 16, 16, half, SIDE_major> y;
  fragment<accumulator, 16, 16, 16, float> sum;
  load_matrix_sync(x, a, 16), load_matrix_sync(y, b, 16);
  fill_fragment(sum, 1.0f);
  mma_sync(sum, x, y, sum);
  store_matrix_sync(c, sum, 16, mem_SIDE_major);
}
"""


def test_fragments_lie_by_rows_or_by_columns():
    a, b = np.random.default_rng(0).integers(-9, 9, (2, 16, 16)).astype("f2")
    c = np.zeros((16, 16), np.float32)
    for side, right in (("row", a @ b + 1), ("col", b @ a + 1)):
        Emulator().compile(FRAGMENTS.replace("SIDE", side))["product"](
            1, 32, a, b, c)
        assert np.array_equal(c, right)


WORDS = """
extern "C" __global__ void words(double *y, int *n) {
  double found[] = {
    abs(-1.5f), abs(-3), min(2, 1), max(2.5f, 1.0f), rsqrtf(4),
    __popc(7), __clz(1), __clz(0), __ffs(8), __umulhi(1u << 31, 6),
    __float_as_int(1), __uint_as_float(0x40000000), make_float4(1, 2, 3, 4).w,
    float(atomicAdd(n, 5)), float(atomicMax(n, 9)), float(atomicSub(n, 1)),
    float(atomicCAS(n, 8, 3)), float(atomicCAS(n, 8, 4)),
    float(atomicExch(n, 6)), float(atomicAnd(n, 3)), float(atomicOr(n, 4)),
    float(atomicMin(n, 7)), max(nanf(""), 1.0f), min(nan(""), 2.0),
    nvcuda::wmma::__float_to_tf32(1 + 0x1p-11f),
    nvcuda::wmma::__float_to_tf32(__int_as_float(-1))};
  for (int i = 0; i < 26; i++) y[i] = found[i];
}
"""


def test_words_mean_what_they_mean_in_cuda():
    y, n = np.zeros(26), np.zeros(1, np.int32)
    Emulator().compile(WORDS)["words"](1, 1, y, n)
    assert y[:-1].tolist() == [
        1.5, 3, 1, 2.5, 0.5, 3, 31, 32, 4, 3, 0x3f800000, 2, 4, 0, 5, 9, 8, 3,
        3, 6, 2, 6, 1, 2, 1 + 2 ** -10]
    assert n[0] == 6 and np.isnan(y[-1])


SHORT = """
#include <cuda_fp16.h>
extern "C" __global__ void round_trip(int n, const float *x, __half *h,
                                      __nv_bfloat16 *b, float *y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  h[i] = x[i], b[i] = x[i];
  y[i] = float(h[i]), y[n + i] = float(b[i]);
}
"""


def test_short_floats_round_as_numpy_does():
    some = np.random.default_rng(0).integers(0, 2 ** 32, 1 << 20, np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    edge = np.float32([0, 65519.99, 65520, 2 ** -24, 2 ** -25, 3e-8, np.inf])
    x = np.concatenate([some.view("f4"), halves.astype("f4"), edge, -edge])
    h, b, y = np.zeros_like(x, "u2"), np.zeros_like(x, "u2"), np.tile(x, 2)
    Emulator().compile(SHORT)["round_trip"](
        len(x) // 256 + 1, 256, np.int32(len(x)), x, h, b, y)
    with np.errstate(over="ignore", invalid="ignore"):
        for bits, kind, back in ((h, np.float16, y[:len(x)]),
                                 (b, bfloat16.numpy, y[len(x):])):
            right = x.astype(kind)
            same = bits == right.view("u2")
            assert (same | np.isnan(x)).all()
            assert np.array_equal(back, right.astype("f4"), equal_nan=True)


def test_traffic_of_odd_sizes():
    text = """struct Three { short a, b, c; };
    extern "C" __global__ void f(const Three *x, Three *y) {
      y[threadIdx.x] = x[threadIdx.x];
    }"""
    x, y = np.ones((2, 32, 3), np.int16)
    seen = trace(Emulator().compile(text), "f", 1, 32, x, y)
    assert set(traffic(seen).values()) == {Traffic(1, 6, 6)}
    assert traffic(seen[:0]) == {} and len(races(seen[:0])) == 0


def test_rows_keep_their_numbers_in_long_traces():
    up = np.arange(1 << 16)
    both, first = np.tile(up, 2), np.concatenate([up, up[::-1]])
    found = numbered(first, both, both, both, both)
    assert sorted(found) == list(range(1 << 17))


def test_traces_stop_what_leaves_its_arrays():
    text = """extern "C" __global__ void f(int n, float *x) {
      for (int i = 0; i <= n; i++) x[i] = i;
    }"""
    x = np.zeros(9, np.float32)
    program = Emulator().compile(text)
    assert "thread 0 writes 4 bytes outside" in complaint_of(
        trace, program, "f", 1, 1, np.int32(8), x[:8])
    assert x[7] == 7 and x[8] == 0
    assert len(trace(program, "f", 1, 1, np.int32(-1), x)) == 0
    wide = Emulator().compile("""extern "C" __global__ void f(float *x) {
      *(float4 *)(x + 1) = make_float4(1, 2, 3, 4);
    }""")
    assert "16 bytes at an address that is no multiple" in complaint_of(
        trace, wide, "f", 1, 1, x)
    assert "16 bytes outside" in complaint_of(
        trace, wide, "f", 1, 1, x.view("u1")[12:20].view("f4"))


def test_tracing_asks_for_gcc():
    check_marks("gcc (Debian 12.2.0-14) 12.2.0")
    assert "expected GCC" in complaint_of(
        check_marks, "Apple clang version 17.0.0")


def test_traces_forget_what_went_wrong_before():
    text = """extern "C" __global__ void f(int far, int *x) {
      if (far) atomicAdd(x + far, 1);
      else x[0] = 1;
    }"""
    program, x = Emulator().compile(text), np.zeros(4, np.int32)
    assert "outside" in complaint_of(trace, program, "f", 1, 2, np.int32(4), x)
    assert len(races(trace(program, "f", 1, 2, np.int32(0), x))) == 2


def test_lanes_that_meet_agree_on_the_count():
    text = """extern "C" __global__ void f(int *x) {
      __shared__ int room[32];
      if (threadIdx.x < 16) __syncwarp(0xffff);
      room[threadIdx.x] = threadIdx.x;
      __syncwarp();
      x[threadIdx.x] = room[31 - threadIdx.x];
    }"""
    x = np.zeros(32, np.int32)
    assert len(races(trace(Emulator().compile(text), "f", 1, 32, x))) == 0


def test_races_of_narrow_and_wide_accesses():
    text = """extern "C" __global__ void f(int wide, char *x, float4 *y) {
      x[threadIdx.x] = 1;
      if (wide) ((float *)y)[3] = 2;
      if (threadIdx.x == wide) y[0] = y[1];
    }"""
    program = Emulator().compile(text)
    x, y = np.zeros(32, np.int8), np.zeros((2, 4), np.float32)
    for wide, most in ((0, 0), (1, 33)):
        found = trace(program, "f", 1, 32, np.int32(wide), x, y)
        assert len(races(found)) == most
    odd = Emulator().compile("""struct Three { char a, b, c; };
    extern "C" __global__ void f(char *x) {
      if (threadIdx.x) *(int *)x = 1;
      else *(Three *)(x + 3) = {2, 3, 4};
    }""")
    assert len(races(trace(odd, "f", 1, 2, x))) == 2  # they share byte 3
    side = Emulator().compile("""extern "C" __global__ void f(char *x) {
      *(int *)(x + 2 + 4 * threadIdx.x) = 1;
    }""")
    assert len(races(trace(side, "f", 1, 3, x[2:]))) == 0
