// l2_normalize.cu: rows of length one.
// math      y = x / s,  s = max(|x|, 1e-12);   dx = (dy - y (dy . y)) / s;  where |x| < 1e-12: dy / 1e-12
// shapes    x,y,dx,dy [N,C] T   length [N] f32: |x|
// launch    fwd, bwd: grid N, block ceil(C/8) rounded up to 32, dynamic shared 0
// requires  1 <= C <= 8192; no divisibility or alignment
// numerics  in f32, sums in a fixed order; y for the backward as it is stored
// aliasing  y may be x, dx may be dy
#include "dev.cuh"

namespace {
constexpr float EPS = 1e-12f;
DEV float at_least(float s) { return s < EPS ? EPS : s; }  // a NaN stays one

template <class T> DEV void forward(const T *x, T *y, float *length, int C) {
    DEV_SHARED(float, sums_s, [32]);
    const int c = int(threadIdx.x) * 8, count = max(0, min(8, C - c));
    const size_t at = size_t(blockIdx.x) * size_t(C) + size_t(c);
    float v[8] = {}, squares = 0.f;
    if (count > 0) dev::load8(x + at, count, v);
#pragma unroll
    for (int i = 0; i < 8; i++) squares += v[i] * v[i];
    const float norm = sqrtf(dev::block_sum(squares, sums_s)), s = at_least(norm);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] /= s;
    if (count > 0) dev::store8(y + at, count, v);
    if (threadIdx.x == 0) length[blockIdx.x] = norm;
}
template <class T> DEV void backward(const T *dy, const T *y, const float *length, T *dx, int C) {
    DEV_SHARED(float, sums_s, [32]);
    const int c = int(threadIdx.x) * 8, count = max(0, min(8, C - c));
    const size_t at = size_t(blockIdx.x) * size_t(C) + size_t(c);
    const float norm = length[blockIdx.x], s = at_least(norm);
    float d[8] = {}, v[8] = {}, sum = 0.f;
    if (count > 0) {
        dev::load8(dy + at, count, d);
        dev::load8(y + at, count, v);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sum += d[i] * v[i];
    sum = dev::block_sum(sum, sums_s);
    const float along = norm < EPS ? 0.f : sum;
#pragma unroll
    for (int i = 0; i < 8; i++) d[i] = (d[i] - v[i] * along) / s;
    if (count > 0) dev::store8(dx + at, count, d);
}
}  // namespace

#define L2_NORMALIZE(NAME, T)                                                                                              \
    DEV_KERNEL(l2_normalize_fwd_##NAME, 1024, 0, const T *x, T *y, float *length, int C) { forward(x, y, length, C); }     \
    DEV_KERNEL(l2_normalize_bwd_##NAME, 1024, 0, const T *dy, const T *y, const float *length, T *dx, int C) {             \
        backward(dy, y, length, dx, C);                                                                                    \
    }
L2_NORMALIZE(f32, float)
L2_NORMALIZE(f16, dev::f16)
L2_NORMALIZE(bf16, dev::bf16)
