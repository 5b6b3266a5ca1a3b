/* Tangled from attention: edit there, `make tangle`. sha256:1a6b7a8ddf78 */
#line 504 "chapters/gradients/attention.md"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
/* elements of a vector; queries of a panel; queries and keys of a tile */
enum { L = BYTES / sizeof(REAL), NR = 2 * L, BQ = 64, BK = 64, MOST = 256 };
#define INLINE inline __attribute__((always_inline))

/* an integer as wide as REAL */
enum { WIDE = sizeof(REAL) == 8 };
typedef __typeof__(__builtin_choose_expr(WIDE, 0l, 0)) whole;
typedef REAL V __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef whole I __attribute__((vector_size(BYTES), aligned(4), may_alias));

static long min(long x, long y) { return x < y ? x : y; }

#line 534 "chapters/gradients/attention.md"
enum { DIGITS = WIDE ? 52 : 23, BIAS = WIDE ? 1023 : 127,
       TERMS = WIDE ? 13 : 7 };

/* 2^x = 2^k 2^r, k whole, for x up to 0; tiny results are 0, NaN is NaN */
static INLINE V power(V x) {
  /* added and taken off again, it rounds; the sum's last bits are k's */
  const REAL magic = (WIDE ? 0x1.8p52 : 0x1.8p23) + BIAS;
  const REAL least = WIDE ? -1021 : -125;
  static const double c[] = {  /* (log 2)^n / n!, last term first */
    1.3691488853904128e-12, 2.5678435993488205e-11, 4.445538271870811e-10,
    7.054911620801123e-09, 1.01780860092397e-07, 1.3215486790144307e-06,
    1.5252733804059838e-05, 1.5403530393381606e-04, 1.3333558146428441e-03,
    9.618129107628477e-03, 5.5504108664821576e-02, 2.4022650695910069e-01,
    6.9314718055994529e-01, 1};
  V k = x + magic, r = x - (k - magic), p = (V){0} + (REAL)c[13 - TERMS];
#pragma GCC unroll 16
  for (int j = 14 - TERMS; j < 14; j++) p = p * r + (REAL)c[j];
  p *= (V)((I)k << DIGITS);
  return (V)((I)p & ~(I)(x < least));
}

static INLINE V larger(V a, V b) {
  I more = a > b;
  return (V)(((I)a & more) | ((I)b & ~more));
}

#line 564 "chapters/gradients/attention.md"
#define ROW(X, i) X(i, 0) X(i, 1)
#define EACH(X) ROW(X, 0) ROW(X, 1) ROW(X, 2) ROW(X, 3) ROW(X, 4) ROW(X, 5)
#define LOAD(i, j) V c##i##j = {0}; \
  if (i < m && more) c##i##j = ((V *)(c + i * rc))[j];
#define STEP(i, j) if (i < m) c##i##j += a[i * ra] * ((V *)b)[j];
#define STORE(i, j) if (i < m) ((V *)(c + i * rc))[j] = c##i##j;

/* C[m, NR] = A[m, k] B[k, NR], added to what is there if `more` */
static INLINE void micro(const int m, int more, long k, const REAL *a,
                         long ra, long ca, const REAL *b, long rb, REAL *c,
                         long rc) {
  EACH(LOAD)
#pragma GCC unroll 4
  for (; k > 0; k--, a += ca, b += rb) { EACH(STEP) }
  EACH(STORE)
}

#define ON(n) case n: micro(n, more, k, a, ra, ca, b, rb, c, rc); break;
/* `micro` for any m: strips of nearly equal height, at most six */
static void product(int more, long m, long k, const REAL *a, long ra,
                    long ca, const REAL *b, long rb, REAL *c, long rc) {
  for (long n, strips = (m + 5) / 6; strips; strips--, m -= n) {
    n = m / strips;
    switch (n) { ON(1) ON(2) ON(3) ON(4) ON(5) ON(6) }
    a += n * ra, c += n * rc;
  }
}

#line 602 "chapters/gradients/attention.md"
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
/* heads of tq queries and tk keys, d wide; steps from row to row, of bools
   from query to query and from key to key; from head to head, by axis */
struct steps { long query, key; };
struct attention {
  long heads, tq, tk, d, q, k, v;
  struct steps mask, kept;
  long axes;
  struct { long n, q, k, v, mask, kept; } axis[8];
  long causal;
  double scale, keep;
  long threads;
  pool *parallel;
};
struct job {
  struct attention p;
  const REAL *q, *k, *v;
  const char *mask, *kept;
  REAL *y;         /* of a query: d sums, and the logarithm */
  const REAL *dy;  /* of the same shape: its gradient */
  REAL *out;       /* the gradients of q, k and v, below each other */
  int failed;
};

