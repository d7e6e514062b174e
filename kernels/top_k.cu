// top_k.cu: the largest logits of each row: what decoding asks of the vocabulary.
// math      norm = log sum_V e^x;   the K largest x of a row, ties to the lower index, a NaN before everything
// shapes    x [R,V] T   values [R,K] f32 (x itself)   indices [R,K] i32   norm [R] f32
// launch    grid R, block 32 .. 1024, whole warps, dynamic shared 0
// requires  1 <= K <= V; no divisibility or alignment
// numerics  norm in f32, in a fixed order; NaN and +inf propagate
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
// log sum e^x of a row, in every thread.
template <class T> DEV float log_sum_exp(const T *row, int V, float *shared_s) {
    float top = -dev::infinity(), sum = 0.f;
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) {
        const float x = dev::load(row + i);
        top = x > top || x != x ? x : top;
    }
    top = dev::block_max(top, shared_s);
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) sum += expf(dev::load(row + i) - top);
    return top + logf(dev::block_sum(sum, shared_s));
}

// A number that orders (x, index): larger x first, then the lower index; 0 comes last, all ones stand before every x.
DEV uint64_t rank_of(float x, int index) {
    const uint32_t bits = __float_as_uint(x + 0.f);  // -0 becomes 0
    const uint32_t order = x != x ? 0xfffffffeu : bits >> 31 ? ~bits : bits | 0x80000000u;
    return uint64_t(order) << 32 | uint32_t(~index);
}
DEV uint64_t block_max(uint64_t v, uint64_t *maxima_s) {
    for (int o = 16; o > 0; o >>= 1) {
        const uint64_t other = __shfl_xor_sync(0xffffffffu, v, o);
        v = v > other ? v : other;
    }
    __syncthreads();  // the previous use of maxima_s is over
    if ((threadIdx.x & 31) == 0) maxima_s[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t best = maxima_s[0];
    for (int i = 1; i < int(blockDim.x) / 32; i++) best = best > maxima_s[i] ? best : maxima_s[i];
    return best;
}

template <class T> DEV void top_k(const T *x, float *values, int *indices, float *norm, int V, int K) {
    DEV_SHARED(uint64_t, maxima_s, [32]);
    DEV_SHARED(float, shared_s, [32]);
    const size_t r = blockIdx.x;
    const T *row = x + r * size_t(V);
    const float n = log_sum_exp(row, V, shared_s);
    if (threadIdx.x == 0) norm[r] = n;
    uint64_t bound = ~uint64_t(0), best = bound;
    for (int k = 0; k < K; k++) {  // the largest below the one before
        if (best >= bound) {       // this thread's was taken
            best = 0;
#pragma unroll 4
            for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) {
                const uint64_t rank = rank_of(dev::load(row + i), i);
                if (rank < bound && rank > best) best = rank;
            }
        }
        bound = block_max(best, maxima_s);
        if (threadIdx.x == 0) {
            const int index = int(~uint32_t(bound));
            indices[r * size_t(K) + size_t(k)] = index;
            values[r * size_t(K) + size_t(k)] = dev::load(row + index);
        }
    }
}
}  // namespace

#define TOP_K(NAME, T)                                                                                                     \
    DEV_KERNEL(top_k_##NAME, 1024, 0, const T *x, float *values, int *indices, float *norm, int V, int K) {                \
        top_k(x, values, indices, norm, V, K);                                                                             \
    }
TOP_K(f32, float)
TOP_K(f16, dev::f16)
TOP_K(bf16, dev::bf16)
