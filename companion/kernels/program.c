/* Tangled from codegen: edit there, `make tangle`. sha256:1b8121860be3 */
#line 306 "chapters/compiler/codegen.md"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void task(void *job, long i);
typedef void pool(task *f, void *job, long n, long threads);

/* whole quotients are rounded down, and by zero they are 0, as NumPy's */
#define WHOLE(T, name)                                               \
  static inline T idiv_##name(T a, T b) {                            \
    if (b == 0) return 0;                                            \
    if ((T)-1 < 0 && b == (T)-1) return 0 - (unsigned long)a;        \
    return a / b - ((a % b != 0) & ((a < 0) != (b < 0)));            \
  }                                                                  \
  static inline T mod_##name(T a, T b) {                             \
    if (b == 0 || ((T)-1 < 0 && b == (T)-1)) return 0;               \
    T m = a % b;                                                     \
    return m && (m < 0) != (b < 0) ? m + b : m;                      \
  }                                                                  \
  static inline T pow_##name(T a, T b) {                             \
    T y = 1;                                                         \
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? a : 1) : 0;    \
    for (; b; b >>= 1, a *= a) if (b & 1) y *= a;                    \
    return y;                                                        \
  }

#line 337 "chapters/compiler/codegen.md"
/* in structures, so that no compiler takes their bits for numbers */
typedef struct { uint16_t bits; } half;
typedef struct { uint16_t bits; } bf16;

static inline float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float bf16_to_float(bf16 x) {
  return as_float((uint32_t)x.bits << 16);
}

static inline bf16 float_to_bf16(float x) {
  uint32_t u = as_bits(x), even = u + 0x7fff + (u >> 16 & 1);
  return (bf16){x != x ? u >> 16 | 64 : even >> 16};
}

#line 366 "chapters/compiler/codegen.md"
/* five bits of exponent where a float has eight: 2^112 is between them */
static inline float half_to_float(half x) {
  uint32_t u = (uint32_t)(x.bits & 0x7fff) << 13;
  float y = u < 0x7c00u << 13 ? as_float(u) * 0x1p112f
                              : as_float(u | 0x7f800000);
  return as_float(as_bits(y) | (uint32_t)(x.bits & 0x8000) << 16);
}

static inline half float_to_half(float x) {
  uint32_t u = as_bits(x) & 0x7fffffff;
  uint32_t usual = (u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13;
  /* the last bit of 1/2 is the unit of the smallest halves */
  uint32_t tiny = as_bits(as_float(u) + 0.5f) - as_bits(0.5f);
  uint32_t y = u < 113u << 23 ? tiny : u < 143u << 23 ? usual : 0x7c00;
  y = x != x ? 0x7e00 : y;
  return (half){y | (as_bits(x) >> 16 & 0x8000)};
}

#line 388 "chapters/compiler/codegen.md"
/* the same for floats: as NumPy's, with the sign of b */
#define FLOATS(T, f)                                                 \
  static inline T mod_##T(T a, T b) {                                \
    T m = fmod##f(a, b);                                             \
    if (b == 0) return m;                                            \
    if (m == 0) return copysign##f(0, b);                            \
    return (b < 0) != (m < 0) ? m + b : m;                           \
  }                                                                  \
  static inline T idiv_##T(T a, T b) {                               \
    T m = fmod##f(a, b), q = (a - m) / b, down;                      \
    if (b == 0) return a / b;                                        \
    if (m && (b < 0) != (m < 0)) q -= 1;                             \
    if (q == 0) return copysign##f(0, a / b);                        \
    down = floor##f(q);                                              \
    return q - down > (T)0.5 ? down + 1 : down;                      \
  }                                                                  \
  static inline T log_##T(T x) { return log##f(x); }                 \
  static inline T sin_##T(T x) { return sin##f(x); }                 \
  static inline T sqrt_##T(T x) { return sqrt##f(x); }               \
  static inline T pow_##T(T x, T y) { return pow##f(x, y); }

WHOLE(int, int)
WHOLE(long, long)
WHOLE(signed char, signed_char)
WHOLE(unsigned char, unsigned_char)
FLOATS(float, f)
FLOATS(double, )

#line 1376 "chapters/compiler/codegen.md"
/* kernels that start together, and in how many parts each */
struct piece { task *f; void *p; long parts; };
static void some(void *job, long i) {
  struct piece *g = job;
  for (; i >= g->parts; g++) i -= g->parts;
  g->f(g->p, i);
}

