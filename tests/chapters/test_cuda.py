# Tangled from cuda: edit there, `make tangle`. sha256:4ef071e9153b
from __future__ import annotations

import numpy as np

from companion.cuda import Emulator, Traffic, on_card, races, trace, traffic
from companion.dtype import bfloat16
from companion.native import complaint

# chapters/gradients/cuda.md:1685
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
extern "C" __global__ void vote(unsigned *y) {
  unsigned all = __ballot_sync(~0u, threadIdx.x % 3 == 0);
  if (threadIdx.x == 0 && threadIdx.y == 0) *y = all;
}
extern "C" __global__ void where(int *y) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  y[block * blockDim.x * blockDim.y * blockDim.z + t] = 10 * block + t;
}
"""
ORDERS = (1, -1, 7, 1234)


# chapters/gradients/cuda.md:1715
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
        bits = np.zeros(1, np.uint32)
        program["vote"](1, (32, 2), bits)
        assert bits[0] == sum(1 << i for i in range(0, 32, 3))


# chapters/gradients/cuda.md:1731
def test_every_thread_of_every_block_runs_once():
    for order in ORDERS:
        place = np.zeros((2 * 3 * 2, 4 * 2 * 3), np.int32)
        Emulator(order).compile(WAITING)["where"](
            (2, 3, 2), (4, 2, 3), place)
        expected = np.add.outer(10 * np.arange(12), np.arange(24))
        assert (place == expected).all()


# chapters/gradients/cuda.md:1744
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


# chapters/gradients/cuda.md:1762
def complaint_of(run, *arguments):
    """What a call that must fail says."""
    try:
        run(*arguments)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("it went through")


# chapters/gradients/cuda.md:1774
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


# chapters/gradients/cuda.md:1790
def test_bad_launches_are_told():
    program = Emulator().compile(BROKEN)
    unset, x = program["unset"], np.zeros(32, np.float32)
    for size in (0, 2048, (32, 64), (1, 1, 65), (1, 1, 1, 1)):
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


# chapters/gradients/cuda.md:1811
PASSING = """
struct Range { int first, last; double step; };
extern "C" __global__ void fill(Range r, char tag, bool on, float *y) {
  int i = r.first + threadIdx.x;
  if (i < r.last && on) y[i] = r.step * i + tag;
}
"""


# chapters/gradients/cuda.md:1821
def test_arguments_of_every_size():
    kind = np.dtype([("first", "i4"), ("last", "i4"), ("step", "f8")])
    some = np.array((2, 5, 0.5), kind)
    for struct in (some, some[()]):
        assert on_card(struct).shape == (1,) and on_card(struct)[0] == some
        y = np.zeros(8, np.float32)
        Emulator().compile(PASSING)["fill"](
            1, 8, struct, np.int8(10), np.bool_(True), y.ctypes.data)
        assert y.tolist() == [0, 0, 11, 11.5, 12, 0, 0, 0]


# chapters/gradients/cuda.md:1836
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


# chapters/gradients/cuda.md:1850
WORDS = """
extern "C" __global__ void words(double *y, int *n) {
  double found[] = {
    abs(-1.5f), abs(-3), min(2, 1), max(2.5f, 1.0f), rsqrtf(4),
    __popc(7), __clz(1), __clz(0), __ffs(8), __umulhi(1u << 31, 6),
    __float_as_int(1), __uint_as_float(0x40000000), make_float4(1, 2, 3, 4).w,
    float(atomicAdd(n, 5)), float(atomicMax(n, 9)), float(atomicSub(n, 1)),
    float(atomicCAS(n, 8, 3)), float(atomicCAS(n, 8, 4)),
    float(atomicExch(n, 6)), float(atomicAnd(n, 3)), float(atomicOr(n, 4))};
  for (int i = 0; i < 21; i++) y[i] = found[i];
}
"""


# chapters/gradients/cuda.md:1865
def test_words_mean_what_they_mean_in_cuda():
    y, n = np.zeros(21), np.zeros(1, np.int32)
    Emulator().compile(WORDS)["words"](1, 1, y, n)
    assert y.tolist() == [1.5, 3, 1, 2.5, 0.5, 3, 31, 32, 4, 3, 0x3f800000, 2,
                          4, 0, 5, 9, 8, 3, 3, 6, 2]
    assert n[0] == 6


# chapters/gradients/cuda.md:1877
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


# chapters/gradients/cuda.md:1890
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


# chapters/gradients/cuda.md:1911
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


# chapters/gradients/cuda.md:1924
def test_traffic_is_what_one_counts_by_hand():
    x, y, z = np.ones((32, 4), "f4"), np.ones(1, "f4"), np.ones(32, "i2")
    seen = trace(Emulator().compile(COUNTED), "f", 1, 32, x, y, z)
    assert traffic(seen) == {
        (0, "load"): Traffic(1, 16, 16), (1, "store"): Traffic(1, 1, 1),
        (2, "load"): Traffic(1, 2, 2), ("shared", "load"): Traffic(1, 1, 1),
        ("shared", "store"): Traffic(1, 2, 1)}
    assert set(races(seen)["address"]) == {1 << 40}  # all write y[0]


# chapters/gradients/cuda.md:1937
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


# chapters/gradients/cuda.md:1950
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


# chapters/gradients/cuda.md:1967
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
