/* Tangled from quantization: edit there, `make tangle`. sha256:a986f44e3f30 */
#line 534 "chapters/systems/quantization.md"
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;

#if defined(__AVX512F__)
enum { L = 16 };
#define SIGNED(p) (I)_mm512_cvtepi8_epi32(_mm_loadu_si128((void *)(p)))
#define PLAIN(p) (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((void *)(p)))
#elif defined(__AVX2__)
enum { L = 8 };
#define SIGNED(p) (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64((void *)(p)))
#define PLAIN(p) (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((void *)(p)))
#elif defined(__SSE4_1__)
enum { L = 4 };
#define SIGNED(p) (I)_mm_cvtepi8_epi32(_mm_loadu_si32(p))
#define PLAIN(p) (I)_mm_cvtepu8_epi32(_mm_loadu_si32(p))
#else
enum { L = 4 };
#define SIGNED(p) (I){(p)[0], (p)[1], (p)[2], (p)[3]}
#define PLAIN SIGNED
#endif

#line 564 "chapters/systems/quantization.md"
typedef float F __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int I __attribute__((vector_size(4 * L)));
#define FLOATS(v) __builtin_convertvector(v, F)
#define AT(x) *(F *)(x)

/* s + the products of k bytes and k floats, added up in lanes */
static F bytes(const s8 *w, const float *x, long k, F s) {
  F t = {0}, u = {0}, v = {0};
  long p = 0;
  for (; p + 4 * L <= k; p += 4 * L) {
    /* rows that follow: by itself the processor stops at a page's end */
    __builtin_prefetch(w + p + 16384, 0, 2);
    s += FLOATS(SIGNED(w + p)) * AT(x + p);
    t += FLOATS(SIGNED(w + p + L)) * AT(x + p + L);
    u += FLOATS(SIGNED(w + p + 2 * L)) * AT(x + p + 2 * L);
    v += FLOATS(SIGNED(w + p + 3 * L)) * AT(x + p + 3 * L);
  }
  for (; p + L <= k; p += L) s += FLOATS(SIGNED(w + p)) * AT(x + p);
  for (; p < k; p++) t[0] += w[p] * x[p];
  return s + t + (u + v);
}

#line 594 "chapters/systems/quantization.md"
/* likewise two codes from each of k bytes, for even and odd floats */
static F pairs(const u8 *w, const float *even, const float *odd, long k,
               F s) {
  long p = 0;
  for (; p + L <= k; p += L) {
    I q = PLAIN(w + p);
    s += FLOATS(q & 15) * AT(even + p);
    s += FLOATS(q >> 4) * AT(odd + p);
  }
  for (; p < k; p++)
    s[0] += (w[p] & 15) * even[p] + (w[p] >> 4) * odd[p];
  return s;
}

#line 612 "chapters/systems/quantization.md"
typedef unsigned W __attribute__((vector_size(4 * L)));
typedef u16 H __attribute__((vector_size(2 * L), aligned(2), may_alias));
#define WIDE(p) (F)(__builtin_convertvector(*(H *)(p), W) << 16)

static float wide(u16 x) {
  unsigned bits = (unsigned)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

static F halves(const u16 *w, const float *x, long k) {
  F s = {0}, t = {0};
  long p = 0;
  for (; p + 2 * L <= k; p += 2 * L)
    s += WIDE(w + p) * AT(x + p), t += WIDE(w + p + L) * AT(x + p + L);
  for (; p < k; p++) t[0] += wide(w[p]) * x[p];
  return s + t;
}

#line 636 "chapters/systems/quantization.md"
struct few {
  long m, n, k, group, bits, groups, pairs;
  const void *w; const u16 *scale; const s8 *zero;
  const float *x; float *y, *split;
};
static long min(long x, long y) { return x < y ? x : y; }

/* row i of x times row j of W, in lanes */
static F row(const struct few *g, long i, long j) {
  const float *x = g->x + i * g->k, *even = g->split
    + i * (2 * g->pairs + g->groups * L), *less = even + 2 * g->pairs;
  const u8 *w = (const u8 *)g->w + j * (g->bits == 4 ? g->pairs : g->k);
  F y = {0};
  for (long q = 0, p = 0; q < g->groups; q++, p += g->group) {
    long k = min(g->group, g->k - p), at = j * g->groups + q;
    int zero = (g->bits == 4 ? 8 : 0) + (g->zero ? g->zero[at] : 0);
    F s = {0};
    if (zero) s = (float)zero * AT(less + q * L);
    y += wide(g->scale[at]) * (g->bits == 4
      ? pairs(w + p / 2, even + p / 2, even + g->pairs + p / 2,
              (k + 1) / 2, s)
      : bytes((const s8 *)w + p, x + p, k, s));
  }
  return y;
}

#line 666 "chapters/systems/quantization.md"
/* x's even numbers, its odd ones, and minus all of each group, in lanes */
static void divide(const struct few *g) {
  long each = 2 * g->pairs + g->groups * L;
  memset(g->split, 0, g->m * each * sizeof(float));
  for (long i = 0; i < g->m; i++) {
    float *even = g->split + i * each, *odd = even + g->pairs;
    float *less = odd + g->pairs;
    for (long p = 0; p < g->k; p++) {
      float x = g->x[i * g->k + p];
      (p % 2 ? odd : even)[p / 2] = x;
      less[p / g->group * L + p % L] -= x;
    }
  }
}

static float total(F v) {
  typedef float F4 __attribute__((vector_size(16)));
  F4 part[L / 4], s = {0};
  memcpy(part, &v, sizeof v);
  for (int i = 0; i < L / 4; i++) s += part[i];
  return s[0] + s[1] + (s[2] + s[3]);
}

#line 693 "chapters/systems/quantization.md"
typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);

static void rows(void *job, long t) {
  const struct few *g = job;
  for (long j = 32 * t; j < min(g->n, 32 * t + 32); j++)
    for (long i = 0; i < g->m; i++)
      g->y[i * g->n + j] = total(g->bits == 16
        ? halves((u16 *)g->w + j * g->k, g->x + i * g->k, g->k)
        : row(g, i, j));
}

/* y[m, n] = x[m, k] W^T for a few rows of x, and W of n rows */
void narrow(long m, long n, long k, long group, long bits, const void *w,
            const u16 *scale, const s8 *zero, const float *x, float *y,
            float *split, long threads, pool *parallel) {
  struct few g = {m, n, k, group, bits, (k + group - 1) / group,
                  (k + 1) / 2, w, scale, zero, x, y, split};
  if (bits == 4 || zero) divide(&g);
  parallel(rows, &g, (n + 31) / 32, threads);
}
