/* Tangled from cuda: edit there, `make tangle`. sha256:2f0314d43e09 */
#line 478 "chapters/gradients/cuda.md"
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS /* C alone reads faster */
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 900
#define warpSize 32

typedef struct uint3 { unsigned x, y, z; } dim3;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };

#line 506 "chapters/gradients/cuda.md"
#ifdef __APPLE__
#define __shared__ static __attribute__((used, \
    section("__DATA,cuda_shared")))
extern char shared_begin[] __asm("section$start$__DATA$cuda_shared");
extern char shared_end[] __asm("section$end$__DATA$cuda_shared");
#else
#define __shared__ static __attribute__((used, section("cuda_shared")))
#define LINKED __attribute__((weak, visibility("hidden")))
extern LINKED char shared_begin[] __asm("__start_cuda_shared");
extern LINKED char shared_end[] __asm("__stop_cuda_shared");
#endif

#line 556 "chapters/gradients/cuda.md"
static struct Emulator {
  enum { THREADS = 1024, STACK = 1 << 16 };
  enum State { NEW, READY, RUNNING, AT_BLOCK, AT_WARP, DONE };
  struct Atomic; struct Walk;
  struct Thread {
    uint3 index;
    State state;
    const char *place;  /* where it waits; for its warp, for whom: */
    unsigned mask, from, exchanges;
    uint64_t value;
  } thread[THREADS], *now;
  struct Warp { unsigned alive, arrived; } warp[THREADS / 32];
  uint3 index, block; dim3 threads, blocks; bool atomic;
  unsigned count, alive, arrived, cursor, barriers, order[THREADS];
  jmp_buf home, here[THREADS], spare[THREADS + 1];
  ucontext_t fresh;
  unsigned made, spares;
  char *stacks, error[300];
  void (*body)(void *), *call;
  unsigned rank(const Thread *t) { return t - thread; }
  Thread *pick(); void begin(Thread *), finish(), pause(), runner(),
    run_others(), run_block(), stuck(), check_block(),
    fail(const Thread *, const Thread *), barrier(const char *),
    check_warp(Warp &, Thread *), deliver(unsigned, Thread *);
  uint64_t exchange(unsigned mask, uint64_t value, unsigned from);
  const char *run(const unsigned *shape, long order);
  template <class... P> const char *launch(void (*)(P...), void **,
      const unsigned *, unsigned, const unsigned *, long);
} emulator;

#line 590 "chapters/gradients/cuda.md"
#define threadIdx emulator.index
#define blockIdx emulator.block
#define blockDim emulator.threads
#define gridDim emulator.blocks

/* the next thread, in turn, that can go on; none if all wait or are done */
Emulator::Thread *Emulator::pick() {
  for (unsigned tried = 0; tried < count; tried++) {
    Thread *t = thread + order[cursor];
    if (t->state <= READY) return t;
    cursor = cursor + 1 < count ? cursor + 1 : 0;
  }
  return 0;
}

void Emulator::begin(Thread *t) {
  now = t;
  index = t->index;
  t->state = RUNNING;
}

#line 617 "chapters/gradients/cuda.md"
/* what happens on every stack: new threads, one after the other */
void Emulator::runner() {
  for (;;) {
    Thread *t = pick();
    if (t && t->state == NEW) {
      begin(t);
      body(call);
      finish();
    } else if (!_setjmp(spare[spares])) {
      /* no new thread: this stack waits until another thread needs one */
      spares++;
      if (!t) _longjmp(home, 1);
      begin(t);
      _longjmp(here[rank(t)], 1);
    }
  }
}

#line 639 "chapters/gradients/cuda.md"
/* continue on a stack that nobody needs; does not return */
void Emulator::run_others() {
  if (spares) _longjmp(spare[--spares], 1);
  if (!stacks) stacks = (char *)malloc((THREADS + 1l) * STACK);
  getcontext(&fresh);
  fresh.uc_stack.ss_sp = stacks + made++ * (size_t)STACK;
  fresh.uc_stack.ss_size = STACK;
  makecontext(&fresh, [] { emulator.runner(); }, 0);
  setcontext(&fresh);
}

/* let others run until one of them makes this thread READY */
void Emulator::pause() {
  /* the last to arrive has opened the barrier, and need not wait at it */
  if (now->state == READY) now->state = RUNNING;
  else if (!_setjmp(here[rank(now)])) {
    Thread *t = pick();
    if (!t) _longjmp(home, 1);
    if (t->state == NEW) run_others();
    begin(t);
    _longjmp(here[rank(t)], 1);
  }
}

