/* Tangled from quantization: edit there, `make tangle`. sha256:3e866289a551 */
#line 859 "chapters/systems/quantization.md"
#ifdef __x86_64__
#include <immintrin.h>
#endif
#if defined(__AVX512VNNI__)
enum { UNIT = 4, BYTES = 64, NV = 4 };
/* by hand: GCC 12 copies registers around its own name for it */
#define DOT(c, a, b) \
  __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b))
#elif defined(__AVXVNNI__)
enum { UNIT = 4, BYTES = 32, NV = 2 };
#define DOT(c, a, b) c = (V)_mm256_dpbusd_avx_epi32( \
  (__m256i)c, (__m256i)a, (__m256i)b)
#elif defined(__AVX512BW__)
enum { UNIT = 2, BYTES = 64, NV = 4 };
#define DOT(c, a, b) c += (V)_mm512_madd_epi16((__m512i)a, (__m512i)b)
#elif defined(__AVX2__)
enum { UNIT = 2, BYTES = 32, NV = 2 };
#define DOT(c, a, b) c += (V)_mm256_madd_epi16((__m256i)a, (__m256i)b)
#elif defined(__SSE2__)
enum { UNIT = 2, BYTES = 16, NV = 2 };
#define DOT(c, a, b) c += (V)_mm_madd_epi16((__m128i)a, (__m128i)b)
#else
enum { UNIT = 1, BYTES = 16, NV = 2 };
#define DOT(c, a, b) c += a * b
#endif

#line 891 "chapters/systems/quantization.md"
enum { LANES = BYTES / 4, MR = NV * LANES, NR = 6 };
typedef int V __attribute__((vector_size(BYTES), aligned(4), may_alias));
#define ROW(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#define EACH(X) ROW(X, 0) ROW(X, 1) ROW(X, 2) ROW(X, 3) ROW(X, 4) ROW(X, 5)
#define ZERO(i, j) V c##i##j = {0};
#define STEP(i, j) if (j < v) DOT(c##i##j, x##j, w);
#define WEIGHT(i) { V w = (V){0} + b[i * k]; ROW(STEP, i) }
#define STORE(i, j) if (j < v) ((V *)c)[NV * i + j] = c##i##j;

/* c[6, v LANES] = b[6, k] a[k, v LANES], of k words each */
static inline __attribute__((always_inline)) void
micro(const int v, const int *a, const int *b, long k, int *c) {
  EACH(ZERO)
  for (const int *end = b + k; b < end; b++, a += LANES) {
    V x0 = *(V *)a, x1 = x0, x2 = x0, x3 = x0;
    if (v > 1) x1 = *(V *)(a + k * LANES);
    if (v > 2) x2 = *(V *)(a + 2 * k * LANES);
    if (v > 3) x3 = *(V *)(a + 3 * k * LANES);
    WEIGHT(0) WEIGHT(1) WEIGHT(2) WEIGHT(3) WEIGHT(4) WEIGHT(5)
  }
  EACH(STORE)
}

#line 926 "chapters/systems/quantization.md"
static void tile(int v, const int *a, const int *b, long k, int *c) {
  switch (v) {
    case 1: micro(1, a, b, k, c); break;
    case 2: micro(2, a, b, k, c); break;
    case 3: micro(3, a, b, k, c); break;
    default: micro(4, a, b, k, c);
  }
}

#line 939 "chapters/systems/quantization.md"
#include <string.h>
typedef unsigned char u8;
typedef signed char s8;

/* UNIT numbers as a word, with their sign or without */
static int word(const u8 *x, int sign) {
  int w = x[0];
  if (UNIT == 4) memcpy(&w, x, 4);
  else if (sign && UNIT == 2)
    w = ((s8)x[0] & 0xffff) | (int)((unsigned)(s8)x[1] << 16);
  else if (sign) w = (s8)x[0];
  else if (UNIT == 2) w = x[0] | x[1] << 16;
  return w;
}

/* k numbers as words that are `step` apart */
static void lay(const void *from, int sign, long k, int *to, long step) {
  const u8 *x = from;
  u8 last[4] = {0};
  for (; k >= UNIT; k -= UNIT, x += UNIT, to += step) *to = word(x, sign);
  if (k) memcpy(last, x, k), *to = word(last, sign);
}

#line 966 "chapters/systems/quantization.md"
#include <stdlib.h>
typedef unsigned short u16;
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);
struct product {
  long m, n, k, words;
  const u8 *a; const s8 *b; int *c; float *y;
  const float *step; const int *zero, *sums; const u16 *scale;
  int *left, *right;
};
static long min(long x, long y) { return x < y ? x : y; }
static long parts(long x, long y) { return (x + y - 1) / y; }

