/* Tangled from blas: edit there, `make tangle`. sha256:d936207865c3 */
#line 421 "chapters/tensors/blas.md"
#include <stdatomic.h>
#include <stdlib.h>

#ifndef REAL
#define REAL float
#endif
#if defined(__AVX512F__)
enum { BYTES = 64, NV = 4, KC = 1024 };
#elif defined(__AVX__)
enum { BYTES = 32, NV = 2, KC = 512 };
#elif defined(__aarch64__)
enum { BYTES = 16, NV = 4, KC = 512 };
#else
enum { BYTES = 16, NV = 2, KC = 512 };
#endif
enum { L = BYTES / sizeof(REAL), MR = 6, NR = NV * L, MC = 144 };
typedef REAL V __attribute__((vector_size(BYTES), aligned(4), may_alias));
long columns(void) { return NR; }
long bytes(void) { return BYTES; }

#line 463 "chapters/tensors/blas.md"
#define ROW(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#define EACH(X) ROW(X, 0) ROW(X, 1) ROW(X, 2) ROW(X, 3) ROW(X, 4) ROW(X, 5)
#define ZERO(i, j) V c##i##j = {0};
#define STEP(i, j) if (i < m && j < v) c##i##j += a[i * ra] * ((V *)b)[j];
#define STORE(i, j) if (i < m && j < v) { V *to = (V *)(c + i * rc) + j; \
  *to = beta != 0 ? alpha * c##i##j + beta * *to : alpha * c##i##j; }

/* C[m, v L] = alpha A[m, k] B[k, v L] + beta C, with C in registers */
static inline __attribute__((always_inline)) void
micro(const int m, const int v, long k, REAL alpha, const REAL *a, long ra,
      long ca, const REAL *b, long rb, REAL beta, REAL *c, long rc) {
  for (int i = 0; i < m; i++)
    for (int j = 0; j < v; j++) __builtin_prefetch(c + i * rc + j * L, 1);
  EACH(ZERO)
#pragma GCC unroll 4
  for (; k > 0; k--, a += ca, b += rb) { EACH(STEP) }
  EACH(STORE)
}

#line 490 "chapters/tensors/blas.md"
#define ON(m, v) case 8 * m + v: \
  micro(m, v, k, alpha, a, ra, ca, b, rb, beta, c, rc); break;
#define CASES(v) ON(1, v) ON(2, v) ON(3, v) ON(4, v) ON(5, v) ON(6, v)
/* micro, for every number of rows and of vectors */
void tile(int m, int v, long k, REAL alpha, const REAL *a, long ra,
          long ca, const REAL *b, long rb, REAL beta, REAL *c, long rc) {
  switch (8 * m + v) { CASES(1) CASES(2) CASES(3) CASES(4) }
}

#line 532 "chapters/tensors/blas.md"
typedef __typeof__(_Generic((REAL)0, float: 0, int: 0, default: 0L)) INT;
typedef INT I4 __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL V4 __attribute__((vector_size(4 * sizeof(REAL)), aligned(4),
                               may_alias));
#ifdef __clang__
#define MIX(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define MIX(x, y, ...) __builtin_shuffle(x, y, (I4){__VA_ARGS__})
#endif

static long min(long x, long y) { return x < y ? x : y; }

/* out[4, 4] = x[4, 4] transposed */
static void turn(const REAL *x, long rx, REAL *out, long w) {
  V4 a = *(V4 *)x, b = *(V4 *)(x + rx);
  V4 c = *(V4 *)(x + 2 * rx), d = *(V4 *)(x + 3 * rx);
  V4 s = MIX(a, b, 0, 4, 1, 5), t = MIX(c, d, 0, 4, 1, 5);
  V4 u = MIX(a, b, 2, 6, 3, 7), v = MIX(c, d, 2, 6, 3, 7);
  *(V4 *)out = MIX(s, t, 0, 1, 4, 5);
  *(V4 *)(out + w) = MIX(s, t, 2, 3, 6, 7);
  *(V4 *)(out + 2 * w) = MIX(u, v, 0, 1, 4, 5);
  *(V4 *)(out + 3 * w) = MIX(u, v, 2, 3, 6, 7);
}

#line 560 "chapters/tensors/blas.md"
#define ROWS(n) for (; k--; x += rx, out += w) { \
  __builtin_prefetch(x + 32); \
  __builtin_memcpy(out, x, (n) * sizeof(REAL)); }

