/* Tangled from convolution: edit there, `make tangle`. sha256:b16ec6e5722e */
#line 623 "chapters/gradients/convolution.md"
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#if defined(__AVX512F__) && !defined(NARROW)
enum { BYTES = 64, NV = 4 };
#elif defined(__AVX__)
enum { BYTES = 32, NV = 2 };
#elif defined(__aarch64__)
enum { BYTES = 16, NV = 4 };
#else
enum { BYTES = 16, NV = 2 };
#endif
enum { L = BYTES / sizeof(REAL), MR = 6, NR = NV * L, KC = 288, MC = 1020 };
typedef REAL V __attribute__((vector_size(BYTES), aligned(4), may_alias));
#define INLINE inline __attribute__((always_inline))

typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
/* a length; steps in x, and in y for places or in w for taps */
struct axis { long n, x, other; };
struct conv {
  long groups, xg, wg, yg, x, w, y;
  struct axis place[3], tap[3];
  long o, wo, yo, rows, chunks, depth, pieces, threads;
  pool *parallel;
};

#line 657 "chapters/gradients/convolution.md"
#define ROW(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#define EACH(X) ROW(X, 0) ROW(X, 1) ROW(X, 2) ROW(X, 3) ROW(X, 4) ROW(X, 5)
#define AT(i) const REAL *a##i = x + place[i < m ? i : 0];
#define LOAD(i, j) V c##i##j = {0}; \
  if (i < m && j < v && more) c##i##j = ((V *)c)[i * v + j];
#define STEP(i, j) if (i < m && j < v) c##i##j += a##i[t] * ((V *)b)[j];
#define STORE(i, j) if (i < m && j < v) ((V *)c)[i * v + j] = c##i##j;

/* C[m, v L] = A[m, k] B[k, v L], added to what is there if `more`;
   A[i, p] is x[place[i] + tap[p]] */
static INLINE void micro(const int m, const int v, int more, long k,
                         const REAL *x, const long *place, const long *tap,
                         const REAL *b, REAL *c) {
  AT(0) AT(1) AT(2) AT(3) AT(4) AT(5)
  EACH(LOAD)
#pragma GCC unroll 4
  for (long p = 0; p < k; p++, b += v * L) { long t = tap[p]; EACH(STEP) }
  EACH(STORE)
}

#line 683 "chapters/gradients/convolution.md"
#define ON(m, v) case 8 * m + v: \
  micro(m, v, more, k, x, place, tap, b, c); break;
#define CASES(v) ON(1, v) ON(2, v) ON(3, v) ON(4, v) ON(5, v) ON(6, v)
/* micro, for every number of rows and of vectors */
void strip(int m, int v, int more, long k, const REAL *x, const long *place,
           const long *tap, const REAL *b, REAL *c) {
  switch (8 * m + v) { CASES(1) CASES(2) CASES(3) CASES(4) }
}

static long min(long x, long y) { return x < y ? x : y; }

static long size(const struct axis *a) { return a[0].n * a[1].n * a[2].n; }

/* n addresses along three axes, from the i-th on, in x and in the other */
void addresses(const struct axis *a, long i, long n, long *x, long *other) {
  if (n < 1) return;
  long at[3] = {i / a[2].n / a[1].n, i / a[2].n % a[1].n, i % a[2].n};
  for (; n-- > 0; x++, other++) {
    *x = at[0] * a[0].x + at[1] * a[1].x + at[2] * a[2].x;
    *other = at[0] * a[0].other + at[1] * a[1].other + at[2] * a[2].other;
    if (++at[2] < a[2].n) continue;
    at[2] = 0;
    if (++at[1] == a[1].n) at[1] = 0, at[0]++;
  }
}

#line 713 "chapters/gradients/convolution.md"
typedef __typeof__(_Generic((REAL)0, float: 0, int: 0, default: 0L)) INT;
typedef INT I4 __attribute__((vector_size(4 * sizeof(REAL))));
typedef REAL V4 __attribute__((vector_size(4 * sizeof(REAL)), aligned(4),
                               may_alias));
#ifdef __clang__
#define MIX(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define MIX(x, y, ...) __builtin_shuffle(x, y, (I4){__VA_ARGS__})
#endif

