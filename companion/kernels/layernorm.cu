/* Tangled from kernels: edit there, `make tangle`. sha256:15deb6d8b1c1 */
#line 714 "chapters/gradients/kernels.md"
#ifndef REAL
#define REAL float
#endif

__device__ float2 sum_warp(float2 v) {
  for (int by = 16; by; by /= 2) {
    v.x += __shfl_xor_sync(~0u, v.x, by);
    v.y += __shfl_xor_sync(~0u, v.y, by);
  }
  return v;
}

/* the sums of two numbers over a block, in every thread */
__device__ float2 sum_block(float x, float y, float2 *room) {
  int lane = threadIdx.x % 32;
  float2 v = sum_warp(make_float2(x, y));
  if (lane == 0) room[threadIdx.x / 32] = v;
  __syncthreads();
  bool there = lane < blockDim.x / 32;
  return sum_warp(there ? room[lane] : make_float2(0, 0));
}

#line 740 "chapters/gradients/kernels.md"
/* y = (x - mean) rstd w + b for each row of x[rows, n];
   grid rows, block 32 i */
extern "C" __global__ void layernorm(int n, float eps, const REAL *x,
                                     const REAL *w, const REAL *b, REAL *y,
                                     float *mean, float *rstd) {
  __shared__ float2 room[32];
  x += (long long)n * blockIdx.x, y += (long long)n * blockIdx.x;
  float shift = x[0], sum = 0, squares = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float d = float(x[i]) - shift;
    sum += d, squares += d * d;
  }
  float2 total = sum_block(sum, squares, room);
  float away = total.x / n, variance = total.y / n - away * away;
  float m = shift + away, r = rsqrtf(eps + (variance < 0 ? 0 : variance));
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    y[i] = REAL((float(x[i]) - m) * r * float(w[i]) + float(b[i]));
  if (threadIdx.x == 0) mean[blockIdx.x] = m, rstd[blockIdx.x] = r;
}

#line 787 "chapters/gradients/kernels.md"
/* dx, from x, w, the gradient g of y, and what layernorm has kept */
extern "C" __global__ void layernorm_backward(
    int n, const REAL *x, const REAL *w, const REAL *g, const float *mean,
    const float *rstd, REAL *dx) {
  __shared__ float2 room[32];
  long long row = (long long)n * blockIdx.x;
  float m = mean[blockIdx.x], r = rstd[blockIdx.x], sum = 0, along = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float h = float(g[row + i]) * float(w[i]);
    sum += h, along += h * (float(x[row + i]) - m) * r;
  }
  float2 total = sum_block(sum, along, room);
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float h = float(g[row + i]) * float(w[i]);
    float hat = (float(x[row + i]) - m) * r;
    dx[row + i] = REAL(r * (h - total.x / n - hat * total.y / n));
  }
}

#line 810 "chapters/gradients/kernels.md"
/* dw and db, [parts, n] each: sums over a part of the rows;
   grid (n / 32 rounded up, parts), block (32, 8) */
extern "C" __global__ void layernorm_weights(
    int rows, int n, const REAL *x, const REAL *g, const float *mean,
    const float *rstd, float *dw, float *db) {
  __shared__ float2 room[8][32];
  int tx = threadIdx.x, ty = threadIdx.y, j = blockIdx.x * 32 + tx;
  int part = (rows + gridDim.y - 1) / gridDim.y, first = part * blockIdx.y;
  int last = min(rows, first + part);
  float w = 0, b = 0;
  for (int i = first + ty; i < last && j < n; i += 8) {
    long long at = (long long)i * n + j;
    b += float(g[at]);
    w += float(g[at]) * (float(x[at]) - mean[i]) * rstd[i];
  }
  room[ty][tx] = make_float2(w, b);
  __syncthreads();
  if (ty > 0 || j >= n) return;
  for (int r = 1; r < 8; r++) w += room[r][tx].x, b += room[r][tx].y;
  dw[(long long)blockIdx.y * n + j] = w;
  db[(long long)blockIdx.y * n + j] = b;
}