#line 673 "chapters/gradients/cuda.md"
/* open the block's barrier if every thread that lives has come */
void Emulator::check_block() {
  Thread *first = 0;
  if (!arrived || arrived < alive) return;
  for (Thread *t = thread; t < thread + count; t++) {
    if (t->state != AT_BLOCK) continue;
    if (!first) first = t;
    if (t->place != first->place && strcmp(t->place, first->place))
      fail(first, t);
    t->state = READY;
  }
  arrived = 0, barriers++;
}

void Emulator::barrier(const char *place) {
  now->state = AT_BLOCK, now->place = place;
  arrived++;
  check_block();
  pause();
}
#define AS_TEXT(x) #x
#define LINE(x) AS_TEXT(x)
#define __syncthreads() emulator.barrier(__FILE__ ", line " LINE(__LINE__))

#line 701 "chapters/gradients/cuda.md"
void Emulator::fail(const Thread *a, const Thread *b) {
  snprintf(error, sizeof error, "block (%u, %u, %u): thread %u waits at %s,"
           " thread %u at %s; a GPU would hang or compute nonsense",
           block.x, block.y, block.z, rank(a), a->place, rank(b), b->place);
  _longjmp(home, 1);
}

/* nobody can go on: name one who waits for its block, one for its warp */
void Emulator::stuck() {
  Thread *found[2] = {0, 0};
  for (unsigned i = 0; i < count; i++)
    if (thread[i].state == AT_BLOCK || thread[i].state == AT_WARP)
      found[thread[i].state - AT_BLOCK] = thread + i;
  if (!found[0]) found[0] = found[1];
  if (!found[1]) found[1] = found[0];
  fail(found[0], found[1]);
}

#line 735 "chapters/gradients/cuda.md"
/* all lanes of a mask have come: give each the value it wants to read */
void Emulator::deliver(unsigned mask, Thread *lanes) {
  unsigned ballot = 0, latest = 0;
  uint64_t value[32];
  for (int i = 0; i < 32; i++) {
    value[i] = lanes[i].value;
    if (!(mask >> i & 1)) continue;
    if (value[i]) ballot |= 1u << i;
    if (latest < lanes[i].exchanges) latest = lanes[i].exchanges;
  }
  for (Thread *t = lanes; t < lanes + 32; t++) {
    if (!(mask >> (t - lanes) & 1)) continue;
    /* 32 asks for every bit; a lane outside the mask has not-a-number */
    bool there = t->from < 32 && mask >> t->from & 1;
    t->value = there ? value[t->from] : t->from == 32 ? ballot : ~0ull;
    /* a clock of Lamport's: from here on higher than any of theirs was */
    t->state = READY, t->exchanges = latest + 1;
  }
}

void Emulator::check_warp(Warp &w, Thread *lanes) {
  for (int i = 0; i < 32; i++) {
    unsigned mask = lanes[i].mask & w.alive;
    if (w.arrived >> i & 1 && !(mask & ~w.arrived)) {
      deliver(mask, lanes);
      w.arrived &= ~mask;
    }
  }
}

#line 769 "chapters/gradients/cuda.md"
/* wait for the lanes of a mask, and read the value of one of them */
uint64_t Emulator::exchange(unsigned mask, uint64_t value, unsigned from) {
  unsigned lane = rank(now) % 32;
  Thread *me = now;
  Warp &w = warp[rank(me) / 32];
  me->state = AT_WARP, me->place = "an exchange within its warp";
  me->mask = mask | 1u << lane, me->value = value, me->from = from;
  w.arrived |= 1u << lane;
  check_warp(w, me - lane);
  pause();
  return me->value;
}

template <class T> T shuffle(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = emulator.exchange(mask, bits, from);
  memcpy(&value, &bits, sizeof value);
  return value;
}

#line 795 "chapters/gradients/cuda.md"
#define LANE (emulator.rank(emulator.now) % 32)
#define __shfl_sync(mask, x, lane) shuffle(mask, x, (lane) & 31)
#define __shfl_xor_sync(mask, x, bits) shuffle(mask, x, LANE ^ (bits))
template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned by) {
  return shuffle(mask, x, LANE + by < 32 ? LANE + by : LANE);
}
template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned by) {
  return shuffle(mask, x, LANE >= by ? LANE - by : LANE);
}
void __syncwarp(unsigned mask = ~0u) { emulator.exchange(mask, 0, LANE); }
unsigned __ballot_sync(unsigned mask, bool x) {
  return emulator.exchange(mask, x, 32);
}
bool __any_sync(unsigned mask, bool x) { return __ballot_sync(mask, x); }
bool __all_sync(unsigned mask, bool x) { return !__ballot_sync(mask, !x); }