/* y[4, 4] = x[4, 4] transposed */
static INLINE void turn(const REAL *x, long rx, REAL *y, long ry) {
  V4 a = *(V4 *)x, b = *(V4 *)(x + rx);
  V4 c = *(V4 *)(x + 2 * rx), d = *(V4 *)(x + 3 * rx);
  V4 s = MIX(a, b, 0, 4, 1, 5), t = MIX(c, d, 0, 4, 1, 5);
  V4 u = MIX(a, b, 2, 6, 3, 7), v = MIX(c, d, 2, 6, 3, 7);
  *(V4 *)y = MIX(s, t, 0, 1, 4, 5);
  *(V4 *)(y + ry) = MIX(s, t, 2, 3, 6, 7);
  *(V4 *)(y + 2 * ry) = MIX(u, v, 0, 1, 4, 5);
  *(V4 *)(y + 3 * ry) = MIX(u, v, 2, 3, 6, 7);
}

/* whether four addresses are neighbours */
static INLINE int abreast(const long *at) {
  return at[1] == at[0] + 1 && at[2] == at[0] + 2 && at[3] == at[0] + 3;
}

#line 744 "chapters/gradients/convolution.md"
/* out[k, w] = the weights of n kernels under k taps, and zeros */
void pack(const REAL *x, const long *at, long step, long k, long n, long w,
          REAL *out) {
  if (n < w) memset(out, 0, k * w * sizeof *out);
  for (long j = 0, p; j < n; j += 4)
    for (p = 0; p < k;)
      if (j + 4 <= n && p + 4 <= k && abreast(at + p)) {
        turn(x + at[p] + j * step, step, out + p * w + j, w);
        p += 4;
      } else {
        for (long i = j; i < min(n, j + 4); i++)
          out[p * w + i] = x[at[p] + i * step];
        p++;
      }
}

#line 764 "chapters/gradients/convolution.md"
/* n channels of so many places, from rows to where each place is in y */
void unpack(const REAL *x, long w, long n, long places, const long *at,
            REAL *y, long step) {
  for (long j = 0, i; j < n; j += 4)
    for (i = 0; i < places;)
      if (j + 4 <= n && i + 4 <= places && abreast(at + i)) {
        turn(x + i * w + j, w, y + at[i] + j * step, step);
        i += 4;
      } else {
        for (long c = j; c < min(n, j + 4); c++)
          y[at[i] + c * step] = x[i * w + c];
        i++;
      }
}

#line 785 "chapters/gradients/convolution.md"
struct job { struct conv p; const REAL *x, *w; REAL *y, *parts; long slot; };

static _Thread_local struct room {
  REAL panel[KC * NR], sums[MC * NR];
  long place[MC], to[MC], tap[KC], from[KC];
} room __attribute__((aligned(64)));

/* go to a group and a chunk of its places; how many places are they? */
static long locate(struct job *g, long group, long chunk, struct room *r) {
  long i = chunk * g->p.rows, n = min(g->p.rows, size(g->p.place) - i);
  g->x += g->p.x + group * g->p.xg, g->w += g->p.w + group * g->p.wg;
  g->y += g->p.y + group * g->p.yg;
  addresses(g->p.place, i, n, r->place, r->to);
  return n;
}

/* sums[rows, w], for a panel of n kernels and the taps of [p, end) */
static void panel(const struct job *g, struct room *r, long rows, long p,
                  long end, long n, long w, REAL *sums) {
  for (long k, more = 0; p < end || !more; p += KC, more = 1) {
    k = min(KC, end - p);
    addresses(g->p.tap, p, k, r->tap, r->from);
    pack(g->w, r->from, g->p.wo, k, n, w, r->panel);
    for (long i = 0, h, left = (rows + MR - 1) / MR; left; left--, i += h)
      h = (rows - i) / left,
      strip(h, w / L, more, k, g->x, r->place + i, r->tap, r->panel,
            sums + i * w);
  }
}

