/* Tangled from gpu: edit there, `make tangle`. sha256:610961528bc9 */
#line 282 "chapters/gradients/gpu.md"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long i64;
typedef MEMORY T; // an element as it lies in memory,
typedef WORK W;   // as it is computed in,
typedef TOTAL A;  // and as it is summed in

struct Walk { // lengths, outermost first; steps of four arrays
    i64 size, rank, length[8], step[4][8];
};
template <int N> struct Spot { i64 at[N]; };

__device__ inline i64 quotient(i64 i, i64 n)
{
    return (i | n) >> 31 ? i / n : (unsigned)i / (unsigned)n;
}

template <int N> __device__ Spot<N> spot(const Walk &w, i64 i)
{
    Spot<N> s = {};
    for (int d = (int)w.rank - 1; d >= 0; d--) {
        i64 outer = d ? quotient(i, w.length[d]) : 0;
        for (int k = 0; k < N; k++)
            s.at[k] += (i - outer * w.length[d]) * w.step[k][d];
        i = outer;
    }
    return s;
}

#line 322 "chapters/gradients/gpu.md"
#define EACH(i, n) \
    i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < (n); \
    i += (i64)gridDim.x * blockDim.x

template <class R, class F> __device__ void
map(const Walk &w, R *out, const T *x, F f)
{
    for (EACH(i, w.size)) {
        Spot<2> s = spot<2>(w, i);
        out[s.at[0]] = (R)f((W)x[s.at[1]]);
    }
}

template <class R, class F> __device__ void
map(const Walk &w, R *out, const T *x, const T *y, F f)
{
    for (EACH(i, w.size)) {
        Spot<3> s = spot<3>(w, i);
        out[s.at[0]] = (R)f((W)x[s.at[1]], (W)y[s.at[2]]);
    }
}

#line 373 "chapters/gradients/gpu.md"
template <class N> __device__ N floor_remainder(N a, N b)
{
    if constexpr ((N)0.5 == 0) { // whole numbers
        if (b == 0 || b == (N)-1)
            return 0;
        N r = a % b;
        return r != 0 && (r < 0) != (b < 0) ? r + b : r;
    } else {
        N r = fmod(a, b);
        return r == 0 ? copysign((N)0, b) : (r < 0) != (b < 0) ? r + b : r;
    }
}

template <class N> __device__ N floor_quotient(N a, N b)
{
    if constexpr ((N)0.5 == 0) {
        if (b == 0 || b == (N)-1) // the lowest number has no opposite
            return b == 0 ? 0 : 0 - a;
        return a / b - (a % b != 0 && (a < 0) != (b < 0));
    } else if (b == 0) {
        return a / b;
    } else {
        N r = fmod(a, b), q = (a - r) / b - (r != 0 && (r < 0) != (b < 0));
        N whole = floor(q);
        return q == 0 ? copysign((N)0, a / b) : whole + (q - whole > (N)0.5);
    }
}

#line 407 "chapters/gradients/gpu.md"
extern "C" __global__ void choose(Walk w, T *out, const bool *c,
                                  const T *x, const T *y)
{
    for (EACH(i, w.size)) {
        Spot<4> s = spot<4>(w, i);
        out[s.at[0]] = c[s.at[1]] ? x[s.at[2]] : y[s.at[3]];
    }
}

template <class V, class S> __device__ void
cast(const Walk &w, T *out, const S *x)
{
    for (EACH(i, w.size)) {
        Spot<2> s = spot<2>(w, i);
        out[s.at[0]] = (T)(W)(V)x[s.at[1]];
    }
}

extern "C" __global__ void fill(Walk w, A value, T *out)
{
    for (EACH(i, w.size))
        out[spot<1>(w, i).at[0]] = (T)value;
}

#line 585 "chapters/gradients/gpu.md"
struct Sum {
    static __device__ A none(A) { return 0; }
    static __device__ A join(A a, A b) { return a + b; }
};

struct Max { // of a and a is a, so any value that takes part is neutral
    static __device__ A none(A any) { return any; }
    static __device__ A join(A a, A b) { return a != a || a > b ? a : b; }
};

