/* Tangled from convolution: edit there, `make tangle`. sha256:60cae240a88a */
#line 624 "chapters/gradients/convolution.md"
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

#line 650 "chapters/gradients/convolution.md"
/* a length; steps in x, and in y for places or among packed taps */
struct axis { long n, x, other; };
/* places that meet the same taps: where they begin, and how they are cut */
struct set {
  long x, tap, y;
  struct axis place[3], taps[3];
  long rows, depth, first, last;
};
struct conv {
  long blank, groups, xg, wg, yg;
  struct axis taps[3];
  long o, wo, yo, most, pieces, chunks, threads;
  pool *parallel;
};

#line 669 "chapters/gradients/convolution.md"
#define ROW(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#define EACH(X) ROW(X, 0) ROW(X, 1) ROW(X, 2) ROW(X, 3) ROW(X, 4) ROW(X, 5)
#define AT(i) const REAL *a##i = x + place[i < m ? i : 0];
#define LOAD(i, j) V c##i##j = {0}; \
  if (i < m && j < v && more) c##i##j = ((V *)c)[i * v + j];
#define STEP(i, j) if (i < m && j < v) c##i##j += a##i[t] * b[j];
#define STORE(i, j) if (i < m && j < v) ((V *)c)[i * v + j] = c##i##j;

/* C[m, v L] = A[m, k] B[k, v L], added to what is there if `more`;
   A[i, p] is x[place[i] + tap[p]], and B[p] is packed as from[p] */
static INLINE void micro(const int m, const int v, int more, long k,
                         const REAL *x, const long *place, const long *tap,
                         const REAL *packed, const long *from, REAL *c) {
  AT(0) AT(1) AT(2) AT(3) AT(4) AT(5)
  EACH(LOAD)
#pragma GCC unroll 4
  for (long p = 0; p < k; p++) {
    long t = tap[p];
    const V *b = (const V *)packed + from[p] * v;
    EACH(STEP)
  }
  EACH(STORE)
}

#line 699 "chapters/gradients/convolution.md"
#define ON(m, v) case 8 * m + v: \
  micro(m, v, more, k, x, place, tap, b, from, c); break;
#define CASES(v) ON(1, v) ON(2, v) ON(3, v) ON(4, v) ON(5, v) ON(6, v)
/* micro, for every number of rows and of vectors */
void strip(int m, int v, int more, long k, const REAL *x, const long *place,
           const long *tap, const REAL *b, const long *from, REAL *c) {
  switch (8 * m + v) { CASES(1) CASES(2) CASES(3) CASES(4) }
}

static long min(long x, long y) { return x < y ? x : y; }

static long size(const struct axis *a) { return a[0].n * a[1].n * a[2].n; }

#line 716 "chapters/gradients/convolution.md"
/* 4 numbers, and 4 more behind the end of a run: the next one's place */
typedef long A __attribute__((vector_size(32), aligned(8), may_alias));

static INLINE void run(long n, long at, long step, long *out) {
  A next = {at, at + step, at + 2 * step, at + 3 * step};
  for (long i = 0; i < n; i += 4, next += 4 * step) *(A *)(out + i) = next;
}

/* n addresses along three axes, from the i-th on, in x and in the other */
void addresses(const struct axis *a, long i, long n, long *x, long *other) {
  if (n < 1) return;
  long r = i % a[2].n, q = i / a[2].n % a[1].n, p = i / a[2].n / a[1].n;
  for (long m; n > 0; n -= m, x += m, other += m, r = 0) {
    m = min(a[2].n - r, n);
    run(m, p * a[0].x + q * a[1].x + r * a[2].x, a[2].x, x);
    run(m, p * a[0].other + q * a[1].other + r * a[2].other, a[2].other,
        other);
    if (++q == a[1].n) q = 0, p++;
  }
}

#line 741 "chapters/gradients/convolution.md"
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

#line 772 "chapters/gradients/convolution.md"
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

#line 792 "chapters/gradients/convolution.md"
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

#line 813 "chapters/gradients/convolution.md"
struct job {
  const struct conv *p;
  const struct set *set;
  const REAL *x, *w;
  REAL *y, *packed, *parts;
  long k, wide, slot;
};

static _Thread_local struct room {
  REAL sums[MC * NR];
  long place[MC + 4], to[MC + 4], tap[KC + 4], from[KC + 4];
} room __attribute__((aligned(64)));

static long whole(long n) { return (n + L - 1) / L * L; }

/* pack some taps of a panel of kernels, once for all places */
static void lay(void *job, long t) {
  const struct job *g = job;
  const struct conv *p = g->p;
  long slices = (g->k + KC - 1) / KC, panels = (p->o + NR - 1) / NR;
  long first = t % slices * KC, o = t / slices % panels * NR;
  long group = t / slices / panels, k = min(KC, g->k - first);
  long n = min(NR, p->o - o), w = whole(n);
  addresses(p->taps, first, k, room.from, room.tap);
  pack(g->w + group * p->wg + o * p->wo, room.from, p->wo, k, n, w,
       g->packed + (group * g->wide + o) * g->k + first * w);
}

