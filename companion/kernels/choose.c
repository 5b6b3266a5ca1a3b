/* Tangled from activations: edit there, `make tangle`. sha256:21aa5358f245 */
#line 860 "chapters/tensors/activations.md"
#include <stdint.h>

#ifndef WORD
#define WORD uint32_t
#endif

/* y[n] = c[n] ? a[n] : b[n], for words of any width */
void choose(long n, const uint8_t *c, const WORD *a, const WORD *b,
            WORD *y) {
  for (long i = 0; i < n; i++) y[i] = c[i] ? a[i] : b[i];
}
