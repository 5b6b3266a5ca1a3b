/* Tangled from blas: edit there, `make tangle`. sha256:431464626cd2 */
#line 884 "chapters/tensors/blas.md"
#include <stdatomic.h>
#include <stdlib.h>

#ifndef REAL
#define REAL float
#endif
#if defined(__AVX512F__)
enum { BYTES = 64, NV = 4 };
#elif defined(__AVX__)
enum { BYTES = 32, NV = 2 };
#elif defined(__aarch64__)
enum { BYTES = 16, NV = 4 };
#else
enum { BYTES = 16, NV = 2 };
#endif
enum { L = BYTES / sizeof(REAL), MR = 6, NR = NV * L, KC = 1024 };
typedef REAL V __attribute__((vector_size(BYTES), aligned(4), may_alias));
long columns(void) { return NR; }

#line 921 "chapters/tensors/blas.md"
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
  for (int i = 0; i < m; i++) {
    __builtin_prefetch(a + (i + MR) * ra);
    for (int j = 0; j < v; j++) __builtin_prefetch(c + i * rc + j * L, 1);
  }
  EACH(ZERO)
  for (; k--; a += ca, b += rb) { EACH(STEP) }
  EACH(STORE)
}

#line 949 "chapters/tensors/blas.md"
#define ON(m, v) case 8 * m + v: \
  micro(m, v, k, alpha, a, ra, ca, b, rb, beta, c, rc); break;
#define CASES(v) ON(1, v) ON(2, v) ON(3, v) ON(4, v) ON(5, v) ON(6, v)
/* micro, for every number of rows and of vectors */
void tile(int m, int v, long k, REAL alpha, const REAL *a, long ra,
          long ca, const REAL *b, long rb, REAL beta, REAL *c, long rc) {
  switch (8 * m + v) { CASES(1) CASES(2) CASES(3) CASES(4) }
}

#line 989 "chapters/tensors/blas.md"
static long min(long x, long y) { return x < y ? x : y; }

/* out[k, w] = x[k, n], side by side, padded with zeros */
void pack(const REAL *x, long rx, long cx, long k, long n, long w,
          REAL *out) {
  for (long p = 0; p < k; p++)
    for (long j = n; j < w; j++) out[p * w + j] = 0;
  for (long p = 0; cx == 1 && p < k; p++)
    for (long j = 0; j < n; j++) out[p * w + j] = x[p * rx + j];
  for (long q = 0; cx != 1 && q < k; q += L)
    for (long j = 0; j < n; j++)
      for (long p = min(q + L, k) - 1; p >= q; p--)
        out[p * w + j] = x[p * rx + j * cx];
}

#line 1017 "chapters/tensors/blas.md"
/* one column: C[m] = alpha A[m, k] b[k] + beta C */
void column(long m, long k, REAL alpha, const REAL *a, long ra,
            const REAL *b, REAL beta, REAL *c, long rc) {
  for (; m--; a += ra, c += rc) {
    V s = {0}, t = {0}, u = {0}, v = {0};
    REAL sum = 0;
    long p = 0;
    for (; p + 4 * L <= k; p += 4 * L) {
      V *x = (V *)(a + p), *y = (V *)(b + p);
      s += x[0] * y[0], t += x[1] * y[1];
      u += x[2] * y[2], v += x[3] * y[3];
    }
    for (s += t + u + v; p + L <= k; p += L)
      s += *(V *)(a + p) * *(V *)(b + p);
    for (; p < k; p++) sum += a[p] * b[p];
    for (int j = 0; j < L; j++) sum += s[j];
    *c = beta != 0 ? alpha * sum + beta * *c : alpha * sum;
  }
}

#line 1269 "chapters/tensors/blas.md"
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
struct product {
  long m, n, k, ra, ca, rb, cb, rc, cc;
  long rows, chunks, width, panels, tasks, strips, pack, threads, axes;
  double alpha, beta;
  pool *parallel;
  struct axis { long n, a, b, c; } axis[8];
};
struct job {
  struct product p;
  const REAL *a, *b; REAL *c;
  long k, step, id;
};

