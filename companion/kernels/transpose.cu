/* Tangled from kernels: edit there, `make tangle`. sha256:51fb589c7b5d */
#line 180 "chapters/gradients/kernels.md"
#ifndef REAL
#define REAL float
#endif

/* y[columns, rows] = x[rows, columns] transposed, for a stack of them;
   grid (columns / 32, rows / 32, stack) rounded up, block (32, 8) */
extern "C" __global__ void transpose(int rows, int columns, const REAL *x,
                                     REAL *y) {
  __shared__ REAL tile[32][33];
  int tx = threadIdx.x, ty = threadIdx.y;
  int i = blockIdx.y * 32, j = blockIdx.x * 32;
  x += (long long)blockIdx.z * rows * columns;
  y += (long long)blockIdx.z * rows * columns;
  for (int r = ty; r < 32; r += 8)
    if (i + r < rows && j + tx < columns)
      tile[r][tx] = x[(long long)(i + r) * columns + j + tx];
  __syncthreads();
  for (int r = ty; r < 32; r += 8)
    if (j + r < columns && i + tx < rows)
      y[(long long)(j + r) * rows + i + tx] = tile[tx][r];
}