/* out[k, w] = x[k, n], side by side, padded with zeros */
void pack(const REAL *x, long rx, long cx, long k, long n, long w,
          REAL *out) {
  for (long p = 0; n < w && p < k; p++)
    for (long j = n; j < w; j++) out[p * w + j] = 0;
  if (cx == 1 && n == NR) ROWS(NR)
  else if (cx == 1 && n == MR) ROWS(MR)
  else if (rx == 1 && k >= 4 && n >= 4)
    for (long p = 0; p < k; p += 4)
      for (long j = 0; j < n; j += 4) {
        long q = min(p, k - 4), i = min(j, n - 4);
        turn(x + q + i * cx, cx, out + q * w + i, w);
      }
  else
    for (long p = 0; p < k; p++)
      for (long j = 0; j < n; j++) out[p * w + j] = x[p * rx + j * cx];
}

#line 594 "chapters/tensors/blas.md"
/* a[k] b[k], as four numbers that are still to be added */
static inline V4 dot(long k, const REAL *a, const REAL *b) {
  V s = {0}, t = {0}, u = {0}, v = {0};
  V4 sum = {0};
  long p = 0;
  for (; p + 4 * L <= k; p += 4 * L) {
    V *x = (V *)(a + p), *y = (V *)(b + p);
    s += x[0] * y[0], t += x[1] * y[1];
    u += x[2] * y[2], v += x[3] * y[3];
  }
  for (; p + L <= k; p += L) s += *(V *)(a + p) * *(V *)(b + p);
  for (; p < k; p++) sum[0] += a[p] * b[p];
  s = (s + t) + (u + v);
  if (L < 4) for (int j = 0; j < L; j++) sum[j] += s[j];
  else
    for (int j = 0; j < L; j += 4) sum += *(V4 *)((REAL *)&s + j);
  return sum;
}

#line 618 "chapters/tensors/blas.md"
/* one column: C[m] = alpha A[m, k] b[k] + beta C */
void column(long m, long k, REAL alpha, const REAL *a, long ra,
            const REAL *b, REAL beta, REAL *c, long rc) {
  V4 x[4] = {0}, y[4];
  for (; m > 0; m -= 4) {
    for (long i = 0; i < min(m, 4); i++, a += ra) x[i] = dot(k, a, b);
    turn((REAL *)x, 4, (REAL *)y, 4);
    V4 sum = (y[0] + y[1]) + (y[2] + y[3]);
    for (long i = 0; i < min(m, 4); i++, c += rc)
      *c = beta != 0 ? alpha * sum[i] + beta * *c : alpha * sum[i];
  }
}

#line 679 "chapters/tensors/blas.md"
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
struct product {
  long m, n, k, ra, ca, rb, cb, rc, cc;
  long rows, chunks, width, slabs, stack, span, depth, copy, pack;
  long threads, axes;
  double alpha, beta;
  pool *parallel;
  struct axis { long n, a, b, c; } axis[8];
};
struct job {
  struct product p;
  const REAL *a, *b; REAL *c, *packed;
  long k, first;
};

#line 699 "chapters/tensors/blas.md"
/* C[m, n] from m rows of A and one panel of B, tile by tile */
static void panel(const struct job *g, long m, long n, const REAL *a,
                  long step, const REAL *b, long rb, REAL *c) {
  long v = (n + L - 1) / L, whole = n == v * L && g->p.cc == 1;
  REAL out[MR * NR], beta = g->p.beta;
  for (; m > 0; m -= MR, a += MR * step, c += MR * g->p.rc) {
    tile(min(m, MR), v, g->k, g->p.alpha, a, g->p.ra, g->p.ca, b, rb,
         whole ? beta : 0, whole ? c : out, whole ? g->p.rc : NR);
    for (long i = 0; !whole && i < min(m, MR); i++)
      for (long j = 0; j < n; j++) {
        REAL *to = c + i * g->p.rc + j * g->p.cc;
        *to = out[i * NR + j] + (beta != 0 ? beta * *to : 0);
      }
  }
}

/* a C of one row: read all of B in the order in which it lies */
static void row(struct job g, long n) {
  for (long q = 0; q < g.k || !q; q += 8, g.p.beta = 1)
    for (long j = 0; j < n; j += NR)
      tile(1, min(NR, n - j) / L, min(8, g.k - q), g.p.alpha,
           g.a + q * g.p.ca, 0, g.p.ca, g.b + q * g.p.rb + j, g.p.rb,
           g.p.beta, g.c + j, 0);
}

#line 728 "chapters/tensors/blas.md"
static long slices(long cx, long k, long n, long w) {
  return cx == 1 ? (k + 15) / 16 : (n + w - 1) / w;
}