#line 1290 "chapters/tensors/blas.md"
/* C[m, n] from m rows of A and one panel of B, tile by tile */
static void panel(struct job g, long m, long n, const REAL *b, long rb) {
  long v = (n + L - 1) / L, whole = n == v * L && g.p.cc == 1;
  REAL out[MR * NR], beta = g.p.beta;
  for (; m > 0; m -= MR, g.a += MR * g.step, g.c += MR * g.p.rc) {
    tile(min(m, MR), v, g.k, g.p.alpha, g.a, g.p.ra, g.p.ca, b, rb,
         whole ? beta : 0, whole ? g.c : out, whole ? g.p.rc : NR);
    for (long i = 0; !whole && i < min(m, MR); i++)
      for (long j = 0; j < n; j++) {
        REAL *to = g.c + i * g.p.rc + j * g.p.cc;
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

#line 1320 "chapters/tensors/blas.md"
static void block(void *job, long t) {
  static _Thread_local REAL packed[KC * NR] __attribute__((aligned(64)));
  static _Thread_local long held;
  struct job g = *(struct job *)job;
  long j = t / g.p.chunks, batch = j / g.p.panels, id = g.id + j;
  long i = t % g.p.chunks * g.p.rows, m = min(g.p.m - i, g.p.rows), n, r;
  j = j % g.p.panels * g.p.width, n = min(g.p.n - j, g.p.width), r = n % L;
  g.a += i * g.step, g.b += j * g.p.cb, g.c += i * g.p.rc + j * g.p.cc;
  for (long d = g.p.axes, at; d--; batch /= g.p.axis[d].n)
    at = batch % g.p.axis[d].n, g.a += at * g.p.axis[d].a,
    g.b += at * g.p.axis[d].b, g.c += at * g.p.axis[d].c;
  for (; r && g.p.ca == 1 && (r < 4 || g.p.m == 1); r--, held = 0) {
    pack(g.b + --n * g.p.cb, g.p.rb, g.p.cb, g.k, 1, 1, packed);
    column(m, g.k, g.p.alpha, g.a, g.step, packed, g.p.beta,
           g.c + n * g.p.cc, g.p.rc);
  }
  if (g.p.width > NR || !n) row(g, n);
  else if (!r && !g.p.pack) panel(g, m, n, g.b, g.p.rb);
  else {
    long w = (n + L - 1) / L * L;
    if (held != id) pack(g.b, g.p.rb, g.p.cb, g.k, n, w, packed), held = id;
    panel(g, m, n, packed, w);
  }
}

#line 1351 "chapters/tensors/blas.md"
static void strip(void *job, long t) {
  struct job *g = job;
  pack(g->a + t * MR * g->p.ra, g->p.ca, g->p.ra, g->k,
       min(MR, g->p.m - t * MR), MR, g->c + t * MR * g->k);
}

/* C = alpha A B + beta C, for each product of the stack, as planned */
void sgemm(const struct product *p, const REAL *a, const REAL *b, REAL *c) {
  static atomic_long ids = 1;
  struct job g = {.p = *p, .a = a, .b = b, .c = c, .step = p->ra}, from = g;
  from.c = p->strips ? malloc(p->strips * MR * KC * sizeof(REAL)) : 0;
  if (from.c) g.a = from.c, g.p.ra = 1, g.p.ca = MR;
  for (long left = p->k; left >= 0; left -= KC, g.p.beta = 1) {
    g.k = from.k = min(left, KC);
    if (from.c)
      p->parallel(strip, &from, p->strips, p->threads), g.step = g.k;
    g.id = atomic_fetch_add(&ids, p->tasks);
    p->parallel(block, &g, p->tasks, p->threads);
    if (left <= KC) break;
    g.b += KC * p->rb, from.a += KC * p->ca, g.a = from.c ? from.c : from.a;
  }
  free(from.c);
}
