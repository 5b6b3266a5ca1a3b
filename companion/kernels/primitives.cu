/* Tangled from gpu: edit there, `make tangle`. sha256:44bbbb2bb0cd */
#line 299 "chapters/gradients/gpu.md"
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

template <int N> __device__ Spot<N> spot(const Walk &w, i64 i)
{
    Spot<N> s = {};
#pragma unroll 1
    for (int d = (int)w.rank - 1; d > 0; d--) {
        i64 outer = i / w.length[d];
        for (int k = 0; k < N; k++)
            s.at[k] += (i - outer * w.length[d]) * w.step[k][d];
        i = outer;
    }
    for (int k = 0; k < N; k++) // what is left counts the outermost axis
        s.at[k] += i * w.step[k][0];
    return s;
}

#line 333 "chapters/gradients/gpu.md"
template <int N> __device__ Spot<N> line(const Walk &w, i64 i)
{
    Spot<N> s;
    for (int k = 0; k < N; k++)
        s.at[k] = i * w.step[k][0];
    return s;
}

#line 362 "chapters/gradients/gpu.md"
#define FIRST (blockIdx.x * (i64)blockDim.x + threadIdx.x)
#define APART (gridDim.x * (i64)blockDim.x)

// Elements i, i + step, … below n: four are asked for, then used.
template <class Load, class Use> __device__ void
in_fours(i64 i, i64 step, i64 n, Load load, Use use)
{
    for (; i < n; i += 4 * step) {
        decltype(load(i)) got[4];
        for (int u = 0; u < 4; u++)
            if (i + u * step < n)
                got[u] = load(i + u * step);
        for (int u = 0; u < 4; u++)
            if (i + u * step < n)
                use(got[u]);
    }
}

#line 386 "chapters/gradients/gpu.md"
// Load and use what a walk visits; one axis needs no division.
template <int N, class Load, class Use> __device__ void
visit(const Walk &w, i64 i, i64 step, i64 n, Load load, Use use)
{
    auto at_line = [&](i64 i) { return load(line<N>(w, i)); };
    auto at_spot = [&](i64 i) { return load(spot<N>(w, i)); };
    if (w.rank < 2)
        in_fours(i, step, n, at_line, use);
    else
        in_fours(i, step, n, at_spot, use);
}

#line 412 "chapters/gradients/gpu.md"
struct Pair { i64 to; T a, b; };

template <class R, class F> __device__ void
map(const Walk &w, R *out, const T *x, F f)
{
    visit<2>(w, FIRST, APART, w.size, [&](Spot<2> s) {
        return Pair{s.at[0], x[s.at[1]]};
    }, [&](Pair p) { out[p.to] = (R)f((W)p.a); });
}

template <class R, class F> __device__ void
map(const Walk &w, R *out, const T *x, const T *y, F f)
{
    visit<3>(w, FIRST, APART, w.size, [&](Spot<3> s) {
        return Pair{s.at[0], x[s.at[1]], y[s.at[2]]};
    }, [&](Pair p) { out[p.to] = (R)f((W)p.a, (W)p.b); });
}

#line 464 "chapters/gradients/gpu.md"
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

#line 496 "chapters/gradients/gpu.md"
template <class N> __device__ N power(N a, N b)
{
    if constexpr ((N)0.5 == 0) {
        if (b < 0 && a != 1 && a != (N)-1)
            return 0;
        unsigned long long left = b < 0 ? b & 1 : b, x = a, y = 1;
        for (; left; left >>= 1, x *= x)
            if (left & 1)
                y *= x;
        return (N)y;
    } else {
        return pow(a, b);
    }
}

#line 515 "chapters/gradients/gpu.md"
extern "C" __global__ void choose(Walk w, T *out, const bool *c,
                                  const T *x, const T *y)
{
    struct Choice { i64 to; bool c; T a, b; };
    visit<4>(w, FIRST, APART, w.size, [&](Spot<4> s) {
        return Choice{s.at[0], c[s.at[1]], x[s.at[2]], y[s.at[3]]};
    }, [&](Choice p) { out[p.to] = p.c ? p.a : p.b; });
}

template <class V, class S> __device__ void
cast(const Walk &w, T *out, const S *x)
{
    struct Cast { i64 to; S from; };
    visit<2>(w, FIRST, APART, w.size, [&](Spot<2> s) {
        return Cast{s.at[0], x[s.at[1]]};
    }, [&](Cast p) { out[p.to] = (T)(W)(V)p.from; });
}

#define EACH(i, n) i64 i = FIRST; i < (n); i += APART

extern "C" __global__ void fill(Walk w, A value, T *out)
{
    for (EACH(i, w.size))
        out[spot<1>(w, i).at[0]] = (T)value;
}

#line 695 "chapters/gradients/gpu.md"
struct Sum {
    static __device__ A none(A) { return 0; }
    static __device__ A join(A a, A b) { return a + b; }
};

struct Max { // of a and a is a, so any value that takes part is neutral
    static __device__ A none(A any) { return any; }
    static __device__ A join(A a, A b) { return a != a || a > b ? a : b; }
};

#line 709 "chapters/gradients/gpu.md"
struct Room { A part[8][33]; };

__device__ inline Room &room() // of the block
{
    __shared__ Room it;
    return it;
}