/* slice t of x[k, n], of which w columns make a panel */
static void lay(const REAL *x, long rx, long cx, long k, long n, long w,
                long t, REAL *out) {
  long p = cx == 1 ? 16 * t : 0, rows = cx == 1 ? min(k - p, 16) : k;
  long j = cx == 1 ? 0 : t * w, end = cx == 1 ? n : min(n, j + w);
  for (; j < end; j += w)
    pack(x + p * rx + j * cx, rx, cx, rows, min(n - j, w), w,
         out + j * k + p * w);
}

#line 746 "chapters/tensors/blas.md"
/* go to slab s of the stack; how many columns does it have? */
static long locate(struct job *g, long s) {
  long j = s % g->p.slabs * g->p.width, batch = s / g->p.slabs;
  g->b += j * g->p.cb, g->c += j * g->p.cc;
  for (long d = g->p.axes, at; d--; batch /= g->p.axis[d].n)
    at = batch % g->p.axis[d].n, g->a += at * g->p.axis[d].a,
    g->b += at * g->p.axis[d].b, g->c += at * g->p.axis[d].c;
  return min(g->p.n - j, g->p.width);
}

static void fill(void *job, long t) {
  struct job g = *(struct job *)job;
  long each = slices(g.p.cb, g.k, g.p.width, NR), s = t / each;
  long n = locate(&g, g.first + s);
  lay(g.b, g.p.rb, g.p.cb, g.k, n, NR, t % each,
      g.packed + s * g.p.width * g.k);
}

#line 768 "chapters/tensors/blas.md"
static void block(void *job, long t) {
  static _Thread_local REAL edge[KC * NR] __attribute__((aligned(64)));
  static _Thread_local REAL chunk[MC * KC] __attribute__((aligned(64)));
  struct job g = *(struct job *)job;
  long s = t / g.p.chunks, i = t % g.p.chunks * g.p.rows, step = g.p.ra;
  long m = min(g.p.m - i, g.p.rows), n = locate(&g, g.first + s), r = n % L;
  g.a += i * step, g.c += i * g.p.rc;
  if (g.p.copy) {
    for (long q = slices(step, g.k, m, MR); q--;)
      lay(g.a, g.p.ca, step, g.k, m, MR, q, chunk);
    g.a = chunk, step = g.k, g.p.ra = 1, g.p.ca = MR;
  }
  for (; r && g.p.ca == 1 && (r < 4 || g.p.m == 1); r--) {
    const REAL *b = g.b + --n * g.p.cb;
    if (g.p.rb != 1) pack(b, g.p.rb, 0, g.k, 1, 1, edge), b = edge;
    column(m, g.k, g.p.alpha, g.a, step, b, g.p.beta,
           g.c + n * g.p.cc, g.p.rc);
  }
  if (g.packed)
    for (long j = 0; j < n; j += NR)
      panel(&g, m, min(NR, n - j), g.a, step,
            g.packed + s * g.p.width * g.k + j * g.k, NR,
            g.c + j * g.p.cc);
  else if (g.p.width > NR || !n) row(g, n);
  else if (!r) panel(&g, m, n, g.a, step, g.b, g.p.rb, g.c);
  else
    pack(g.b, g.p.rb, g.p.cb, g.k, n, NR, edge),
    panel(&g, m, n, g.a, step, edge, NR, g.c);
}

#line 802 "chapters/tensors/blas.md"
/* C = alpha A B + beta C, for each product of the stack, as planned */
int sgemm(const struct product *p, const REAL *a, const REAL *b, REAL *c) {
  long room = p->pack ? p->span * p->width * p->depth : 0;
  REAL *got = room ? malloc(room * sizeof(REAL) + 64) : 0;
  struct job g = {.p = *p, .c = c};
  if (got) g.packed = (REAL *)(((size_t)got + 63) / 64 * 64);
  if (room && !got) return 0;
  for (long all = p->stack * p->slabs; g.first < all; g.first += p->span) {
    long some = min(p->span, all - g.first);
    g.a = a, g.b = b, g.p.beta = p->beta;
    for (long k = p->k; k >= 0; k -= p->depth, g.p.beta = 1) {
      g.k = min(k, p->depth);
      if (room)
        p->parallel(fill, &g, some * slices(p->cb, g.k, p->width, NR),
                    p->threads);
      p->parallel(block, &g, some * p->chunks, p->threads);
      if (k <= p->depth) break;
      g.a += p->depth * p->ca, g.b += p->depth * p->rb;
    }
  }
  free(got);
  return 1;
}
