// gelu.cu: exact GELU.
// math      y = x F(x),  F(x) = (1 + erf(x / sqrt 2)) / 2;   dx = dy (F(x) + x f(x)),  f(x) = e^(-x^2/2) / sqrt(2 pi)
// shapes    x,y,dx,dy [n] T
//           bwd_sum: x,dy,dx [N,C] T, db [C] f32: the sums of dx's rows, as they are stored; add 1: +=. The gradient of a bias
//           that x has had; partial and counters as in column_sum.cu
// launch    fwd, bwd: grid ceil(n/4096), block 256, dynamic shared 0;   bwd_sum: as column_sum.cuh says
// requires  n >= 1; no divisibility or alignment
// numerics  in f32.  f32 storage: erff.  16-bit storage: F(-a) = 2^P(a) for a = |x|, P of degree 7: the polynomial of least
//           largest error for log2 F(-a) on [0,6], 4.7e-6, so F(-a) is off by a factor 1 +- 3.3e-6. Its evaluation rounds
//           numbers up to 30 (a = 6) and to 1 (a = 0): at most 1e-5 in all, a 24th of what rounding y to f16 may cost (2^-12),
//           a 190th for bf16. F(a) = 1 - F(-a) is off by no more than 1.7e-6. Beyond 6, where F(-a) < 1e-9, P falls faster
//           than log2 F(-a) does. -inf gives NaN (-inf * 0) with either
// aliasing  y may be x; dx may be dy
#include "column_sum.cuh"

namespace {
constexpr float SQRT_HALF = 0.70710678118654752f, INV_SQRT_2_PI = 0.39894228040143268f;

DEV float cdf(float x, const float *) { return 0.5f * (1.f + erff(x * SQRT_HALF)); }
template <class T> DEV float cdf(float x, const T *) {
    const float a = fabsf(x);
    float p = fmaf(-1.834816801e-6f, a, 6.159836307e-5f);
    p = fmaf(p, a, -9.305248977e-4f);
    p = fmaf(p, a, 8.507887864e-3f);
    p = fmaf(p, a, -5.396005154e-2f);
    p = fmaf(p, a, -4.584644310e-1f);
    p = fmaf(p, a, -1.151251016f);
    p = fmaf(p, a, -9.999952966e-1f);
    const float below = dev::fast_exp2(p);
    return x < 0.f ? below : 1.f - below;
}
DEV float density(float x, const float *) { return INV_SQRT_2_PI * expf(-0.5f * x * x); }
template <class T> DEV float density(float x, const T *) { return INV_SQRT_2_PI * dev::fast_exp2(x * x * (-0.5f * dev::LOG2_E)); }

// A thread has 16 elements in pieces of 16 bytes, which lie 256 pieces apart. All are fetched before the first is used.
// y = f(x, z); z may be x.
template <class T, class F> DEV void map(const T *x, const T *z, T *y, uint64_t n, F f) {
    constexpr int N = 16 / int(sizeof(T)), PIECES = 16 / N;
    const uint64_t first = uint64_t(blockIdx.x) * 4096 + threadIdx.x * N;
    float a[N], b[N];
    if (uint64_t(blockIdx.x) * 4096 + 4096 <= n && dev::aligned16(x) && dev::aligned16(z) && dev::aligned16(y)) {
        dev::Raw<T, N> raw_a[PIECES], raw_b[PIECES];
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            raw_a[p] = dev::fetch<T, N>(x + first + p * 256 * N);
            raw_b[p] = dev::fetch<T, N>(z + first + p * 256 * N);
        }
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            dev::widen(raw_a[p], a);
            dev::widen(raw_b[p], b);
#pragma unroll
            for (int i = 0; i < N; i++) a[i] = f(a[i], b[i]);
            dev::put(y + first + p * 256 * N, a);
        }
        return;
    }
#pragma unroll 1
    for (int p = 0; p < PIECES; p++) {
        const uint64_t at = first + uint64_t(p) * 256 * N;
        const int count = at >= n ? 0 : n - at < N ? int(n - at) : N;
        dev::load_some(x + at, count, a);
        dev::load_some(z + at, count, b);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = f(a[i], b[i]);
        dev::store_some(y + at, count, a);
    }
}
template <class T> DEV float derivative(float x, const T *type) { return cdf(x, type) + x * density(x, type); }

// A thread has 8 columns of every 8th row of its block's share; rows are fetched AHEAD at once.
template <class T>
DEV void backward_sum(const T *x, const T *dy, T *dx, float *db, float *partial, uint32_t *counters, int N, int C, bool add) {
    constexpr int AHEAD = 4;
    const column_sum::Share at(N, C);
    const bool whole = at.count == 8 && C * int(sizeof(T)) % 16 == 0 && dev::aligned16(x) && dev::aligned16(dy) && dev::aligned16(dx);
    float sum[8] = {};
    for (int r = at.first; r < at.last && at.count > 0; r += 8 * AHEAD) {
        if (whole) {
            dev::Raw<T, 8> raw_x[AHEAD], raw_d[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                const size_t from = size_t(min(r + 8 * k, at.last - 1)) * size_t(C) + size_t(at.c);
                raw_x[k] = dev::fetch<T, 8>(x + from);
                raw_d[k] = dev::fetch<T, 8>(dy + from);
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (r + 8 * k >= at.last) break;
                float v[8], d[8];
                dev::widen(raw_x[k], v);
                dev::widen(raw_d[k], d);
#pragma unroll
                for (int i = 0; i < 8; i++) d[i] *= derivative(v[i], x);
                dev::put(dx + size_t(r + 8 * k) * size_t(C) + size_t(at.c), d);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += dev::rounded(d[i], dx);
            }
        } else {
            for (int k = r; k < min(at.last, r + 8 * AHEAD); k += 8) {
                const size_t from = size_t(k) * size_t(C) + size_t(at.c);
                float v[8], d[8];
                dev::load_some(x + from, at.count, v);
                dev::load_some(dy + from, at.count, d);
#pragma unroll
                for (int i = 0; i < 8; i++) d[i] *= derivative(v[i], x);
                dev::store_some(dx + from, at.count, d);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += dev::rounded(d[i], dx);
            }
        }
    }
    column_sum::finish(sum, db, partial, counters, C, add);
}
}  // namespace

#define GELU(NAME, T)                                                                                                      \
    DEV_KERNEL(gelu_fwd_##NAME, 256, 0, const T *x, T *y, uint64_t n) {                                                    \
        map(x, x, y, n, [](float v, float) { return v * cdf(v, static_cast<const T *>(nullptr)); });                       \
    }                                                                                                                      \
    DEV_KERNEL(gelu_bwd_##NAME, 256, 0, const T *x, const T *dy, T *dx, uint64_t n) {                                      \
        map(x, dy, dx, n, [](float v, float d) { return d * derivative(v, static_cast<const T *>(nullptr)); });            \
    }                                                                                                                      \
    DEV_KERNEL(gelu_bwd_sum_##NAME, 256, 0, const T *x, const T *dy, T *dx, float *db, float *partial, uint32_t *counters, \
               int N, int C, int add) {                                                                                    \
        backward_sum(x, dy, dx, db, partial, counters, N, C, add != 0);                                                    \
    }
GELU(f32, float)
GELU(f16, dev::f16)
GELU(bf16, dev::bf16)
