/* Tangled from kernels: edit there, `make tangle`. sha256:a1237dcd1833 */
#line 314 "chapters/gradients/kernels.md"
#ifndef REAL
#define REAL float
#endif
#ifndef WIDE
#define WIDE double
#endif
#ifndef OP
#define OP Sum
#endif

struct Sum {
  static __device__ WIDE none(WIDE) { return 0; }
  static __device__ WIDE join(WIDE x, WIDE y) { return x + y; }
};
struct Max {
  static __device__ WIDE none(WIDE any) { return any; }
  static __device__ WIDE join(WIDE x, WIDE y) {
    return x > y || x != x ? x : y;
  }
};

#line 343 "chapters/gradients/kernels.md"
__device__ WIDE join_warp(WIDE mine) {
  for (int by = 16; by; by /= 2)
    mine = OP::join(mine, __shfl_xor_sync(~0u, mine, by));
  return mine;
}

/* what the threads of a block hold, joined: correct in its first warp */
__device__ WIDE join_block(WIDE mine, WIDE *room) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  mine = join_warp(mine);
  if (lane == 0) room[warp] = mine;
  __syncthreads();
  if (warp > 0) return mine;
  bool there = lane < blockDim.x / 32;
  return join_warp(there ? room[lane] : OP::none(room[0]));
}

#line 364 "chapters/gradients/kernels.md"
/* y[rows, parts] = x[rows, n] reduced; grid (rows, parts), block 32 i */
extern "C" __global__ void reduce_rows(long long n, const REAL *x,
                                       WIDE *y) {
  __shared__ WIDE room[32];
  long long part = (n + gridDim.y - 1) / gridDim.y;
  long long i = part * blockIdx.y, last = min(n, i + part);
  x += n * blockIdx.x;
  WIDE mine = OP::none(n ? (WIDE)x[0] : (WIDE)0);
#pragma unroll 4
  for (i += threadIdx.x; i < last; i += blockDim.x)
    mine = OP::join(mine, (WIDE)x[i]);
  mine = join_block(mine, room);
  if (threadIdx.x == 0)
    y[(long long)blockIdx.x * gridDim.y + blockIdx.y] = mine;
}

#line 405 "chapters/gradients/kernels.md"
/* y[outer, parts, inner] = x[outer, n, inner] reduced;
   grid (inner / 32 rounded up, parts, up to outer), block (32, 8) */
extern "C" __global__ void reduce_columns(long long outer, long long n,
                                          long long inner, const REAL *x,
                                          WIDE *y) {
  __shared__ WIDE room[8][32];
  int tx = threadIdx.x, ty = threadIdx.y;
  long long part = (n + gridDim.y - 1) / gridDim.y;
  long long first = part * blockIdx.y, last = min(n, first + part);
  long long j = blockIdx.x * 32ll + tx;
  for (long long o = blockIdx.z; o < outer; o += gridDim.z) {
    const REAL *from = x + o * n * inner + j;
    WIDE mine = OP::none(n && j < inner ? (WIDE)*from : (WIDE)0);
    for (long long i = first + ty; i < last && j < inner; i += 8)
      mine = OP::join(mine, (WIDE)from[i * inner]);
    room[ty][tx] = mine;
    __syncthreads();
    for (int r = 1; r < 8 && ty == 0; r++)
      mine = OP::join(mine, room[r][tx]);
    if (ty == 0 && j < inner)
      y[(o * gridDim.y + blockIdx.y) * inner + j] = mine;
    __syncthreads();
  }
}
