/* Tangled from attention: edit there, `make tangle`. sha256:239938ed7b7c */
#line 1773 "chapters/gradients/attention.md"
#ifndef REAL
#define REAL float
#endif
#ifndef WIDTH
#define WIDTH 64
#endif
/* minus infinity: NVRTC comes without <math.h> */
#define NONE REAL(-1e300 * 1e300)
#define EACH_ROW for (int r = 0; r < 4; r++)
typedef long long i64;
typedef const REAL *Reals;
typedef const bool *Bools;

/* heads of tq queries and tk keys; steps as in kernels/attention.c */
struct Steps { i64 query, key; };
struct Heads {
  i64 heads, tq, tk, d, q, k, v;
  Steps mask, kept;
  i64 axes;
  struct { i64 n, q, k, v, mask, kept; } axis[8];
  i64 causal;
  double scale, keep;
};

/* what a warp has for its rows: four of the block's 32 */
struct Rows { REAL of[4][(WIDTH + 31) / 32]; };

#line 1804 "chapters/gradients/attention.md"
__device__ REAL sum_warp(REAL x) {
  for (int by = 16; by; by /= 2) x += __shfl_xor_sync(~0u, x, by);
  return x;
}
__device__ REAL max_warp(REAL x) {
  for (int by = 16; by; by /= 2) {
    REAL other = __shfl_xor_sync(~0u, x, by);
    x = other > x ? other : x;
  }
  return x;
}

#line 1820 "chapters/gradients/attention.md"
/* s[r] = row r of x times row `lane` of the 32 at y, by way of `room` */
__device__ void score(REAL *s, const REAL *x, i64 near, i64 rows,
                      const REAL *y, i64 step, i64 there,
                      REAL (*room)[33]) {
  int tx = threadIdx.x, ty = threadIdx.y;
  EACH_ROW s[r] = 0;
  for (int c = 0; c < WIDTH; c += 32) {
    __syncthreads();
    for (int r = ty; r < 32; r += 8)
      room[r][tx] = r < there && c + tx < WIDTH ? y[r * step + c + tx] : 0;
    __syncthreads();
    for (int i = 0; i < 32 && c + i < WIDTH; i++) EACH_ROW {
      i64 row = 4 * ty + r < rows ? 4 * ty + r : 0;
      s[r] += x[row * near + c + i] * room[tx][i];
    }
  }
}

#line 1842 "chapters/gradients/attention.md"
/* to a warp's rows add the rows at y, each as often as its lane says */
__device__ void gather(Rows *sum, const REAL *weight, const REAL *y,
                       i64 step, i64 there) {
  for (int lane = 0; lane < there && lane < 32; lane++) {
    REAL w[4];
    EACH_ROW w[r] = __shfl_sync(~0u, weight[r], lane);
    for (int c = threadIdx.x, i = 0; c < WIDTH; c += 32, i++) {
      REAL value = y[lane * step + c];
      EACH_ROW sum->of[r][i] += w[r] * value;
    }
  }
}

#line 1859 "chapters/gradients/attention.md"
/* go to head blockIdx.x */
__device__ void locate(const Heads &h, Reals &q, Reals &k, Reals &v,
                       Bools &mask, Bools &kept) {
  i64 head = blockIdx.x;
  for (i64 a = h.axes - 1; a >= 0; head /= h.axis[a].n, a--) {
    i64 i = head % h.axis[a].n;
    q += i * h.axis[a].q, k += i * h.axis[a].k, v += i * h.axis[a].v;
    mask += i * h.axis[a].mask, kept += i * h.axis[a].kept;
  }
}

__device__ bool seen(const Heads &h, Bools mask, i64 query, i64 key) {
  return query < h.tq && key < h.tk && !(h.causal && key > query)
         && mask[query * h.mask.query + key * h.mask.key];
}

/* x divided by `keep`, or 0, of a pair that is seen and may be dropped */
__device__ REAL thin(const Heads &h, Bools kept, i64 query, i64 key,
                     bool see, REAL x) {
  return see && kept[query * h.kept.query + key * h.kept.key]
         ? x / REAL(h.keep) : 0;
}

#line 1886 "chapters/gradients/attention.md"
/* what is summed, divided, and the logarithm of the weights' sum */
__device__ void finish(const Heads &h, REAL *y, i64 first, const Rows &sum,
                     const REAL *top, const REAL *total) {
  EACH_ROW {
    if (first + r >= h.tq) return;
    REAL *to = y + (blockIdx.x * h.tq + first + r) * (WIDTH + 1);
    for (int c = threadIdx.x, i = 0; c < WIDTH; c += 32, i++)
      to[c] = total[r] == 0 ? 0 : sum.of[r][i] / total[r];
    if (threadIdx.x == 0) to[WIDTH] = top[r] + log(total[r]);
  }
}

