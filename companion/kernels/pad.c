/* Tangled from convolution: edit there, `make tangle`. sha256:1837fb4207cf */
#line 1076 "chapters/gradients/convolution.md"
#include <string.h>

#ifndef REAL
#define REAL float
#endif
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
/* pictures along three axes; what stands around each begins at `first` */
struct frame {
  long n[3], step[3], h, w, down, right, size, wide, first, threads;
  pool *parallel;
};
struct job { struct frame p; const REAL *x; REAL *y; };

static void picture(void *job, long t) {
  struct job g = *(struct job *)job;
  REAL *y = g.y + t * g.p.size;
  for (long a = 3; a--; t /= g.p.n[a]) g.x += t % g.p.n[a] * g.p.step[a];
  memset(y, 0, g.p.size * sizeof *y);
  y += g.p.first;
  for (long i = 0; i < g.p.h; i++, g.x += g.p.down, y += g.p.wide)
    if (g.p.right == 1) memcpy(y, g.x, g.p.w * sizeof *y);
    else for (long j = 0; j < g.p.w; j++) y[j] = g.x[j * g.p.right];
}

void surround(const struct frame *p, const REAL *x, REAL *y) {
  struct job g = {*p, x, y};
  p->parallel(picture, &g, p->n[0] * p->n[1] * p->n[2], p->threads);
}
