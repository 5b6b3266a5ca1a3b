/* Tangled from activations: edit there, `make tangle`. sha256:2bcdd7da63b4 */
#line 500 "chapters/tensors/activations.md"
#include <tgmath.h>

#ifndef REAL
#define REAL float
#endif

/* y[n] = erf(x[n]); tgmath picks erff or erf */
void erf_each(long n, const REAL *x, REAL *y) {
  for (long i = 0; i < n; i++) y[i] = erf(x[i]);
}