#line 1519 "chapters/compiler/codegen.md"
/* out[r] = x[at[r]]: rows of `bytes` out of each of `outer` tables of n;
   0 if a place does not exist, which may be counted from `least` */
static int gather(const char *x, const long *at, char *out, long outer,
                  long count, long n, long bytes, long least) {
  for (long i = 0; i < outer * count; i++) {
    if (at[i] < least || at[i] >= n) return 0;
    long k = i / count * n + at[i] + (at[i] < 0) * n;
    memcpy(out + i * bytes, x + k * bytes, bytes);
  }
  return 1;
}

#line 1535 "chapters/compiler/codegen.md"
typedef void sum_rows(const void *job, const void *x, const long *at,
                      long *links, void *out);

/* out[at[r]] += x[r], where out is 0 at first, by the library's sum_rows:
   it wants the places in one table, and some room */
static int scatter(sum_rows *add, const void *job, const void *x,
                   const long *at, void *out, long outer, long count,
                   long n, long least) {
  long all = outer * count;
  long *to = malloc((2 * all + outer * n + 1) * sizeof *to);
  for (long i = 0; to && i < all; i++) {
    if (at[i] < least || at[i] >= n) { free(to); return 0; }
    to[i] = i / count * n + at[i] + (at[i] < 0) * n;
  }
  if (to) add(job, x, to, to + all, out);
  free(to);
  return to != 0;
}

#line 1558 "chapters/compiler/codegen.md"
/* the same for whole numbers, in which no digit is lost on the way */
#define SCATTER(T, name)                                              \
  static int scatter_##name(const void *from, const long *at,         \
      void *to, long outer, long count, long n, long inner,           \
      long least) {                                                   \
    const T *x = from;                                                \
    T *out = to;                                                      \
    memset(out, 0, outer * n * inner * sizeof *out);                  \
    for (long i = 0; i < outer * count; i++) {                        \
      if (at[i] < least || at[i] >= n) return 0;                      \
      long k = i / count * n + at[i] + (at[i] < 0) * n;               \
      for (long j = 0; j < inner; j++)                                \
        out[k * inner + j] += x[i * inner + j];                       \
    }                                                                 \
    return 1;                                                         \
  }
SCATTER(int, int)
SCATTER(long, long)
SCATTER(signed char, signed_char)
SCATTER(unsigned char, unsigned_char)
SCATTER(_Bool, _Bool)

#line 1584 "chapters/compiler/codegen.md"
#define MIX(r) x0 += x1, x1 = x0 ^ (x1 << r | x1 >> (32 - r));
#define FOUR(a, b, c, d) MIX(a) MIX(b) MIX(c) MIX(d)

#define KEY(b) x0 += k[(b + 1) % 3], x1 += k[(b + 2) % 3] + b + 1;
enum { SIDE = 16, DRAWN = 1 << 14 };  /* counters in a row, and in a part */
struct draw { const long *key; float *out; long n; };

/* numbers in [0, 1) by Threefry-2x32, two from each counter */
static void uniform(void *job, long part) {
  struct draw g = *(struct draw *)job;
  uint32_t k[3] = {g.key[0], g.key[0] >> 32};
  long first = part * DRAWN, end = first + DRAWN < g.n ? first + DRAWN : g.n;
  k[2] = k[0] ^ k[1] ^ 0x1BD11BDA;
  for (long i = first; i < end; i += 2 * SIDE) {
    float both[2 * SIDE];
    for (int j = 0; j < SIDE; j++) {
      uint64_t place = g.key[1] + i / 2 + j;
      uint32_t x0 = (uint32_t)place + k[0], x1 = (place >> 32) + k[1];
      FOUR(13, 15, 26, 6) KEY(0) FOUR(17, 29, 16, 24) KEY(1)
      FOUR(13, 15, 26, 6) KEY(2) FOUR(17, 29, 16, 24) KEY(3)
      FOUR(13, 15, 26, 6) KEY(4)
      both[2 * j] = (int)(x0 >> 8) * 0x1p-24f;
      both[2 * j + 1] = (int)(x1 >> 8) * 0x1p-24f;
    }
    memcpy(g.out + i, both, 4 * (end - i < 2 * SIDE ? end - i : 2 * SIDE));
  }
}