#line 631 "chapters/gradients/attention.md"
/* nq queries from the i-th on, nk keys from the j-th on, rows filled to w */
struct tile {
  long i, nq, j, nk, w;
  REAL qt[BQ * MOST], gt[BQ * MOST];  /* panels, a query a column */
  REAL q[BQ * MOST], g[BQ * MOST], right[BK * MOST], sum[BQ * MOST];
  REAL p[BK * BQ], ds[BK * BQ];       /* a query a column, too */
  REAL top[BQ], total[BQ], fade[BQ];
};
static _Thread_local struct tile room __attribute__((aligned(64)));

#line 645 "chapters/gradients/attention.md"
/* x[n, d] with rows side by side, each filled up to w elements */
static void lay(const REAL *x, long step, long n, long d, long w,
                REAL *out) {
  for (; n-- > 0; x += step, out += w) {
    memcpy(out, x, d * sizeof *x);
    memset(out + d, 0, (w - d) * sizeof *x);
  }
}

/* panels [d, NR]: so many rows of x[n, d] are the columns of each */
static void turn(const REAL *x, long step, long n, long d, REAL factor,
                 REAL *out) {
  for (; n > 0; n -= NR, x += NR * step, out += d * NR)
    for (long j = 0; j < NR; j++)
      for (long c = 0; c < d; c++)
        out[c * NR + j] = j < n ? factor * x[j * step + c] : 0;
}

/* go to head h */
static void locate(struct job *g, long h) {
  long y = h * g->p.tq * (g->p.d + 1);
  g->y += y, g->dy += y;
  g->out += h * (g->p.tq + 2 * g->p.tk) * g->p.d;
  for (long a = g->p.axes, at; a--; h /= g->p.axis[a].n)
    at = h % g->p.axis[a].n, g->q += at * g->p.axis[a].q,
    g->k += at * g->p.axis[a].k, g->v += at * g->p.axis[a].v,
    g->mask += at * g->p.axis[a].mask, g->kept += at * g->p.axis[a].kept;
}

#line 678 "chapters/gradients/attention.md"
/* begin a tile of queries: q is scaled, for scores as powers of two */
static void begin(const struct job *g, struct tile *t, long i) {
  t->i = i, t->nq = min(g->p.tq - i, BQ);
  t->w = (g->p.d + NR - 1) / NR * NR;
  turn(g->q + i * g->p.q, g->p.q, t->nq, g->p.d,
       g->p.scale * 0x1.71547652b82fep0, t->qt);
}

/* how many keys the queries of this tile may see */
static long keys(const struct job *g, const struct tile *t) {
  return g->p.causal ? min(g->p.tk, t->i + t->nq) : g->p.tk;
}

/* take up a tile of keys; x stands on the right of products */
static void fetch(const struct job *g, struct tile *t, long j,
                  const REAL *x, long step) {
  t->j = j, t->nk = min(keys(g, t) - j, BK);
  lay(x + j * step, step, t->nk, g->p.d, t->w, t->right);
}

/* how many of them the panel of queries from a on may see */
static long reach(const struct job *g, const struct tile *t, long a) {
  long n = t->i + a + NR - t->j;
  return !g->p.causal || n > t->nk ? t->nk : n < 0 ? 0 : n;
}

#line 708 "chapters/gradients/attention.md"
/* s[NR], but `other` where a bool at `is` is false; by masks, since a
   choice would become a branch */
static INLINE void pick(const char *is, REAL other, REAL *s) {
  whole on[NR];
  for (long c = 0; c < NR; c++) on[c] = -(whole)(is[c] != 0);
  for (long c = 0; c < NR; c += L) {
    I yes = *(I *)(on + c), *to = (I *)(s + c);
    *to = (*to & yes) | ((I)((V){0} + other) & ~yes);
  }
}

/* the same for a panel of s[keys, queries] */
static void choose(const struct tile *t, long a, long n, const char *is,
                   struct steps by, REAL other, REAL *s) {
  if (!by.query && !by.key && *is) return;  /* one True for all pairs */
  long m = min(NR, t->nq - a);
  is += (t->i + a) * by.query + t->j * by.key;
  for (; n-- > 0; s += BQ, is += by.key)
    if (by.query == 1 && m == NR) pick(is, other, s);
    else {
      char few[NR] = {0};
      for (long c = 0; c < m; c++) few[c] = is[c * by.query];
      pick(few, other, s);
    }
}

