/* Tangled from kernels: edit there, `make tangle`. sha256:a0216eb45616 */
#line 577 "chapters/gradients/kernels.md"
#ifndef REAL
#define REAL float
#endif

/* the largest value so far, and the sum of exp(x - most) */
struct Running { float most, sum; };

__device__ Running join(Running a, Running b) {
  float top = fmaxf(a.most, b.most);
  return {top, a.sum * expf(a.most - top) + b.sum * expf(b.most - top)};
}

__device__ Running join_warp(Running mine) {
  for (int by = 16; by; by /= 2)
    mine = join(mine, {__shfl_xor_sync(~0u, mine.most, by),
                       __shfl_xor_sync(~0u, mine.sum, by)});
  return mine;
}

#line 600 "chapters/gradients/kernels.md"
/* y = softmax of each row of x[rows, n]; grid rows, block 32 i */
extern "C" __global__ void softmax(long long n, const REAL *x, REAL *y) {
  __shared__ Running room[32];
  const Running none = {-3.402823466e38f, 0};
  int lane = threadIdx.x % 32;
  Running mine = none;
  x += n * blockIdx.x, y += n * blockIdx.x;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) {
    float ahead = float(x[i]) - mine.most, e = expf(-fabsf(ahead));
    mine.sum = ahead > 0 ? mine.sum * e + 1 : mine.sum + e;
    mine.most = fmaxf(mine.most, x[i]);
  }
  mine = join_warp(mine);
  if (lane == 0) room[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = join_warp(lane < blockDim.x / 32 ? room[lane] : none);
  for (long long i = threadIdx.x; i < n; i += blockDim.x)
    y[i] = REAL(expf(float(x[i]) - mine.most) / mine.sum);
}
