/* Tangled from embeddings: edit there, `make tangle`. sha256:68c9ed5c1482 */
#line 329 "chapters/gradients/embeddings.md"
#include <string.h>

#ifndef REAL
#define REAL float
#endif
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
struct sums { long n, rows, width, parts, threads; pool *parallel; };
struct job {
  struct sums p;
  const REAL *x; const long *first, *after; REAL *out;
};
enum { PIECE = 64 };

/* out[row], `m` numbers of it from place j on */
static void add_up(const struct job *g, long row, long j, long m) {
  double sum[PIECE];
  for (long c = 0; c < m; c++) sum[c] = 0;
  for (long r = g->first[row]; r >= 0; r = g->after[r])
    for (long c = 0; c < m; c++) sum[c] += g->x[r * g->p.width + j + c];
  for (long c = 0; c < m; c++) g->out[row * g->p.width + j + c] = sum[c];
}

#line 358 "chapters/gradients/embeddings.md"
static void part(void *job, long i) {
  const struct job *g = job;
  long row = g->p.rows * i / g->p.parts, width = g->p.width;
  long end = g->p.rows * (i + 1) / g->p.parts;
  /* most rows of a large table get nothing: they are cleared together */
  memset(g->out + row * width, 0, (end - row) * width * sizeof(REAL));
  for (; row < end; row++)
    for (long j = 0; j < width && g->first[row] >= 0; j += PIECE)
      add_up(g, row, j, width - j < PIECE ? width - j : PIECE);
}

#line 373 "chapters/gradients/embeddings.md"
/* out[rows, width] = the sums of x[n, width] by their rows, at[n];
   `links` has room for rows + n numbers */
void sum_rows(const struct sums *p, const REAL *x, const long *at,
             long *links, REAL *out) {
  long *first = links, *after = links + p->rows;
  for (long row = 0; row < p->rows; row++) first[row] = -1;
  for (long r = p->n; r--;) {
    long row = at[r] + (at[r] < 0) * p->rows;
    after[r] = first[row], first[row] = r;
  }
  struct job g = {*p, x, first, after, out};
  p->parallel(part, &g, p->parts, p->threads);
}