// The values of a row's 32 or 256 threads as one, in the first of them.
template <class F> __device__ A whole(A v)
{
    A *part = room().part[0];
    for (int d = 16; d > 0; d /= 2)
        v = F::join(v, __shfl_down_sync(0xffffffff, v, d));
    if (blockDim.x == 32)
        return v;
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    for (int k = 1; k < 8 && threadIdx.x == 0; k++)
        v = F::join(v, part[k]);
    return v;
}

#line 739 "chapters/gradients/gpu.md"
template <class F, class R, class S> __device__ void
rows(const Walk &kept, const Walk &along, i64 piece, R *out, const S *x)
{
    i64 start = blockIdx.y * piece;
    i64 end = start + piece < along.size ? start + piece : along.size;
    i64 o = blockIdx.x * (i64)blockDim.y + threadIdx.y;
    if (o < kept.size) {
        const S *row = x + spot<1>(kept, o).at[0];
        auto read = [&](Spot<1> s) { return row[s.at[0]]; };
        A v = F::none((A)read(spot<1>(along, start)));
        visit<1>(along, start + threadIdx.x, blockDim.x, end, read,
                 [&](S s) { v = F::join(v, (A)s); });
        v = whole<F>(v);
        if (threadIdx.x == 0)
            out[o * gridDim.y + blockIdx.y] = (R)v;
    }
}

#line 763 "chapters/gradients/gpu.md"
// 32 neighbouring results in a block, 8 threads on each.
template <class F, class R, class S> __device__ void
columns(const Walk &kept, const Walk &along, i64 piece, R *out, const S *x)
{
    auto &part = room().part;
    i64 start = blockIdx.y * piece;
    i64 end = start + piece < along.size ? start + piece : along.size;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    i64 o = blockIdx.x * (i64)32 + lane;
    if (o < kept.size) {
        const S *column = x + spot<1>(kept, o).at[0];
        auto read = [&](Spot<1> s) { return column[s.at[0]]; };
        A v = F::none((A)read(spot<1>(along, start)));
        visit<1>(along, start + warp, 8, end, read,
                 [&](S s) { v = F::join(v, (A)s); });
        part[warp][lane] = v;
    }
    __syncthreads();
    if (o < kept.size && warp == 0) {
        A v = part[0][lane];
        for (int k = 1; k < 8; k++)
            v = F::join(v, part[k][lane]);
        out[o * gridDim.y + blockIdx.y] = (R)v;
    }
}

#line 983 "chapters/gradients/gpu.md"
extern "C" __global__ void iota(i64 n, i64 *out)
{
    for (EACH(i, n))
        out[i] = i;
}

__device__ inline void mix(unsigned &x, unsigned &y, int r)
{
    x += y;
    y = x ^ (y << r | y >> (32 - r));
}

#line 999 "chapters/gradients/gpu.md"
// Threefry-2x32, 20 rounds: two numbers in [0, 1) from one counter.
extern "C" __global__ void uniform(i64 n, float *out, const i64 *key)
{
    const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    unsigned k[3] = {(unsigned)key[0], (unsigned)(key[0] >> 32)};
    k[2] = k[0] ^ k[1] ^ 0x1BD11BDA;
    for (EACH(i, (n + 1) / 2)) {
        i64 count = key[1] + i;
        unsigned x = (unsigned)count + k[0];
        unsigned y = (unsigned)(count >> 32) + k[1];
        for (int block = 0; block < 5; block++) {
            for (int r = 0; r < 4; r++)
                mix(x, y, turns[block % 2][r]);
            x += k[(block + 1) % 3];
            y += k[(block + 2) % 3] + block + 1;
        }
        out[2 * i] = (x >> 8) * 0x1p-24f;
        if (2 * i + 1 < n)
            out[2 * i + 1] = (y >> 8) * 0x1p-24f;
    }
}

#line 1087 "chapters/gradients/gpu.md"
// An indexed axis: its length, the step along it, the least index.
struct Axis { i64 n, far, least; };

// Whether j counts its things, from either end; if not, a note.
__device__ inline bool inside(i64 &j, Axis axis, i64 *fault)
{
    bool fine = axis.least <= j && j < axis.n;
    if (!fine) {
        fault[1] = j;
        fault[2] = axis.n;
        fault[3] = axis.least;
        fault[0] = 1;
    }
    j += j < 0 ? axis.n : 0;
    return fine;
}

extern "C" __global__ void gather(Walk w, Axis axis, i64 *fault,
                                  T *out, const i64 *index, const T *x)
{
    for (EACH(i, w.size)) {
        Spot<3> s = spot<3>(w, i);
        i64 j = index[s.at[1]];
        if (inside(j, axis, fault))
            out[s.at[0]] = x[s.at[2] + j * axis.far];
    }
}

#line 1121 "chapters/gradients/gpu.md"
template <class N> __device__ void add_to(N *place, N value)
{
    atomicAdd(place, value);
}

__device__ inline void add_to(i64 *place, i64 value)
{
    atomicAdd((unsigned long long *)place, (unsigned long long)value);
}

extern "C" __global__ void scatter(Walk w, Axis axis, i64 *fault,
                                   A *out, const i64 *index, const T *x)
{
    for (EACH(i, w.size)) {
        Spot<3> s = spot<3>(w, i);
        i64 j = index[s.at[1]];
        if (inside(j, axis, fault))
            add_to(out + s.at[0] + j * axis.far, (A)x[s.at[2]]);
    }
}

#line 1504 "chapters/gradients/gpu.md"
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
