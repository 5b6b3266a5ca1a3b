/* Tangled from kernels: edit there, `make tangle`. sha256:1a4cd28b2705 */
#line 1067 "chapters/gradients/kernels.md"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#define TWO_BLOCKS __launch_bounds__(256, 2)
enum { SIDE = 128, DEPTH = 8 };

/* a matrix in memory, and zeros around it */
template <class E> struct Matrix {
  const E *start;
  int rows, columns;
  __device__ E at(int i, int j) const {
    return i < rows && j < columns ? start[(long long)i * columns + j]
                                   : E(0.0f);
  }
};

struct Strips { float4 a[DEPTH][SIDE / 4 + 1], b[DEPTH][SIDE / 4]; };

/* fetch a strip of A, turned, and a strip of B */
__device__ void fetch_strips(Strips &to, Matrix<float> a, Matrix<float> b,
                             int top, int over, int q) {
#pragma unroll
  for (int e = threadIdx.x; e < SIDE * DEPTH; e += 256) {
    int i = e / DEPTH, p = e % DEPTH, r = e / SIDE, j = e % SIDE;
    ((float *)to.a[p])[i] = a.at(top + i, q + p);
    ((float *)to.b[r])[j] = b.at(q + r, over + j);
  }
}

#line 1101 "chapters/gradients/kernels.md"
/* a thread's 8 x 8 products for each of the DEPTH steps */
__device__ void multiply_strips(const Strips &from, int tx, int ty,
                                float (&sum)[8][8]) {
#pragma unroll
  for (int p = 0; p < DEPTH; p++) {
    float4 x0 = from.a[p][ty], x1 = from.a[p][ty + 16];
    float4 y0 = from.b[p][tx], y1 = from.b[p][tx + 16];
    float x[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
    float y[8] = {y0.x, y0.y, y0.z, y0.w, y1.x, y1.y, y1.z, y1.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] += x[i] * y[j];
  }
}

#line 1123 "chapters/gradients/kernels.md"
/* four neighbours of C[m, n], at once where their address allows */
__device__ void store_four(const float *from, float *c, int m, int n, int i,
                           int j) {
  if (i >= m) return;
  float *to = c + (long long)i * n + j;
  if (j + 4 <= n && (unsigned long long)to % 16 == 0) {
    *(float4 *)to = make_float4(from[0], from[1], from[2], from[3]);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (j + e < n) to[e] = from[e];
  }
}

#line 1141 "chapters/gradients/kernels.md"
/* C[m, n] = A[m, k] B[k, n], for a stack whose members lie sa, sb, sc
   apart; grid (n / 128, m / 128, stack) rounded up, block 256 */
extern "C" __global__ TWO_BLOCKS void gemm(
    int m, int n, int k, const float *a, const float *b, float *c,
    long long sa, long long sb, long long sc) {
  __shared__ Strips strips;
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  int top = blockIdx.y * SIDE, over = blockIdx.x * SIDE;
  float sum[8][8] = {};
  for (int q = 0; q < k; q += DEPTH) {
    fetch_strips(strips, {a + sa * blockIdx.z, m, k},
                 {b + sb * blockIdx.z, k, n}, top, over, q);
    __syncthreads();
    multiply_strips(strips, tx, ty, sum);
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < 16; e++)
    store_four(&sum[e / 2][e % 2 * 4], c + sc * blockIdx.z, m, n,
               top + e / 8 * 64 + ty * 4 + e / 2 % 4,
               over + e % 2 * 64 + tx * 4);
}

#line 1222 "chapters/gradients/kernels.md"
#if (defined TF32 || defined BF16) && __CUDA_ARCH__ < 800
#error "tf32 and bfloat16 need the tensor cores of sm_80 or later"
#endif
#if defined TF32
typedef float IN;
typedef nvcuda::wmma::precision::tf32 ELEMENT;
#elif defined BF16
typedef __nv_bfloat16 IN;
typedef __nv_bfloat16 ELEMENT;
#else
typedef __half IN;
typedef __half ELEMENT;
#endif
#ifndef OUT
#define OUT float
#endif

enum { STEP = sizeof(IN) == 2 ? 16 : 8, THICK = 2 * STEP,
       SKEW = 16 / sizeof(IN) };

struct Slabs { IN a[SIDE][THICK + SKEW], b[THICK][SIDE + SKEW]; };

#line 1248 "chapters/gradients/kernels.md"
__device__ IN rounded(IN x) {
#ifdef TF32
  return nvcuda::wmma::__float_to_tf32(x);
#else
  return x;
#endif
}

__device__ void fetch_slabs(Slabs &to, const Matrix<IN> &a,
                            const Matrix<IN> &b, int top, int over, int q) {
#pragma unroll
  for (int e = threadIdx.x; e < SIDE * THICK; e += 256) {
    int i = e / THICK, p = e % THICK, r = e / SIDE, j = e % SIDE;
    to.a[i][p] = rounded(a.at(top + i, q + p));
    to.b[r][j] = rounded(b.at(q + r, over + j));
  }
}

#line 1272 "chapters/gradients/kernels.md"
template <class Use>
using Fragment = nvcuda::wmma::fragment<Use, 16, 16, STEP, ELEMENT,
                                        nvcuda::wmma::row_major>;
typedef nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, STEP,
                               float> Total;

/* a warp's 32 x 64 products, from row `up` and column `side` on */
__device__ void multiply_slabs(const Slabs &from, int up, int side,
                               Total (&sum)[2][4]) {
#pragma unroll
  for (int p = 0; p < THICK; p += STEP) {
    Fragment<nvcuda::wmma::matrix_a> x;
    Fragment<nvcuda::wmma::matrix_b> y[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      load_matrix_sync(y[j], &from.b[p][side + 16 * j], SIDE + SKEW);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      load_matrix_sync(x, &from.a[up + 16 * i][p], THICK + SKEW);
#pragma unroll
      for (int j = 0; j < 4; j++) mma_sync(sum[i][j], x, y[j], sum[i][j]);
    }
  }
}

#line 1303 "chapters/gradients/kernels.md"
/* write a fragment to row i and column j of C[m, n], by way of `room` */
__device__ void store(const Total &sum, float (&room)[16][20], OUT *c, int m,
                      int n, int i, int j) {
  store_matrix_sync(&room[0][0], sum, 20, nvcuda::wmma::mem_row_major);
  __syncwarp();
  for (int e = threadIdx.x % 32; e < 256; e += 32) {
    int row = i + e / 16, column = j + e % 16;
    if (row < m && column < n)
      c[(long long)row * n + column] = OUT(room[e / 16][e % 16]);
  }
  __syncwarp();
}

#line 1320 "chapters/gradients/kernels.md"
/* gemm on tensor cores; the grid and the block are the same */
extern "C" __global__ TWO_BLOCKS void gemm_tensor(
    int m, int n, int k, const IN *a, const IN *b, OUT *c, long long sa,
    long long sb, long long sc) {
  __shared__ __align__(32) Slabs slabs;
  __shared__ __align__(32) float room[8][16][20];
  int warp = threadIdx.x / 32, up = warp / 2 * 32, side = warp % 2 * 64;
  int top = blockIdx.y * SIDE, over = blockIdx.x * SIDE;
  Total sum[2][4];
#pragma unroll
  for (int e = 0; e < 8; e++)
    nvcuda::wmma::fill_fragment(sum[e / 4][e % 4], 0.0f);
  for (int q = 0; q < k; q += THICK) {
    fetch_slabs(slabs, {a + sa * blockIdx.z, m, k},
                {b + sb * blockIdx.z, k, n}, top, over, q);
    __syncthreads();
    multiply_slabs(slabs, up, side, sum);
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < 8; e++)
    store(sum[e / 4][e % 4], room[warp], c + sc * blockIdx.z, m, n,
          top + up + e / 4 * 16, over + side + e % 4 * 16);
}