#line 738 "chapters/gradients/attention.md"
/* scores of -inf where the panel's queries must not look */
static void hide(const struct job *g, struct tile *t, long a, long n) {
  REAL *s = t->p + a;
  long ahead = t->i + a - t->j;
  for (long r = ahead < 0 ? 0 : ahead; g->p.causal && r < n; r++)
    for (long c = 0; c < NR; c++)
      s[r * BQ + c] = r - ahead > c ? -INFINITY : s[r * BQ + c];
  choose(t, a, n, g->mask, g->p.mask, -INFINITY, s);
}

/* p[keys, queries] = the scores of a panel of queries for n keys */
static void score(const struct job *g, struct tile *t, long a, long n) {
  product(0, n, g->p.d, g->k + t->j * g->p.k, g->p.k, 1, t->qt + a * g->p.d,
          NR, t->p + a, BQ);
  hide(g, t, a, n);
}

#line 759 "chapters/gradients/attention.md"
/* scores become weights, relative to the largest score so far */
static void weigh(struct tile *t, long a, long n) {
  for (long c = a; c < a + NR; c += L) {
    V *s = (V *)(t->p + c), *top = (V *)(t->top + c);
    V *total = (V *)(t->total + c), most = *top, sum = {0};
    for (long r = 0; r < n * BQ / L; r += BQ / L)
      most = larger(s[r], most);
    /* if all is hidden so far: -inf - -inf would be NaN */
    V at = (V)((I)most & ~(I)(most == -INFINITY));
    for (long r = 0; r < n * BQ / L; r += BQ / L)
      sum += s[r] = power(s[r] - at);
    V fade = power(*top - at);
    *total = *total * fade + sum, *top = most;
    *(V *)(t->fade + c) = fade;
  }
}

#line 782 "chapters/gradients/attention.md"
/* a tile of keys: fade what its queries have, add the weighted values */
static void gather(const struct job *g, struct tile *t) {
  for (long a = 0, n; a < t->nq; a += NR) {
    if (!(n = reach(g, t, a))) continue;
    score(g, t, a, n);
    weigh(t, a, n);
    choose(t, a, n, g->kept, g->p.kept, 0, t->p + a);
    long m = min(NR, t->nq - a), w = t->w;
    for (long r = a; t->j && r < a + m; r++)
      for (long c = 0; c < w; c++) t->sum[r * w + c] *= t->fade[r];
    for (long c = 0; c < w; c += NR)
      product(t->j > 0, m, n, t->p + a, 1, BQ, t->right + c, w,
              t->sum + a * w + c, w);
  }
}

/* divide by the sum, of what is dropped as well, and by what is kept;
   a query from which all is hidden has zeros, and log(0) */
static void finish(const struct job *g, const struct tile *t) {
  long d = g->p.d;
  REAL *y = g->y + t->i * (d + 1), keep = g->p.keep;
  for (long r = 0; r < t->nq; r++, y += d + 1) {
    REAL all = t->total[r];
    for (long c = 0; c < d; c++)
      y[c] = all == 0 ? 0 : t->sum[r * t->w + c] / (all * keep);
    y[d] = t->top[r] * (REAL)0x1.62e42fefa39efp-1 
      + (WIDE ? log(all) : logf(all));
  }
}

#line 816 "chapters/gradients/attention.md"
static void forward(void *job, long task) {
  struct job g = *(struct job *)job;
  struct tile *t = &room;
  long tiles = (g.p.tq + BQ - 1) / BQ;
  locate(&g, task / tiles);
  begin(&g, t, task % tiles * BQ);
  for (long r = 0; r < BQ; r++) t->top[r] = -INFINITY, t->total[r] = 0;
  for (long j = 0; j < keys(&g, t); j += BK) {
    fetch(&g, t, j, g.v, g.p.v);
    gather(&g, t);
  }
  finish(&g, t);
}

/* y[tq, d + 1] of each head: the mean of v, and log(sum(exp(scores))) */
int attend(const struct attention *p, const REAL *q, const REAL *k,
           const REAL *v, const char *mask, const char *kept, REAL *y) {
  struct job g = {*p, q, k, v, mask, kept, y, y, y, 0};
  p->parallel(forward, &g, p->heads * ((p->tq + BQ - 1) / BQ), p->threads);
  return 1;
}