/* row i of both: a's between others, b's by itself */
static void copy(void *job, long i) {
  const struct product *g = job;
  if (i < g->m)
    lay(g->a + i * g->k, 0, g->k,
        g->left + i / LANES * g->words * LANES + i % LANES, LANES);
  if (i < g->n)
    lay(g->b + i * g->k, 1, g->k, g->right + i * g->words, 1);
}

#line 993 "chapters/systems/quantization.md"
static float wide(u16 x) {
  unsigned bits = (unsigned)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

static void put(const struct product *g, long i, long j, const int *c) {
  long n = min(NR, g->n - j);
  float scale[NR];
  for (long s = 0; g->y && s < n; s++) scale[s] = wide(g->scale[j + s]);
  for (long r = i; r < min(g->m, i + MR); r++, c++)
    for (long s = 0, at = r * g->n + j; s < n; s++, at++)
      if (!g->y) g->c[at] = c[s * MR];
      else g->y[at] = g->step[r] * scale[s]
        * (float)(c[s * MR] - g->zero[r] * g->sums[j + s]);
}

/* six columns of c */
static void columns(void *job, long t) {
  const struct product *g = job;
  int c[NR * MR] __attribute__((aligned(64)));
  for (long i = 0; i < g->m; i += MR) {
    tile(parts(min(MR, g->m - i), LANES), g->left + i * g->words,
         g->right + t * NR * g->words, g->words, c);
    put(g, i, t * NR, c);
  }
}

#line 1026 "chapters/systems/quantization.md"
/* c[m, n] = a[m, k] b[n, k]^T, exactly; or, into y, the floats that
   they stand for. 0 if there is no memory for copies */
int product8(long m, long n, long k, const u8 *a, const s8 *b, int *c,
             float *y, const float *step, const int *zero,
             const u16 *scale, const int *sums, long threads,
             pool *parallel) {
  struct product g = {m, n, k, parts(k, UNIT), a, b, c, y, step, zero,
                      sums, scale};
  long rows = parts(m, LANES) * LANES, tasks = parts(n, NR);
  int *room = calloc((rows + tasks * NR) * g.words + 1, sizeof(int));
  if (!room) return 0;
  g.left = room, g.right = room + rows * g.words;
  parallel(copy, &g, m > n ? m : n, threads);
  parallel(columns, &g, tasks, threads);
  free(room);
  return 1;
}

#line 1048 "chapters/systems/quantization.md"
#include <math.h>
struct rows { long m, k; const float *x; u8 *q; float *step; int *zero;
              int fixed; };

/* the step and the zero of row i; a step of NaN if not all is finite */
static void span(void *job, long i) {
  const struct rows *g = job;
  const float *x = g->x + i * g->k;
  int low = 0, high = 0;
  /* of positive floats the bits rise as they do, and NaN's are above */
  for (long p = 0, n = g->k; p < n; p++) {
    int bits, turned;
    memcpy(&bits, x + p, 4), turned = bits ^ (int)0x80000000;
    high = bits > high ? bits : high, low = turned > low ? turned : low;
  }
  float top, bottom;
  memcpy(&top, &high, 4), memcpy(&bottom, &low, 4);
  if (high >= 0x7f800000 || low >= 0x7f800000) {
    g->step[i] = NAN, g->zero[i] = 0;
  } else if (!g->fixed) {
    float step = top / 255 + bottom / 255;
    g->step[i] = step = step < 1e-30f ? 1 : step;
    g->zero[i] = rintf(bottom / step);
  }
}

#line 1078 "chapters/systems/quantization.md"
/* row i as bytes */
static void encode(void *job, long i) {
  const struct rows *g = job;
  const float *x = g->x + i * g->k, part = 1 / g->step[i];
  const float zero = g->zero[i];
  u8 *q = g->q + i * g->k;
  for (long p = 0, n = g->k; p < n; p++) {
    float code = rintf(x[p] * part) + zero;
    code = code > 0 ? code : 0;
    q[p] = (int)(code < 255 ? code : 255);
  }
}

/* q[m, k], of x[m, k]: step and zero of each row, unless they are fixed */
void encode8(long m, long k, const float *x, u8 *q, float *step,
             int *zero, int fixed, long threads, pool *parallel) {
  struct rows g = {m, k, x, q, step, zero, fixed};
  parallel(span, &g, m, threads);
  parallel(encode, &g, m, threads);
}
