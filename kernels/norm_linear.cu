// norm_linear.cu: what a dense layer behind a LayerNorm of a constant needs beside its products.
// math      as in src/ops/norm_linear.rs.   fold: folded = weight gamma, offset = bias + weight beta: y = n folded^T + offset
//           unfold, with G = dy^T n, s = sum_R(dy):  dweight = G gamma + s beta^T;  dgamma = sum_N(weight G);  dbeta = weight^T s
// shapes    weight, G, dweight [N,K] f32   gamma, beta [K] f32   bias, offset, s [N] f32   folded [N,K] T
//           partial [P,2,K] f32, summed by column_sum (column_sum.cu) into dgamma and dbeta
// launch    fold: grid N, block 256.   unfold: grid (ceil(K/32), P), block (32,8).   dynamic shared 0
// requires  no divisibility or alignment.   accumulate 1: dweight += , 0: dweight =
// numerics  in f32, sums in a fixed order
// aliasing  dweight may be G if accumulate is 0
#include "dev.cuh"

namespace {
template <class T>
DEV void fold(const float *weight, const float *gamma, const float *beta, const float *bias, T *folded, float *offset, int K) {
    DEV_SHARED(float, sums_s, [32]);
    const size_t n = blockIdx.x;
    float sum = 0.f;
    for (int k = int(threadIdx.x); k < K; k += int(blockDim.x)) {
        const float w = weight[n * size_t(K) + size_t(k)];
        sum += w * beta[k];
        dev::store(folded + n * size_t(K) + size_t(k), w * gamma[k]);
    }
    sum = dev::block_sum(sum, sums_s);
    if (threadIdx.x == 0) offset[n] = bias[n] + sum;
}
}  // namespace

#define NORM_LINEAR(NAME, T)                                                                                               \
    DEV_KERNEL(norm_linear_fold_##NAME, 256, 0, const float *weight, const float *gamma, const float *beta,                \
               const float *bias, T *folded, float *offset, int K) {                                                       \
        fold(weight, gamma, beta, bias, folded, offset, K);                                                                \
    }
NORM_LINEAR(f32, float)
NORM_LINEAR(f16, dev::f16)
NORM_LINEAR(bf16, dev::bf16)

DEV_KERNEL(norm_linear_unfold, 256, 0, const float *weight, const float *gamma, const float *beta, const float *G, const float *s,
           float *dweight, float *partial, int N, int K, int accumulate) {
    DEV_SHARED(float, dgamma_s, [8][32]);
    DEV_SHARED(float, dbeta_s, [8][32]);
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), k = int(blockIdx.x) * 32 + tx;
    const int rows = (N + int(gridDim.y) - 1) / int(gridDim.y), first = int(blockIdx.y) * rows, last = min(N, first + rows);
    float dgamma = 0.f, dbeta = 0.f;
    if (k < K) {
        for (int n = first + ty; n < last; n += 8) {
            const size_t at = size_t(n) * size_t(K) + size_t(k);
            const float w = weight[at], g = G[at];
            dgamma += w * g;
            dbeta += w * s[n];
            dweight[at] = (accumulate ? dweight[at] : 0.f) + (g * gamma[k] + s[n] * beta[k]);
        }
    }
    dgamma_s[ty][tx] = dgamma;
    dbeta_s[ty][tx] = dbeta;
    __syncthreads();
    if (ty == 0 && k < K) {
        for (int i = 1; i < 8; i++) {
            dgamma += dgamma_s[i][tx];
            dbeta += dbeta_s[i][tx];
        }
        float *out = partial + size_t(blockIdx.y) * 2 * size_t(K);
        out[k] = dgamma;
        out[K + k] = dbeta;
    }
}