// The values of a block's 256 threads as one, in thread 0.
template <class F> __device__ A whole(A v)
{
    __shared__ A parts[8];
    for (int d = 16; d > 0; d /= 2)
        v = F::join(v, __shfl_down_sync(0xffffffff, v, d));
    __syncthreads(); // the parts of the row before have been read
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = v;
    __syncthreads();
    for (int k = 1; k < 8 && threadIdx.x == 0; k++)
        v = F::join(v, parts[k]);
    return v;
}

#line 616 "chapters/gradients/gpu.md"
template <class F, class R, class S> __device__ void
rows(const Walk &kept, const Walk &along, i64 piece, R *out, const S *x)
{
    i64 start = blockIdx.y * piece;
    i64 end = start + piece < along.size ? start + piece : along.size;
    for (i64 o = blockIdx.x; o < kept.size; o += gridDim.x) {
        const S *row = x + spot<1>(kept, o).at[0];
        A v = F::none((A)row[spot<1>(along, start).at[0]]);
        for (i64 i = start + threadIdx.x; i < end; i += blockDim.x)
            v = F::join(v, (A)row[spot<1>(along, i).at[0]]);
        v = whole<F>(v);
        if (threadIdx.x == 0)
            out[o * gridDim.y + blockIdx.y] = (R)v;
    }
}

#line 636 "chapters/gradients/gpu.md"
// 32 neighbouring results in a block, 8 threads on each.
template <class F, class R, class S> __device__ void
columns(const Walk &kept, const Walk &along, i64 piece, R *out, const S *x)
{
    __shared__ A parts[8][33];
    i64 start = blockIdx.y * piece;
    i64 end = start + piece < along.size ? start + piece : along.size;
    int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    i64 o = blockIdx.x * (i64)32 + lane;
    if (o < kept.size) {
        const S *column = x + spot<1>(kept, o).at[0];
        A v = F::none((A)column[spot<1>(along, start).at[0]]);
        for (i64 i = start + part; i < end; i += 8)
            v = F::join(v, (A)column[spot<1>(along, i).at[0]]);
        parts[part][lane] = v;
    }
    __syncthreads();
    if (o < kept.size && part == 0) {
        A v = parts[0][lane];
        for (int k = 1; k < 8; k++)
            v = F::join(v, parts[k][lane]);
        out[o * gridDim.y + blockIdx.y] = (R)v;
    }
}

#line 933 "chapters/gradients/gpu.md"
// Whether index j counts n things, from either end; if not, a note.
__device__ inline bool inside(i64 &j, i64 n, i64 *fault)
{
    bool fine = -n <= j && j < n;
    if (!fine) {
        fault[1] = j;
        fault[2] = n;
        fault[0] = 1;
    }
    j += j < 0 ? n : 0;
    return fine;
}

extern "C" __global__ void gather(Walk w, i64 n, i64 far, i64 *fault,
                                  T *out, const i64 *index, const T *x)
{
    for (EACH(i, w.size)) {
        Spot<3> s = spot<3>(w, i);
        i64 j = index[s.at[1]];
        if (inside(j, n, fault))
            out[s.at[0]] = x[s.at[2] + j * far];
    }
}

#line 963 "chapters/gradients/gpu.md"
template <class N> __device__ void add_to(N *place, N value)
{
    atomicAdd(place, value);
}

__device__ inline void add_to(i64 *place, i64 value)
{
    atomicAdd((unsigned long long *)place, (unsigned long long)value);
}

extern "C" __global__ void scatter(Walk w, i64 n, i64 far, i64 *fault,
                                   A *out, const i64 *index, const T *x)
{
    for (EACH(i, w.size)) {
        Spot<3> s = spot<3>(w, i);
        i64 j = index[s.at[1]];
        if (inside(j, n, fault))
            add_to(out + s.at[0] + j * far, (A)x[s.at[2]]);
    }
}

#line 1277 "chapters/gradients/gpu.md"
extern "C" __global__ void product(Walk w, i64 k, i64 right, i64 down,
                                   T *out, const T *x, const T *y)
{
    for (EACH(i, w.size)) {
        Spot<3> s = spot<3>(w, i);
        A total = 0;
        for (i64 j = 0; j < k; j++)
            total += (A)x[s.at[1] + j * right] * (A)y[s.at[2] + j * down];
        out[s.at[0]] = (T)total;
    }
}