#line 821 "chapters/gradients/cuda.md"
/* a thread has ended: others may have waited only for it */
void Emulator::finish() {
  unsigned lane = rank(now) % 32;
  Warp &w = warp[rank(now) / 32];
  now->state = DONE;
  alive--;
  w.alive &= ~(1u << lane);
  if (w.arrived) check_warp(w, now - lane);
  check_block();
}

void Emulator::run_block() {
  alive = count, arrived = cursor = barriers = 0;
  for (unsigned i = 0; i < count; i++) {
    thread[i].state = NEW;
    thread[i].exchanges = 0;
  }
  for (unsigned w = 0, n = count; 32 * w < count; w++, n -= 32)
    warp[w] = {n < 32 ? (1u << n) - 1 : ~0u, 0};
  /* not-a-number to every float: reading what nobody wrote will show */
  memset(shared_begin, -1, shared_end - shared_begin);
  if (!_setjmp(home)) run_others();
  if (alive && !error[0] && !_setjmp(home)) stuck();
  now = 0, atomic = false;
}

#line 851 "chapters/gradients/cuda.md"
/* a walk through n places that comes to each of them once */
struct Emulator::Walk {
  uint64_t n, step, first;
  Walk(dim3 size, long order) : n(1ull * size.x * size.y * size.z) {
    uint64_t a = 0, b, c;
    for (step = (order % (long)n + n) % n; a != 1; step += a != 1)
      for (a = step, b = n; b; c = a % b, a = b, b = c);
    first = order == 1 ? 0 : step;
  }
  uint64_t operator[](uint64_t i) { return (i * step + first) % n; }
  static uint3 index(uint64_t i, dim3 size) {
    return {unsigned(i % size.x), unsigned(i / size.x % size.y),
            unsigned(i / size.x / size.y)};
  }
};

#line 871 "chapters/gradients/cuda.md"

const char *Emulator::run(const unsigned *shape, long how) {
  blocks = {shape[0], shape[1], shape[2]};
  threads = {shape[3], shape[4], shape[5]};
  Walk inside(threads, how), over(blocks, how);
  count = inside.n;
  for (unsigned i = 0; i < count; i++)
    thread[i].index = Walk::index(i, threads), order[i] = inside[i];
  for (uint64_t i = 0; i < over.n && !error[0]; i++) {
    block = Walk::index(over[i], blocks);
    run_block();
  }
  /* threads that still waited are given up, with their stacks */
  if (error[0]) made = spares = 0;
  return error[0] ? error : 0;
}

#line 892 "chapters/gradients/cuda.md"
#define UNSEEN __attribute__((no_sanitize("thread"))) /* not in traces */

template <class... P> struct Call {
  void (*f)(P...);
  void **list;
  struct Made {  /* braces evaluate from left to right, calls need not */
    UNSEEN Made(void (*f)(P...), const P &...values) { f(values...); }
  };
  UNSEEN static void body(void *call) {
    void **next = ((Call *)call)->list;
    Made{((Call *)call)->f, *(P *)*next++...};
  }
};

#line 910 "chapters/gradients/cuda.md"
template <class... P>
const char *Emulator::launch(void (*f)(P...), void **list,
                             const unsigned *sizes, unsigned given,
                             const unsigned *shape, long order) {
  const unsigned n = sizeof...(P), expected[] = {sizeof(P)..., 0};
  Call<P...> made = {f, list};
  error[0] = 0;
  for (unsigned i = 0; i < n && given == n && !error[0]; i++)
    if (sizes[i] != expected[i])
      sprintf(error, "argument %u is %u bytes long, expected %u",
              i, sizes[i], expected[i]);
  if (given != n) sprintf(error, "%u arguments, expected %u", given, n);
  if (error[0]) return error;
  call = &made;
  body = Call<P...>::body;
  return run(shape, order);
}

