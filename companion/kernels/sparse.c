/* Tangled from compression: edit there, `make tangle`. sha256:52231243b755 */
#line 743 "chapters/systems/compression.md"
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
struct job {
  const float *values, *x; const int *columns; const long *starts;
  float *y; long m, n, parts;
};
enum { PIECE = 32 };

/* y[r], `width` numbers of it from place j on */
static void piece(const struct job *g, long r, long j, long width) {
  float sum[PIECE] = {0};
  for (long k = g->starts[r]; k < g->starts[r + 1]; k++) {
    const float *x = g->x + g->columns[k] * g->n + j, v = g->values[k];
    /* a number of steps that is known is made without a loop */
    if (width == PIECE) for (long c = 0; c < PIECE; c++) sum[c] += v * x[c];
    else for (long c = 0; c < width; c++) sum[c] += v * x[c];
  }
  for (long c = 0; c < width; c++) g->y[r * g->n + j + c] = sum[c];
}

/* with one column: four sums, which need not wait for each other */
static float dot(const struct job *g, long r) {
  float sum[4] = {0};
  for (long k = g->starts[r]; k < g->starts[r + 1]; k++)
    sum[k % 4] += g->values[k] * g->x[g->columns[k]];
  return sum[0] + sum[1] + (sum[2] + sum[3]);
}

#line 775 "chapters/systems/compression.md"
static void part(void *job, long i) {
  const struct job *g = job;
  for (long r = g->m * i / g->parts; r < g->m * (i + 1) / g->parts; r++)
    if (g->n == 1) g->y[r] = dot(g, r);
    else for (long j = 0; j < g->n; j += PIECE)
      piece(g, r, j, g->n - j < PIECE ? g->n - j : PIECE);
}

/* y (m, n) = a sparse matrix (m, inner), of `count` values, times
   x (inner, n); returns 0, and else there are no such places */
long product(const float *values, const int *columns, const long *starts,
             const float *x, float *y, long m, long inner, long n,
             long count, long parts, pool *parallel) {
  struct job g = {values, x, columns, starts, y, m, n, parts};
  long wrong = starts[0] != 0 || starts[m] != count;
  for (long r = 0; r < m; r++) wrong |= starts[r] > starts[r + 1];
  for (long k = 0; k < count; k++)
    wrong |= columns[k] < 0 || columns[k] >= inner;
  if (!wrong) parallel(part, &g, parts, parts);
  return wrong;
}
