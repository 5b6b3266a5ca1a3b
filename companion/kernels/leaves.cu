/* Tangled from gpu: edit there, `make tangle`. sha256:7c09f7fa7068 */
#line 993 "chapters/gradients/gpu.md"
typedef unsigned long long u64;

extern "C" __global__ void iota(long long n, long long *out)
{
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    for (; i < n; i += (long long)gridDim.x * blockDim.x)
        out[i] = i;
}

__device__ inline void mix(unsigned &x, unsigned &y, int r)
{
    x += y;
    y = x ^ (y << r | y >> (32 - r));
}

#line 1012 "chapters/gradients/gpu.md"
// Threefry-2x32, 20 rounds: two numbers in [0, 1) from one counter.
extern "C" __global__ void uniform(long long n, float *out, const u64 *key)
{
    const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    unsigned k[3] = {(unsigned)key[0], (unsigned)(key[0] >> 32)};
    k[2] = k[0] ^ k[1] ^ 0x1BD11BDA;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    for (; 2 * i < n; i += (long long)gridDim.x * blockDim.x) {
        u64 count = key[1] + i;
        unsigned x = (unsigned)count + k[0];
        unsigned y = (unsigned)(count >> 32) + k[1];
        for (int block = 0; block < 5; block++) {
            for (int r = 0; r < 4; r++)
                mix(x, y, turns[block % 2][r]);
            x += k[(block + 1) % 3];
            y += k[(block + 2) % 3] + block + 1;
        }
        out[2 * i] = (x >> 8) * 0x1p-24f;
        if (2 * i + 1 < n)
            out[2 * i + 1] = (y >> 8) * 0x1p-24f;
    }
}
