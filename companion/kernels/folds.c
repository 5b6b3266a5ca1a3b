/* Tangled from activations: edit there, `make tangle`. sha256:bf64cfa3a6a5 */
#line 824 "chapters/tensors/activations.md"
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#ifdef MOST
/* a NaN wins; | and not ||, so that there is no branch */
#define JOIN(a, b) ((b) > (a) | (b) != (b) ? (b) : (a))
typedef REAL total;
#else
#define JOIN(a, b) ((a) + (b))
typedef double total;
#endif
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define INLINE inline __attribute__((always_inline))
/* LANES: an addition waits for the one before, and a core has room for a
   dozen at once. ROOM: `reduction_params` in Python makes no more parts */
enum { LANES = 32, ROOM = 4096 };

typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
/* x[outer, n, inner]; steps of its first two axes */
struct fold {
  long outer, n, inner, far, step, pieces, threads;
  pool *parallel;
};
struct job { struct fold f; const REAL *x; REAL *out; total *room; };

#line 856 "chapters/tensors/activations.md"
/* s[w] = n rows of w elements, `step` apart, folded */
static INLINE void columns(long n, long w, const REAL *x, long step,
                           total *restrict s) {
  for (long j = 0; j < w; j++) s[j] = x[j];
  for (x += step; --n > 0; x += step)
    for (long j = 0; j < w; j++) {
      total v = x[j];
      s[j] = JOIN(s[j], v);
    }
}

#line 875 "chapters/tensors/activations.md"
static INLINE void halve(long n, total *lane) {
  for (long j = 0; j < n; j++) lane[j] = JOIN(lane[j], lane[j + n]);
}

/* as `columns`, where rows lie side by side: so many of them are one row */
static INLINE void dense(long n, long w, long many, const REAL *x,
                         total *s) {
  total lane[LANES];
  long all = many * w, i = n / many * all;
  columns(n / many, all, x, all, lane);
  for (; i < n * w; i += w)
    for (long j = 0; j < w; j++) {
      total v = x[i + j];
      lane[j] = JOIN(lane[j], v);
    }
  /* `many`, which is all / w, is a power of two up to LANES */
  if (all == 32 * w) halve(16 * w, lane);
  if (all >= 16 * w) halve(8 * w, lane);
  if (all >= 8 * w) halve(4 * w, lane);
  if (all >= 4 * w) halve(2 * w, lane);
  halve(w, lane);
  memcpy(s, lane, w * sizeof *s);
}

#line 903 "chapters/tensors/activations.md"
/* one piece of up to LANES neighbouring results */
static void part(void *job, long t) {
  struct job g = *(struct job *)job;
  struct fold f = g.f;
  total s[LANES];
  long panels = (f.inner + LANES - 1) / LANES, piece = t % f.pieces;
  long j = t / f.pieces % panels * LANES, o = t / f.pieces / panels;
  long i = f.n * piece / f.pieces, n = f.n * (piece + 1) / f.pieces - i;
  /* several rows are taken for one only where a panel holds a row whole */
  long w = MIN(LANES, f.inner - j), many = w == f.inner, to;
  const REAL *x = g.x + o * f.far + i * f.step + j;
  while (f.step == f.inner && 2 * many * w <= LANES && 2 * many <= n && many)
    many *= 2;
  /* constants are inlined: loops of known length are compiled to vectors */
  if (many == LANES) dense(n, 1, LANES, x, s);
  else if (many > 1) dense(n, w, many, x, s);
  else if (w == LANES) columns(n, LANES, x, f.step, s);
  else columns(n, w, x, f.step, s);
  to = (piece * f.outer + o) * f.inner + j;
  for (long k = 0; k < w; k++)
    if (f.pieces > 1) g.room[to + k] = s[k];
    else g.out[to + k] = s[k];
}

#line 931 "chapters/tensors/activations.md"
/* out[outer, inner] = x[outer, n, inner] folded along n */
void fold_all(const struct fold *f, const REAL *x, REAL *out) {
  total room[ROOM];
  struct job g = {*f, x, out, room};
  long m = f->outer * f->inner, panels = (f->inner + LANES - 1) / LANES;
  f->parallel(part, &g, f->outer * panels * f->pieces, f->threads);
  for (long i = 0; i < m && f->pieces > 1; i++) {
    /* in this order, whichever thread was first: the same bits every time */
    for (long p = 1; p < f->pieces; p++)
      room[i] = JOIN(room[i], room[p * m + i]);
    out[i] = room[i];
  }
}
