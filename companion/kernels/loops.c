/* Tangled from activations: edit there, `make tangle`. sha256:3f99aba2e146 */
#line 549 "chapters/tensors/activations.md"
#include <math.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#define INLINE inline __attribute__((always_inline))

typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
typedef void loop(long n, REAL *out, const REAL *x, const REAL *y,
                  const char *mask, const long *step);
/* m rows of n elements; steps of out, x, y and a mask from row to row, and
   in a row */
struct walk { long m, n, row[4], step[4], parts; pool *parallel; };
struct job {
  struct walk w;
  loop *f;
  REAL *out;
  const REAL *x, *y;
  const char *mask;
};

#line 576 "chapters/tensors/activations.md"
/* some of the rows; of a lone row, some of its elements */
static void part(void *job, long p) {
  struct job g = *(struct job *)job;
  long lone = g.w.m == 1, n = lone ? g.w.n : g.w.m;
  long i = n * p / g.w.parts, end = n * (p + 1) / g.w.parts;
  long *to = lone ? g.w.step : g.w.row;
  for (; i < end; i += lone ? end - i : 1)
    g.f(lone ? end - i : g.w.n, g.out + i * to[0], g.x + i * to[1],
        g.y + i * to[2], g.mask + i * to[3], g.w.step);
}

static void run(loop *f, const struct walk *w, REAL *out, const REAL *x,
                const REAL *y, const char *mask) {
  struct job g = {*w, f, out, x, y, mask};
  w->parallel(part, &g, w->parts, w->parts);
}

#line 597 "chapters/tensors/activations.md"
/* three loops, since only one that knows its steps is compiled to vectors;
   those of x and y are 0 or 1, and both 0 only where n is 1 */
#define EACH for (long i = 0; i < n; i++)
#define LOOP(name, code)                                              \
  static void name##_row(long n, REAL *out, const REAL *x,            \
                         const REAL *y, const char *mask,             \
                         const long *step) {                          \
    REAL a = *x, b = *y;                                              \
    if (!step[1]) EACH b = y[i], out[i] = code;                       \
    else if (!step[2]) EACH a = x[i], out[i] = code;                  \
    else EACH a = x[i], b = y[i], out[i] = code;                      \
  }                                                                   \
  void name(const struct walk *w, REAL *out, const REAL *x,           \
            const REAL *y, const char *mask) {                        \
    run(name##_row, w, out, x, y, mask);                              \
  }

LOOP(add, a + b)
LOOP(subtract, a - b)
LOOP(multiply, a * b)
LOOP(divide, a / b)
LOOP(maximum, (b > a) | (b != b) ? b : a)
LOOP(choose, mask[i] ? a : b)

#line 635 "chapters/tensors/activations.md"
enum { WIDE = sizeof(REAL) == 8, DIGITS = WIDE ? 52 : 23,
       BIAS = WIDE ? 1023 : 127, TERMS = WIDE ? 13 : 7 };
/* an integer as wide as REAL */
typedef __typeof__(__builtin_choose_expr(WIDE, 0l, 0)) whole;

static INLINE whole bits(REAL x) {
  whole k;
  memcpy(&k, &x, sizeof k);
  return k;
}

/* 2^k, where that is a normal number */
static INLINE REAL power(whole k) {
  REAL x;
  k = (k + BIAS) << DIGITS;
  memcpy(&x, &k, sizeof x);
  return x;
}

/* a b + c, rounded once where the processor has that */
static INLINE REAL fused(REAL a, REAL b, REAL c) {
#ifdef __FP_FAST_FMA
  return WIDE ? __builtin_fma(a, b, c) : __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

#line 667 "chapters/tensors/activations.md"
/* e^x = 2^k e^r, k whole and r small; the series of e^r, last term first */
static INLINE REAL exponential(REAL x) {
  const double ln2 = 0x1.62e42fefa39efp-1, tail = 0x1.abc9e3b39803fp-56;
  const double most = WIDE ? 0x1.62e42fep-1 : 0x1.62e4p-1;
  const REAL high = most, low = ln2 - most + tail;  /* k high is exact */
  /* added and taken off again, it rounds to a whole number */
  const REAL magic = WIDE ? 0x1.8p52 : 0x1.8p23;
  static const double c[] = {
    1 / 6227020800., 1 / 479001600., 1 / 39916800., 1 / 3628800.,
    1 / 362880., 1 / 40320., 1 / 5040., 1 / 720., 1 / 120., 1 / 24.,
    1 / 6., 1 / 2.};
  REAL k = fused(x, 0x1.71547652b82fep0, magic), p = c[13 - TERMS];
  whole n = bits(k) - bits(magic), half = n >> 1;
  k -= magic;
  REAL r = fused(-k, low, fused(-k, high, x));
#pragma GCC unroll 16
  for (int j = 14 - TERMS; j < 12; j++) p = fused(p, r, c[j]);
  /* in two halves: for a subnormal result 2^n is not a normal number */
  p = (1 + fused(r * r, p, r)) * power(half) * power(n - half);
  /* computed, then chosen: a branch forbids vectors. NaN is neither > nor < */
  return x > (WIDE ? 710 : 89) ? INFINITY : x < (WIDE ? -746 : -105) ? 0 : p;
}
LOOP(exponentiate, exponential(a))

#line 1098 "chapters/tensors/activations.md"
/* near 0 by a fit to erf(x) / x - 1, else 1 - (the eighth root)^8 */
static INLINE REAL error(REAL x) {
  static const REAL near[] = {
    -7.62788428e-6, 1.04242343e-4, -8.3461737e-4, 5.20973019e-3,
    -2.68606448e-2, 0.112836856, -0.376126311, 0.128379166};
  static const REAL far[] = {
    1.73542732e-4, -2.73167707e-3, 1.41093297e-2, -1.4172429e-2,
    -5.77689775e-2, -0.147566572, 1.00153878};
  REAL t = x < 0 ? -x : x, p = near[0], q = far[0];
  /* beyond, erf is 1 in float32, and the fit would run away */
  t = t > 4 ? 4 : t;
#pragma GCC unroll 16
  for (int j = 1; j < 8; j++) p = fused(p, t * t, near[j]);
#pragma GCC unroll 16
  for (int j = 1; j < 7; j++) q = fused(q, t, far[j]);
  q *= q, q *= q, q = fused(-q, q, 1);
  return t < 1.25f ? fused(x, p, x) : x < 0 ? -q : q;
}
/* the fits have the digits of float32: float64 asks the C library */
LOOP(error_function, WIDE ? erf(a) : error(a))
