/* Tangled from native: edit there, `make tangle`. sha256:c62592333551 */
#line 584 "chapters/tensors/native.md"
#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { L = BYTES / sizeof(float) };
typedef float V __attribute__((vector_size(BYTES), aligned(4), may_alias));

#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(a) X(b)
/* each starts elsewhere, or the compiler would make one of them all */
#define START(i) V c##i = {0x##i};
#define STEP(i) c##i = c##i * x + y;
#define SUM(i) sum += c##i;

/* twelve chains of n multiplications and additions: how many in all */
double multiply_add(long n, float x, float y, float *out) {
  V sum = {0};
  CHAINS(START)
  for (long i = 0; i < n; i++) { CHAINS(STEP) }
  CHAINS(SUM)
  for (int i = 0; i < L; i++) out[i] = sum[i];
  return 24.0 * L * n;
}

#line 616 "chapters/tensors/native.md"
/* a += s b */
void update(long n, float s, const float *b, float *a) {
  for (long i = 0; i < n; i += L)
    *(V *)(a + i) += s * *(V *)(b + i);
}
