/* Tangled from activations: edit there, `make tangle`. sha256:3ba93ac41244 */
#line 854 "chapters/tensors/activations.md"
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

#line 885 "chapters/tensors/activations.md"
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

#line 900 "chapters/tensors/activations.md"
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

#line 928 "chapters/tensors/activations.md"
struct job {
  struct fold f;
  const REAL *x;
  REAL *out;
  total *room;
  long rows, panels;
};

#line 940 "chapters/tensors/activations.md"
/* up to LANES neighbouring results of the rows o to `end`, one piece each */
static void fold_rows(const struct job *g, long o, long end, long j,
                      long piece) {
  const struct fold f = g->f;
  total s[LANES];
  long i = f.n * piece / f.pieces, n = f.n * (piece + 1) / f.pieces - i;
  /* several rows are taken for one only where a panel holds a row whole */
  long w = MIN(LANES, f.inner - j), many = w == f.inner;
  while (f.step == f.inner && 2 * many * w <= LANES && 2 * many <= n && many)
    many *= 2;
  for (; o < end; o++) {
    const REAL *x = g->x + o * f.far + i * f.step + j;
    long to = (piece * f.outer + o) * f.inner + j;
    /* constants are inlined: loops of known length become vectors */
    if (many == LANES) dense(n, 1, LANES, x, s);
    else if (many > 1) dense(n, w, many, x, s);
    else if (w == LANES) columns(n, LANES, x, f.step, s);
    else columns(n, w, x, f.step, s);
    for (long k = 0; k < w; k++)
      if (f.pieces > 1) g->room[to + k] = s[k];
      else g->out[to + k] = s[k];
  }
}

#line 968 "chapters/tensors/activations.md"
static void part(void *job, long t) {
  const struct job *g = job;
  long piece = t % g->f.pieces, panel = t / g->f.pieces % g->panels;
  long o = t / g->f.pieces / g->panels * g->rows;
  fold_rows(g, o, MIN(o + g->rows, g->f.outer), panel * LANES, piece);
}

/* out[outer, inner] = x[outer, n, inner] folded along n */
void fold_all(const struct fold *f, const REAL *x, REAL *out) {
  total room[ROOM];
  long m = f->outer * f->inner, panels = (f->inner + LANES - 1) / LANES;
  /* so many rows for a task that fetching it takes less time than they do */
  long rows = 1 + 8192 / (f->n * MIN(f->inner, LANES));
  long tasks = (f->outer + rows - 1) / rows * panels * f->pieces;
  struct job g = {*f, x, out, room, rows, panels};
  f->parallel(part, &g, tasks, f->threads);
  for (long i = 0; i < m && f->pieces > 1; i++) {
    /* in this order, whichever thread was first: the same bits every time */
    for (long p = 1; p < f->pieces; p++)
      room[i] = JOIN(room[i], room[p * m + i]);
    out[i] = room[i];
  }
}