#line 1902 "chapters/gradients/attention.md"
/* y[heads, tq, WIDTH + 1]; grid (heads, tq / 32 rounded up), block (32, 8) */
extern "C" __global__ void attend(Heads h, Reals q, Reals k, Reals v,
                                  Bools mask, Bools kept, REAL *y) {
  __shared__ REAL room[32][33];
  i64 first = blockIdx.y * 32ll, mine = first + 4 * threadIdx.y;
  locate(h, q, k, v, mask, kept);
  q += first * h.q;
  Rows sum = {};
  REAL s[4], top[4], total[4] = {};
  EACH_ROW top[r] = NONE;
  i64 keys = h.causal ? min(h.tk, first + 32) : h.tk;
  for (i64 j = 0; j < keys; j += 32) {
    score(s, q, h.q, h.tq - first, k + j * h.k, h.k, h.tk - j, room);
    i64 key = j + threadIdx.x;
    EACH_ROW {
      bool see = seen(h, mask, mine + r, key);
      s[r] = see ? s[r] * REAL(h.scale) : NONE;
      REAL most = max(top[r], max_warp(s[r]));
      REAL from = most == NONE ? 0 : most, fade = exp(top[r] - from);
      s[r] = exp(s[r] - from), top[r] = most;
      total[r] = total[r] * fade + sum_warp(s[r]);
      s[r] = thin(h, kept, mine + r, key, see, s[r]);
      for (REAL &x : sum.of[r]) x *= fade;
    }
    gather(&sum, s, v + j * h.v, h.v, h.tk - j);
  }
  finish(h, y, mine, sum, top, total);
}

#line 1937 "chapters/gradients/attention.md"
/* out[heads, rows, WIDTH], from `first` on and below `last`: what is
   summed, times a factor */
__device__ void settle(REAL *out, i64 rows, i64 first, i64 last,
                       const Rows &sum, REAL factor) {
  EACH_ROW for (int c = threadIdx.x, i = 0; c < WIDTH; c += 32, i++)
    if (first + r < last)
      out[(blockIdx.x * rows + first + r) * WIDTH + c]
          = factor * sum.of[r][i];
}

/* delta[heads, tq]; grid (heads, tq / 8 rounded up), block (32, 8) */
extern "C" __global__ void deltas(i64 tq, const REAL *dy, const REAL *y,
                                  REAL *delta) {
  i64 i = blockIdx.y * 8ll + threadIdx.y;
  if (i >= tq) return;
  i64 row = blockIdx.x * tq + i;
  y += row * (WIDTH + 1), dy += row * (WIDTH + 1);
  REAL sum = 0;
  for (int c = threadIdx.x; c < WIDTH; c += 32) sum += y[c] * dy[c];
  sum = sum_warp(sum);
  if (threadIdx.x == 0) delta[row] = sum - dy[WIDTH];
}

#line 1964 "chapters/gradients/attention.md"
/* the gradient of q, in out[heads, tq + 2 tk, WIDTH]; grid as attend's */
extern "C" __global__ void attend_queries(
    Heads h, Reals dy, Reals y, Reals delta, Reals q, Reals k, Reals v,
    Bools mask, Bools kept, REAL *out) {
  __shared__ REAL room[32][33];
  i64 first = blockIdx.y * 32ll, mine = first + 4 * threadIdx.y;
  i64 row = blockIdx.x * h.tq + first, step = WIDTH + 1;
  locate(h, q, k, v, mask, kept);
  q += first * h.q, y += row * step, dy += row * step, delta += row;
  Rows sum = {};
  REAL s[4], ds[4];
  i64 keys = h.causal ? min(h.tk, first + 32) : h.tk, left = h.tq - first;
  for (i64 j = 0; j < keys; j += 32) {
    score(s, q, h.q, left, k + j * h.k, h.k, h.tk - j, room);
    score(ds, dy, step, left, v + j * h.v, h.v, h.tk - j, room);
    EACH_ROW {
      i64 i = 4 * threadIdx.y + r, key = j + threadIdx.x;
      bool see = seen(h, mask, first + i, key);
      ds[r] = !see ? 0 : exp(s[r] * REAL(h.scale) - y[i * step + WIDTH])
              * (thin(h, kept, first + i, key, see, ds[r]) - delta[i]);
    }
    gather(&sum, ds, k + j * h.k, h.k, h.tk - j);
  }
  settle(out, h.tq + 2 * h.tk, mine, h.tq, sum, h.scale);
}

#line 1994 "chapters/gradients/attention.md"
/* those of k and v: rows are keys, lanes are queries */
extern "C" __global__ void attend_keys(
    Heads h, Reals dy, Reals y, Reals delta, Reals q, Reals k, Reals v,
    Bools mask, Bools kept, REAL *out) {
  __shared__ REAL room[32][33];
  i64 first = blockIdx.y * 32ll, mine = first + 4 * threadIdx.y;
  i64 row = blockIdx.x * h.tq, step = WIDTH + 1, left = h.tk - first;
  locate(h, q, k, v, mask, kept);
  k += first * h.k, v += first * h.v;
  y += row * step, dy += row * step, delta += row;
  Rows dk = {}, dv = {}; REAL p[4], ds[4];
  for (i64 i = h.causal ? first : 0; i < h.tq; i += 32) {
    score(p, k, h.k, left, q + i * h.q, h.q, h.tq - i, room);
    score(ds, v, h.v, left, dy + i * step, step, h.tq - i, room);
    i64 query = i + threadIdx.x;
    EACH_ROW {
      bool see = seen(h, mask, query, mine + r);
      REAL dp = thin(h, kept, query, mine + r, see, ds[r]);
      p[r] = !see ? 0 : exp(p[r] * REAL(h.scale) - y[query * step + WIDTH]);
      ds[r] = !see ? 0 : p[r] * (dp - delta[query]);
      p[r] = thin(h, kept, query, mine + r, see, p[r]);
    }
    gather(&dv, p, dy + i * step, step, h.tq - i);
    gather(&dk, ds, q + i * h.q, h.q, h.tq - i);
  }
  i64 rows = h.tq + 2 * h.tk, after = h.tq + h.tk;
  settle(out, rows, h.tq + mine, after, dk, h.scale);
  settle(out, rows, after + mine, rows, dv, 1);
}