#line 1034 "chapters/gradients/cuda.md"
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
float min(float a, float b) { return fminf(a, b); }
float max(float a, float b) { return fmaxf(a, b); }
double min(double a, double b) { return fmin(a, b); }
double max(double a, double b) { return fmax(a, b); }
template <class T> T __ldg(const T *p) { return *p; }
float abs(float x) { return fabsf(x); }
double abs(double x) { return fabs(x); }
float rsqrtf(float x) { return 1 / sqrtf(x); }
float __expf(float x) { return expf(x); }
float __logf(float x) { return logf(x); }
float __fdividef(float x, float y) { return x / y; }
int __popc(unsigned x) { return __builtin_popcount(x); }
int __clz(int x) { return x ? __builtin_clz(x) : 32; }
int __ffs(int x) { return __builtin_ffs(x); }
unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
void __threadfence() {}
float2 make_float2(float x, float y) { return {x, y}; }
float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

#line 1061 "chapters/gradients/cuda.md"
template <class To, class From> To same_bits(From x) {
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
int __float_as_int(float x) { return same_bits<int>(x); }
unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
float __int_as_float(int x) { return same_bits<float>(x); }
float __uint_as_float(unsigned x) { return same_bits<float>(x); }

#line 1075 "chapters/gradients/cuda.md"
struct Emulator::Atomic {  /* no access moves in or out of its life */
  Atomic() { emulator.atomic = true; __asm__ volatile("" ::: "memory"); }
  ~Atomic() { __asm__ volatile("" ::: "memory"); emulator.atomic = false; }
};
#define ATOMIC(NAME, NEW) \
  template <class T, class V> T NAME(T *p, V value) { \
    Emulator::Atomic here; \
    T old = *p, v = value; \
    *p = NEW; \
    return old; \
  }
ATOMIC(atomicAdd, old + v)
ATOMIC(atomicSub, old - v)
ATOMIC(atomicMax, old < v ? v : old)
ATOMIC(atomicMin, v < old ? v : old)
ATOMIC(atomicExch, v)
ATOMIC(atomicOr, old | v)
ATOMIC(atomicAnd, old & v)

template <class T> T atomicCAS(T *p, T expected, T value) {
  Emulator::Atomic here;
  T old = *p;
  if (old == expected) *p = value;
  return old;
}

#line 1105 "chapters/gradients/cuda.md"
uint16_t half_bits(float x) {
  uint32_t u = same_bits<uint32_t>(x), sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7fff;   /* not a number */
  if (u >= 0x477ff000) return sign | 0x7c00;  /* too large */
  if (u < 0x38800000)                         /* subnormal */
    return sign | (same_bits<uint32_t>(fabsf(x) + 0.5f) - 0x3f000000);
  return sign | (u + 0xfff + (u >> 13 & 1) - 0x38000000) >> 13;
}

float half_value(uint16_t h) {
  uint32_t sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
  float x = same_bits<float>(rest + 0x38000000);
  if (rest >= 0x0f800000) x = same_bits<float>(rest + 0x70000000);
  if (rest < 0x00800000) x = rest * 0x1p-37f;
  return same_bits<float>(same_bits<uint32_t>(x) | sign);
}

uint16_t bfloat_bits(float x) {
  uint32_t u = same_bits<uint32_t>(x);
  return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

float bfloat_value(uint16_t b) { return same_bits<float>(b << 16); }

#line 1134 "chapters/gradients/cuda.md"
#define SHORT_FLOAT(NAME, KIND) \
  struct NAME { \
    uint16_t bits; \
    NAME() = default; \
    NAME(float x) : bits(KIND##_bits(x)) {} \
    operator float() const { return KIND##_value(bits); } \
  };
SHORT_FLOAT(__half, half)
SHORT_FLOAT(__nv_bfloat16, bfloat)
typedef __half half;
__half __float2half(float x) { return x; }
float __half2float(__half x) { return x; }
__nv_bfloat16 __float2bfloat16(float x) { return x; }
float __bfloat162float(__nv_bfloat16 x) { return x; }

#line 1177 "chapters/gradients/cuda.md"
namespace nvcuda {
namespace wmma {
enum layout_t { mem_row_major, mem_col_major };
struct row_major { enum { by_rows = true }; };
struct col_major { enum { by_rows = false }; };
struct matrix_a { enum { wide = true, tall = false }; };
struct matrix_b { enum { wide = false, tall = true }; };
struct accumulator { enum { wide = false, tall = false }; };
namespace precision { struct tf32 {}; }
template <class T> struct element { typedef T type; };
template <> struct element<precision::tf32> { typedef float type; };
template <class Use, int M, int N, int K, class T, class Layout = row_major>
struct fragment : Layout {
  enum { rows = Use::tall ? K : M, columns = Use::wide ? K : N };
  enum { num_elements = rows * columns };
  typename element<T>::type x[num_elements];
};
template <class F, class V> void fill_fragment(F &f, V value) {
  for (auto &x : f.x) x = value;
}

float __float_to_tf32(float x) {
  uint32_t bits = same_bits<uint32_t>(x) + 0x1000 & ~0x1fffu;
  return x != x ? x : same_bits<float>(bits);
}
}
}

#line 1209 "chapters/gradients/cuda.md"
/* how a fragment lies in a warp no program knows: lane 0 has it all */
bool first_lane() {
  __syncwarp();
  return LANE == 0;
}
#define ACROSS(f) if (first_lane()) \
  for (int i = 0; i < f.rows; i++) for (int j = 0; j < f.columns; j++)

namespace nvcuda::wmma {
template <class F, class P>
void load_matrix_sync(F &f, const P *p, unsigned ld) {
  ACROSS(f) f.x[i * f.columns + j] = p[f.by_rows ? i * ld + j : i + j * ld];
}
template <class F, class P>
void store_matrix_sync(P *p, const F &f, unsigned ld, layout_t layout) {
  bool by_rows = layout == mem_row_major;
  ACROSS(f) p[by_rows ? i * ld + j : i + j * ld] = f.x[i * f.columns + j];
}
template <class D, class A, class B>
void mma_sync(D &d, const A &a, const B &b, const D &c) {
  ACROSS(d) {
    float sum = c.x[i * d.columns + j];
    for (int k = 0; k < a.columns; k++)
      sum += float(a.x[i * a.columns + k]) * float(b.x[k * b.columns + j]);
    d.x[i * d.columns + j] = sum;
  }
}
}

#line 1279 "chapters/gradients/cuda.md"
struct Access {
  uint64_t address, code;
  uint32_t block, thread, barriers, exchanges;
  uint16_t size, writes, shared, atomic;
};
static struct Notes {
  Access *rows;
  uint64_t length, room, arrays;
  char *(*bounds)[2];
} notes;
extern "C" Notes *traced() { return &notes; }

[[noreturn]] UNSEEN void refuse(unsigned size, bool writes,
                                const char *why) {
  snprintf(emulator.error, sizeof emulator.error,
           "block (%u, %u, %u), thread %u %s %u bytes %s", blockIdx.x,
           blockIdx.y, blockIdx.z, emulator.rank(emulator.now),
           writes ? "writes" : "reads", size, why);
  _longjmp(emulator.home, 1);
}

/* an address as an array's number and the distance from its start */
UNSEEN uint64_t locate(char *p, unsigned size, bool writes) {
  for (uint64_t i = 0; i < notes.arrays; i++)
    if (p >= notes.bounds[i][0] && p + size <= notes.bounds[i][1])
      return (i << 40) + (p - notes.bounds[i][0]);
  refuse(size, writes, "outside of its arrays");
}

#line 1312 "chapters/gradients/cuda.md"
UNSEEN void note(char *p, unsigned size, bool writes, void *code,
                 unsigned multiple = 1) {
  char *own = (char *)&emulator, *stack = emulator.stacks;
  /* its own variables, and stacks: on a card they would be registers */
  if (!emulator.now || p >= own && p < own + sizeof emulator) return;
  if (p >= stack && p < stack + (Emulator::THREADS + 1l) * Emulator::STACK)
    return;
  if ((uint64_t)p % multiple)
    refuse(size, writes, "at an address that is no multiple of it");
  if (notes.length == notes.room) {
    notes.room = 2 * notes.room + 4096;
    notes.rows = (Access *)realloc(notes.rows, notes.room * sizeof(Access));
  }
  bool shared = p >= shared_begin && p < shared_end;
  uint64_t place = shared ? p - shared_begin : locate(p, size, writes);
  uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x;
  notes.rows[notes.length++] = {
    place, (uint64_t)code, block + blockIdx.x,
    emulator.rank(emulator.now), emulator.barriers,
    emulator.now->exchanges, (uint16_t)size, writes, shared,
    emulator.atomic};
}

#line 1339 "chapters/gradients/cuda.md"
#define CALLER __builtin_return_address(0)
#define HOOKS(N) \
  extern "C" UNSEEN void __tsan_read##N(char *p) { \
    note(p, N, false, CALLER, N); \
  } \
  extern "C" UNSEEN void __tsan_write##N(char *p) { \
    note(p, N, true, CALLER, N); \
  }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" UNSEEN void __tsan_read_range(char *p, long size) {
  note(p, size, false, CALLER);
}
extern "C" UNSEEN void __tsan_write_range(char *p, long size) {
  note(p, size, true, CALLER);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
