// layer_norm.cu: bias, dropout, residual and LayerNorm over the last axis in one pass.
// math      z = residual + drop(x + bias);  n = (z - mean) * rstd;  y = n * w + b;  rstd = 1/sqrt(var(z) + eps)
//           g = dy * w;  dz = dsum + rstd * (g - mean(g) - n * mean(g * n));  dx = drop(dz)
//           dw = sum_N(dy * n);  db = sum_N(dy)
// shapes    x,y,dx,dy [N,C] T   z,residual,dz,dsum [N,C] R   bias,w,b,dw,db [C] f32   mean,rstd [N] f32   partial [P,2,C] f32
// launch    fwd: grid N; bwd: grid P, any 1 <= P <= N (a few for every multiprocessor); block ceil(C/8) rounded up to 32.
//           partial_sum (column_sum.cu) makes dw and db of bwd's partial sums.   dynamic shared 0
// requires  1 <= C <= 2048; no divisibility or alignment (tail inside).  Null means absent: x, bias, residual, z, dsum,
//           dx, partial
// numerics  sums in f32, two-pass variance, statistics of z as it is stored, no atomics => deterministic
// aliasing  z may be residual, dz may be dsum; nothing else overlaps
#include "dev.cuh"

namespace {
using dev::Dropout;

template <class T, class R>
DEV void forward(const T *x, const float *bias, const R *residual, const float *w, const float *b, R *z, T *y, float *mean,
                 float *rstd, int C, float eps, const Dropout &dropout) {
    DEV_SHARED(float, sums_s, [32]);
    const int c = int(threadIdx.x) * 8, count = max(0, min(8, C - c));
    const size_t row = blockIdx.x, at = row * size_t(C) + size_t(c);
    float v[8] = {}, r[8];
    if (count > 0) {
        if (x) dev::load8(x + at, count, v);
        if (bias) {
            dev::load8(bias + c, count, r);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] += r[i];
        }
        dev::drop8(dropout, at, v);
        if (residual) {
            dev::load8(residual + at, count, r);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] += r[i];
        }
        if (z) {  // normalise what is stored: backward reads it
            dev::store8(z + at, count, v);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = dev::rounded(v[i], z);
        }
    }
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += i < count ? v[i] : 0.f;
    const float mu = dev::block_sum(sum, sums_s) / float(C);
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += i < count ? (v[i] - mu) * (v[i] - mu) : 0.f;
    const float rs = 1.f / sqrtf(dev::block_sum(squares, sums_s) / float(C) + eps);
    if (count > 0) {
        float wv[8], bv[8];
        dev::load8(w + c, count, wv);
        dev::load8(b + c, count, bv);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = (v[i] - mu) * rs * wv[i] + bv[i];
        dev::store8(y + at, count, v);
    }
    if (threadIdx.x == 0) {
        mean[row] = mu;
        rstd[row] = rs;
    }
}

// A block takes every P-th row, and adds up dw and db of its rows on the way.
template <class T, class R>
DEV void backward(const T *dy, const R *z, const float *mean, const float *rstd, const float *w, const R *dsum, R *dz, T *dx,
                  float *partial, int N, int C, const Dropout &dropout) {
    DEV_SHARED(float, sums_s, [64]);
    const int c = int(threadIdx.x) * 8, count = max(0, min(8, C - c));
    float wv[8] = {}, dw[8] = {}, db[8] = {};
    if (count > 0) dev::load8(w + c, count, wv);
    for (size_t row = blockIdx.x; row < size_t(N); row += gridDim.x) {
        const size_t at = row * size_t(C) + size_t(c);
        const float mu = mean[row], rs = rstd[row];
        float n[8] = {}, g[8] = {};
        float sum_g = 0.f, sum_gn = 0.f;
        if (count > 0) {
            dev::load8(z + at, count, n);
            dev::load8(dy + at, count, g);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {  // beyond count: g = 0, so nothing is added
            n[i] = i < count ? (n[i] - mu) * rs : 0.f;
            dw[i] += g[i] * n[i];
            db[i] += g[i];
            g[i] *= wv[i];
            sum_g += g[i];
            sum_gn += g[i] * n[i];
        }
        dev::block_sum2(sum_g, sum_gn, sums_s);
        const float mean_g = sum_g / float(C), mean_gn = sum_gn / float(C);
        if (count > 0) {
            float d[8] = {};
            if (dsum) dev::load8(dsum + at, count, d);
#pragma unroll
            for (int i = 0; i < 8; i++) d[i] += rs * (g[i] - mean_g - n[i] * mean_gn);
            dev::store8(dz + at, count, d);
            if (dx) {
                dev::drop8(dropout, at, d);
                dev::store8(dx + at, count, d);
            }
        }
    }
    if (partial && count > 0) {
        float *out = partial + size_t(blockIdx.x) * 2 * size_t(C) + c;
        dev::store8(out, count, dw);
        dev::store8(out + C, count, db);
    }
}
}  // namespace

#define LAYER_NORM(NAME, T, R)                                                                                              \
    DEV_KERNEL(layer_norm_fwd_##NAME, 256, 0, const T *x, const float *bias, const R *residual, const float *w,            \
               const float *b, R *z, T *y, float *mean, float *rstd, int C, float eps, uint64_t seed, uint32_t site,        \
               uint32_t step, uint32_t threshold, float scale) {                                                            \
        forward(x, bias, residual, w, b, z, y, mean, rstd, C, eps, Dropout{seed, site, step, threshold, scale});            \
    }                                                                                                                       \
    DEV_KERNEL(layer_norm_bwd_##NAME, 256, 0, const T *dy, const R *z, const float *mean, const float *rstd,               \
               const float *w, const R *dsum, R *dz, T *dx, float *partial, int N, int C, uint64_t seed, uint32_t site,     \
               uint32_t step, uint32_t threshold, float scale) {                                                            \
        backward(dy, z, mean, rstd, w, dsum, dz, dx, partial, N, C, Dropout{seed, site, step, threshold, scale});           \
    }
LAYER_NORM(f32, float, float)
LAYER_NORM(f16, dev::f16, dev::f16)
LAYER_NORM(bf16, dev::bf16, dev::bf16)
LAYER_NORM(f16_f32, dev::f16, float)    // 16-bit branch, f32 residual stream
LAYER_NORM(bf16_f32, dev::bf16, float)