#line 819 "chapters/gradients/convolution.md"
/* a chunk of places, and a piece of the taps, for all kernels of a group */
static void block(void *job, long t) {
  struct job g = *(struct job *)job;
  struct room *r = &room;
  long piece = t / g.p.chunks % g.p.pieces, first = piece * g.p.depth;
  long rows = locate(&g, t / g.p.chunks / g.p.pieces, t % g.p.chunks, r);
  for (long o = 0; o < g.p.o; o += NR, g.w += NR * g.p.wo) {
    long n = min(NR, g.p.o - o), w = (n + L - 1) / L * L;
    REAL *sums = g.parts ? g.parts + t * g.slot + o * g.p.rows : r->sums;
    panel(&g, r, rows, first, min(size(g.p.tap), first + g.p.depth), n, w,
          sums);
    if (!g.parts) unpack(sums, w, n, rows, r->to, g.y + o * g.p.yo, g.p.yo);
  }
}

#line 838 "chapters/gradients/convolution.md"
/* the pieces of a chunk, added up in their order */
static void join(void *job, long t) {
  struct job g = *(struct job *)job;
  struct room *r = &room;
  long group = t / g.p.chunks, chunk = t % g.p.chunks;
  long rows = locate(&g, group, chunk, r), apart = g.p.chunks * g.slot;
  REAL *sums = g.parts + group * g.p.pieces * apart + chunk * g.slot;
  for (long q = 1; q < g.p.pieces; q++)
    for (long i = 0; i < g.slot; i++) sums[i] += sums[q * apart + i];
  for (long o = 0; o < g.p.o; o += NR) {
    long n = min(NR, g.p.o - o), w = (n + L - 1) / L * L;
    unpack(sums + o * g.p.rows, w, n, rows, r->to, g.y + o * g.p.yo,
           g.p.yo);
  }
}

#line 858 "chapters/gradients/convolution.md"
/* how many sets of places follow, and elements of y to clear before them;
   pictures along three axes; `size` elements make one with its margin,
   in which it begins at `first`; no size: no margin */
struct frame {
  long sets, blank, n[3], step[3], h, w, down, right;
  long size, wide, first, threads;
  pool *parallel;
};
struct canvas { struct frame p; const REAL *x; REAL *y; };

static void picture(void *job, long t) {
  struct canvas g = *(struct canvas *)job;
  REAL *y = g.y + t * g.p.size;
  for (long a = 3; a--; t /= g.p.n[a]) g.x += t % g.p.n[a] * g.p.step[a];
  memset(y, 0, g.p.size * sizeof *y);
  y += g.p.first;
  for (long i = 0; i < g.p.h; i++, g.x += g.p.down, y += g.p.wide)
    if (g.p.right == 1) memcpy(y, g.x, g.p.w * sizeof *y);
    else for (long j = 0; j < g.p.w; j++) y[j] = g.x[j * g.p.right];
}

#line 883 "chapters/gradients/convolution.md"
/* all places that meet the same taps; 0 without memory */
static int meet(const struct conv *p, const REAL *x, const REAL *w,
                REAL *y) {
  struct job g = {*p, x, w, y};
  long tasks = p->groups * p->pieces * p->chunks;
  g.slot = p->rows * ((p->o + L - 1) / L * L);
  if (p->pieces > 1 && tasks) {
    g.parts = calloc(tasks * g.slot, sizeof *y);
    if (!g.parts) return 0;
  }
  p->parallel(block, &g, tasks, p->threads);
  if (g.parts) p->parallel(join, &g, p->groups * p->chunks, p->threads);
  free(g.parts);
  return 1;
}

#line 903 "chapters/gradients/convolution.md"
/* a frame, and behind it a `struct conv` for each set of places */
int convolve(const struct frame *f, const REAL *x, const REAL *w, REAL *y) {
  const struct conv *p = (const struct conv *)(f + 1);
  struct canvas g = {*f, x};
  long fine = 1, n = f->n[0] * f->n[1] * f->n[2];
  if (f->size && n) {
    x = g.y = malloc(n * f->size * sizeof *y);
    if (!x) return 0;
    f->parallel(picture, &g, n, f->threads);
  }
  memset(y, 0, f->blank * sizeof *y);
  for (long i = 0; fine && i < f->sets; i++) fine = meet(p + i, x, w, y);
  free(g.y);
  return fine;
}