#line 868 "chapters/gradients/attention.md"
/* begin a tile of queries for the way back: what y kept, and delta */
static void begin_back(const struct job *g, struct tile *t, long i) {
  long d = g->p.d, step = d + 1;
  const REAL *y = g->y + i * step, *dy = g->dy + i * step;
  begin(g, t, i);
  turn(dy, step, t->nq, d, 1 / g->p.keep, t->gt);
  lay(dy, step, t->nq, d, t->w, t->g);
  lay(g->q + i * g->p.q, g->p.q, t->nq, d, t->w, t->q);
  memset(t->sum, 0, t->nq * t->w * sizeof *t->sum);
  /* 2^(score - inf) is the weight 0 of a query that sees nothing */
  for (long r = 0; r < BQ; r++) t->top[r] = INFINITY, t->total[r] = 0;
  for (long r = 0; r < t->nq; r++, y += step, dy += step) {
    REAL delta = -dy[d];
    for (long c = 0; c < d; c++) delta += y[c] * dy[c];
    t->total[r] = delta;
    if (y[d] != -INFINITY) t->top[r] = y[d] * (REAL)0x1.71547652b82fep0;
  }
}

#line 891 "chapters/gradients/attention.md"
/* the weights again, the gradients of the scores, and of q */
static void differ(const struct job *g, struct tile *t) {
  for (long a = 0, n; a < t->nq; a += NR) {
    if (!(n = reach(g, t, a))) continue;
    score(g, t, a, n);
    product(0, n, g->p.d, g->v + t->j * g->p.v, g->p.v, 1,
            t->gt + a * g->p.d, NR, t->ds + a, BQ);
    choose(t, a, n, g->kept, g->p.kept, 0, t->ds + a);
    for (long c = a; c < a + NR; c += L) {
      V *p = (V *)(t->p + c), *ds = (V *)(t->ds + c);
      V top = *(V *)(t->top + c), delta = *(V *)(t->total + c);
      for (long r = 0; r < n * BQ / L; r += BQ / L) {
        p[r] = power(p[r] - top);
        ds[r] = p[r] * (ds[r] - delta);
      }
    }
    choose(t, a, n, g->kept, g->p.kept, 0, t->p + a);
    for (long c = 0; c < t->w; c += NR)
      product(1, min(NR, t->nq - a), n, t->ds + a, 1, BQ, t->right + c,
              t->w, t->sum + a * t->w + c, t->w);
  }
}

#line 918 "chapters/gradients/attention.md"
/* the tile's share of the gradients of its keys and values */
static void scatter(const struct job *g, struct tile *t, REAL *dk,
                    REAL *dv) {
  long w = t->w;
  for (long r = 0; r < t->nk; r += NR) {
    /* causal: queries before the panel's first key do not see it */
    long a = g->p.causal && t->j + r > t->i ? t->j + r - t->i : 0;
    long m = min(NR, t->nk - r), k = t->nq - a, from = r * BQ + a;
    for (long c = 0; c < w && k > 0; c += NR) {
      long to = (t->j + r) * w + c, right = a * w + c;
      product(1, m, k, t->p + from, BQ, 1, t->g + right, w, dv + to, w);
      product(1, m, k, t->ds + from, BQ, 1, t->q + right, w, dk + to, w);
    }
  }
}

/* out[n, d] = the first d columns of x[n, w], times a factor */
static void settle(const REAL *x, long w, long n, long d, REAL factor,
                   REAL *out) {
  for (; n-- > 0; x += w, out += d)
    for (long c = 0; c < d; c++) out[c] = factor * x[c];
}

#line 945 "chapters/gradients/attention.md"
static void backward(void *job, long h) {
  struct job g = *(struct job *)job;
  struct tile *t = &room;
  long d = g.p.d, n = g.p.tk, w = (d + NR - 1) / NR * NR;
  REAL *dk = calloc(2 * n * w + 1, sizeof *dk), *dv = dk + n * w;
  if (!dk) { ((struct job *)job)->failed = 1; return; }
  locate(&g, h);
  for (long i = 0; i < g.p.tq; i += BQ) {
    begin_back(&g, t, i);
    for (long j = 0; j < keys(&g, t); j += BK) {
      fetch(&g, t, j, g.k, g.p.k);
      differ(&g, t);
      scatter(&g, t, dk, dv);
    }
    settle(t->sum, w, t->nq, d, g.p.scale, g.out + i * d);
  }
  settle(dk, w, n, d, g.p.scale, g.out + g.p.tq * d);
  settle(dv, w, n, d, 1 / g.p.keep, g.out + (g.p.tq + n) * d);
  free(dk);
}

#line 970 "chapters/gradients/attention.md"
/* out[tq + 2 tk, d] of each head: the gradients of q, k and v; 0 without
   memory for those of a head */
int attend_back(const struct attention *p, const REAL *dy, const REAL *y,
                const REAL *q, const REAL *k, const REAL *v,
                const char *mask, const char *kept, REAL *out) {
  struct job g = {*p, q, k, v, mask, kept, (REAL *)y, dy, out, 0};
  p->parallel(backward, &g, p->heads, p->threads);
  return !g.failed;
}
