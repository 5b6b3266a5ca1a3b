/* Tangled from launches: edit there, `make tangle`. sha256:ed74c5a3b2db */
#line 198 "chapters/compiler/launches.md"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef bool _Bool; // as C spells it
typedef __half half; // and as we do
typedef __nv_bfloat16 bf16;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

struct Sum {
    template <class T> static __device__ T join(T a, T b) { return a + b; }
};

struct Max { // NaN wins, and of two equal numbers the first
    template <class T> static __device__ T join(T a, T b)
    {
        return b > a || b != b ? b : a;
    }
};

// The lanes of a warp that work on this thread's row: N side by side.
template <int N> __device__ unsigned lanes()
{
    return N < 32 ? ((1u << N % 32) - 1) << threadIdx.y * N % 32 : ~0u;
}

#line 229 "chapters/compiler/launches.md"
// The values of N lanes as one, which all of them get.
template <class F, int N, class T> __device__ T in_warp(T v)
{
    for (int d = N / 2; d > 0; d /= 2)
        v = F::join(v, (T)__shfl_xor_sync(lanes<N>(), v, d));
    return (T)__shfl_sync(lanes<N>(), v, threadIdx.y * N % 32);
}

// The values of a block's 256 threads as one, which all of them get.
template <class F, class T> __device__ T in_block(T v, char *room)
{
    T *part = (T *)room;
    v = in_warp<F, 32>(v);
    __syncthreads(); // what was here has been read
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int k = 1; k < 8; k++)
        v = F::join(v, part[k]);
    return v;
}

#line 629 "chapters/compiler/launches.md"
// The values of a block's R rows of N threads as one row, in the first.
template <class F, int N, int R, class T> __device__ T
in_column(T v, char *room)
{
    T *part = (T *)room;
    int me = N * threadIdx.y + threadIdx.x;
    __syncthreads(); // what was here has been read
    part[me] = v;
    for (int d = R / 2; d > 0; d /= 2) {
        __syncthreads();
        if (threadIdx.y < d)
            part[me] = F::join(part[me], part[me + d * N]);
    }
    return part[me];
}

#line 884 "chapters/compiler/launches.md"
// n words of x written over others, unless an index was wrong.
template <class T> __device__ void
keep(const long *fault, long n, T *out, const T *x)
{
    long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
    for (; i < n && !*fault; i += gridDim.x * blockDim.x)
        out[i] = x[i];
}

extern "C" __global__ void keep1(const long *fault, long n, char *out,
                                 const char *x)
{
    keep(fault, n, out, x);
}

extern "C" __global__ void keep4(const long *fault, long n, int *out,
                                 const int *x)
{
    keep(fault, n, out, x);
}
