/* Tangled from activations: edit there, `make tangle`. sha256:7e2042e962cc */
#line 488 "chapters/tensors/activations.md"
#include <tgmath.h>

#ifndef REAL
#define REAL float
#endif

/* y[n] = erf(x[n]); tgmath picks erff or erf */
void erf_each(long n, const REAL *x, REAL *y) {
  for (long i = 0; i < n; i++) y[i] = erf(x[i]);
}