#line 845 "chapters/gradients/convolution.md"
/* what a task is about: a group, some places of a set, and their sums */
struct part { const struct set *set; long group, rows; REAL *sums; };

/* go to a group and a chunk of its places */
static struct part locate(const struct job *g, long t) {
  const struct set *s = g->set;
  long chunk = t % g->p->chunks, group = t / g->p->chunks % g->p->groups;
  while (chunk >= s->last) s++;
  long i = (chunk - s->first) * s->rows;
  long rows = min(s->rows, size(s->place) - i);
  addresses(s->place, i, rows, room.place, room.to);
  return (struct part){s, group, rows, g->parts + t * g->slot};
}

/* sums[rows, w], for a packed panel and the taps of [p, end) of a set */
static void panel(const struct set *s, long rows, long p, long end, long w,
                  const REAL *x, const REAL *packed, REAL *sums) {
  for (long k, more = 0; p < end || !more; p += KC, more = 1) {
    k = min(KC, end - p);
    addresses(s->taps, p, k, room.tap, room.from);
    for (long i = 0, h, left = (rows + MR - 1) / MR; left; left--, i += h)
      h = (rows - i) / left,
      strip(h, w / L, more, k, x, room.place + i, room.tap, packed,
            room.from, sums + i * w);
  }
}

#line 876 "chapters/gradients/convolution.md"
/* all channels of a part, from rows to where they are in y */
static void deliver(const struct job *g, const struct part *t, long o,
                    long end, const REAL *sums) {
  const struct conv *p = g->p;
  REAL *y = g->y + t->set->y + t->group * p->yg;
  for (long n; o < end; o += NR, sums += whole(n) * t->rows)
    n = min(NR, end - o),
    unpack(sums, whole(n), n, t->rows, room.to, y + o * p->yo, p->yo);
}

/* a chunk of places, and a piece of the taps, for all kernels of a group */
static void block(void *job, long i) {
  const struct job *g = job;
  const struct conv *p = g->p;
  struct part t = locate(g, i);
  long first = i / p->chunks / p->groups * t.set->depth;
  long end = min(size(t.set->taps), first + t.set->depth);
  for (long o = 0; o < p->o; o += NR) {
    long n = min(NR, p->o - o), w = whole(n);
    REAL *sums = g->parts ? t.sums + o * t.rows : room.sums;
    panel(t.set, t.rows, first, end, w, g->x + t.set->x + t.group * p->xg,
          g->packed + (t.group * g->wide + o) * g->k + t.set->tap * w, sums);
    if (!g->parts) deliver(g, &t, o, o + n, sums);
  }
}

#line 906 "chapters/gradients/convolution.md"
/* the pieces of a chunk, added up in their order */
static void join(void *job, long i) {
  const struct job *g = job;
  struct part t = locate(g, i);
  long apart = g->p->groups * g->p->chunks * g->slot;
  for (long q = 1; q < g->p->pieces; q++)
    for (long j = 0; j < t.rows * g->wide; j++)
      t.sums[j] += t.sums[q * apart + j];
  deliver(g, &t, 0, g->p->o, t.sums);
}

#line 921 "chapters/gradients/convolution.md"
/* n elements at a line of the cache, behind what is to be freed */
static REAL *space(long n, void **got) {
  *got = malloc(n * sizeof(REAL) + 64);
  return *got ? (REAL *)(((size_t)*got + 63) / 64 * 64) : 0;
}

/* pictures along three axes; `size` elements make one with its margin,
   in which it begins at `first`; no size: no margin */
struct frame {
  long n[3], step[3], h, w, down, right;
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

#line 951 "chapters/gradients/convolution.md"
/* a frame, a `struct conv`, and its sets of places; 0 without memory */
int convolve(const struct frame *f, const REAL *x, const REAL *w, REAL *y) {
  const struct conv *p = (const struct conv *)(f + 1);
  struct job g = {p, (const struct set *)(p + 1), x, w, y};
  g.k = size(p->taps), g.wide = whole(p->o), g.slot = p->most * g.wide;
  long n = f->n[0] * f->n[1] * f->n[2], ends = p->groups * p->chunks;
  long kernels = p->groups * g.k * g.wide, tasks = p->pieces * ends;
  long sums = p->pieces > 1 ? tasks * g.slot : 0;
  void *got;
  g.packed = space(kernels + sums + n * f->size, &got);
  if (!g.packed) return 0;
  if (sums) g.parts = g.packed + kernels;
  if (f->size) {
    g.x = g.packed + kernels + sums;
    f->parallel(picture, &(struct canvas){*f, x, (REAL *)g.x}, n, f->threads);
  }
  memset(y, 0, p->blank * sizeof *y);
  p->parallel(lay, &g, p->groups * ((p->o + NR - 1) / NR) * (
    (g.k + KC - 1) / KC), p->threads);
  p->parallel(block, &g, tasks, p->threads);
  if (sums) p->parallel(join, &g, ends, p->threads);
  free(got);
  return 1;
}
