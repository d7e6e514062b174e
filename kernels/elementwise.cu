// elementwise.cu: what works on one element at a time and needs no neighbour.
// math      add: y = a + b.   scale: y = c x.   dropout: y = drop(x) (element numbers: positions in x).   cast: y = x
//           divide (by a learned temperature t): y = x / t;  dx = dy / t;  dt = -sum(dy y) / t
// shapes    all [n]   t, dt [1] f32   partial [P] f32
// launch    grid ceil(n/2048), block 256; P = that grid.   divide_bwd_t: grid 1, block 256, after divide_bwd.   dynamic shared 0
// requires  n >= 1; no divisibility or alignment.   accumulate 1: dt += , 0: dt =
// numerics  in f32; the sum of dt in a fixed order
// aliasing  outputs may be any of the inputs of the same type, except y of divide_bwd
#include "dev.cuh"

namespace {
// This thread's 8 elements: f(first, count).
template <class F> DEV void each_piece(uint64_t n, F f) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at < n) f(at, n - at < 8 ? int(n - at) : 8);
}
// y = f(x), or f(x, z)
template <class X, class Y, class F> DEV void map(const X *x, Y *y, uint64_t n, F f) {
    each_piece(n, [&](uint64_t at, int count) {
        float v[8];
        dev::load8(x + at, count, v);
        f(at, v);
        dev::store8(y + at, count, v);
    });
}
template <class T> DEV void add(const T *a, const T *b, T *y, uint64_t n) {
    each_piece(n, [&](uint64_t at, int count) {
        float v[8], w[8];
        dev::load8(a + at, count, v);
        dev::load8(b + at, count, w);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += w[i];
        dev::store8(y + at, count, v);
    });
}
template <class T> DEV void scale(const T *x, T *y, uint64_t n, float c) {
    map(x, y, n, [&](uint64_t, float (&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= c;
    });
}
template <class T> DEV void divide(const T *x, const float *t, T *y, uint64_t n) {
    const float by = *t;
    map(x, y, n, [&](uint64_t, float (&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] /= by;
    });
}
template <class T> DEV void divide_backward(const T *dy, const T *y, const float *t, T *dx, float *partial, uint64_t n) {
    DEV_SHARED(float, sums_s, [32]);
    const float by = *t;
    float sum = 0.f;
    each_piece(n, [&](uint64_t at, int count) {
        float d[8], v[8];
        dev::load8(dy + at, count, d);
        dev::load8(y + at, count, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sum += i < count ? d[i] * v[i] : 0.f;
            d[i] /= by;
        }
        dev::store8(dx + at, count, d);
    });
    sum = dev::block_sum(sum, sums_s);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
}  // namespace

#define ELEMENTWISE(NAME, T)                                                                                               \
    DEV_KERNEL(add_fwd_##NAME, 256, 0, const T *a, const T *b, T *y, uint64_t n) { add(a, b, y, n); }                      \
    DEV_KERNEL(scale_fwd_##NAME, 256, 0, const T *x, T *y, uint64_t n, float c) { scale(x, y, n, c); }                     \
    DEV_KERNEL(dropout_fwd_##NAME, 256, 0, const T *x, T *y, uint64_t n, uint64_t seed, uint32_t site, uint32_t step,      \
               uint32_t threshold, float drop_scale) {                                                                     \
        const dev::Dropout drop{seed, site, step, threshold, drop_scale};                                                  \
        map(x, y, n, [&](uint64_t at, float (&v)[8]) { dev::drop8(drop, at, v); });                                        \
    }                                                                                                                      \
    DEV_KERNEL(divide_fwd_##NAME, 256, 0, const T *x, const float *t, T *y, uint64_t n) { divide(x, t, y, n); }            \
    DEV_KERNEL(divide_bwd_##NAME, 256, 0, const T *dy, const T *y, const float *t, T *dx, float *partial, uint64_t n) {    \
        divide_backward(dy, y, t, dx, partial, n);                                                                         \
    }
ELEMENTWISE(f32, float)
ELEMENTWISE(f16, dev::f16)
ELEMENTWISE(bf16, dev::bf16)

#define CAST(NAME, X, Y) \
    DEV_KERNEL(cast_##NAME, 256, 0, const X *x, Y *y, uint64_t n) { map(x, y, n, [](uint64_t, float(&)[8]) {}); }
CAST(f32_f16, float, dev::f16)
CAST(f32_bf16, float, dev::bf16)
CAST(f16_f32, dev::f16, float)
CAST(bf16_f32, dev::bf16, float)

DEV_KERNEL(divide_bwd_t, 256, 0, const float *partial, const float *t, float *dt, int P, int accumulate) {
    DEV_SHARED(float, sums_s, [32]);
    float sum = 0.f;
    for (int i = int(threadIdx.x); i < P; i += 256) sum += partial[i];
    sum = dev::block_sum(sum, sums_s);
    if (threadIdx.x == 0) *dt = (accumulate ? *dt : 0.f) - sum / *t;
}
