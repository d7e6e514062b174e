// gelu.cu: bias and exact GELU.
// math      u = x + bias;  y = u F(u),  F(u) = (1 + erf(u / sqrt 2)) / 2;   dx = dy (F(u) + u f(u)),  f(u) = e^(-u^2/2) / sqrt(2 pi)
// shapes    x,y,dx,dy [N,C] T   bias [C] f32 or null.   The gradient of bias is the column sum of dx
// launch    fwd, bwd: grid ceil(N * ceil(C/8) / 256), block 256, dynamic shared 0
// requires  N, C >= 1; no divisibility or alignment
// numerics  in f32
// aliasing  y may be x; dx may be dy
#include "dev.cuh"

namespace {
constexpr float SQRT_HALF = 0.70710678118654752f, INV_SQRT_2_PI = 0.39894228040143268f;

DEV float cdf(float u) { return 0.5f * (1.f + erff(u * SQRT_HALF)); }

// This thread's 8 columns of a row: f(element, column, count).
template <class F> DEV void each_piece(int N, int C, F f) {
    const int pieces = (C + 7) / 8;
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x, row = i / size_t(pieces);
    const int c = int(i % size_t(pieces)) * 8;
    if (row < size_t(N)) f(row * size_t(C) + size_t(c), c, min(8, C - c));
}
template <class T> DEV void load_biased(const T *x, const float *bias, size_t at, int c, int count, float (&v)[8]) {
    float b[8] = {};
    dev::load8(x + at, count, v);
    if (bias) dev::load8(bias + c, count, b);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += b[i];
}

template <class T> DEV void forward(const T *x, const float *bias, T *y, int N, int C) {
    each_piece(N, C, [&](size_t at, int c, int count) {
        float v[8];
        load_biased(x, bias, at, c, count, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= cdf(v[i]);
        dev::store8(y + at, count, v);
    });
}
template <class T> DEV void backward(const T *x, const float *bias, const T *dy, T *dx, int N, int C) {
    each_piece(N, C, [&](size_t at, int c, int count) {
        float v[8], d[8];
        load_biased(x, bias, at, c, count, v);
        dev::load8(dy + at, count, d);
#pragma unroll
        for (int i = 0; i < 8; i++) d[i] *= cdf(v[i]) + v[i] * (INV_SQRT_2_PI * expf(-0.5f * v[i] * v[i]));
        dev::store8(dx + at, count, d);
    });
}
}  // namespace

#define GELU(NAME, T)                                                                                                     \
    DEV_KERNEL(gelu_fwd_##NAME, 256, 0, const T *x, const float *bias, T *y, int N, int C) { forward(x, bias, y, N, C); } \
    DEV_KERNEL(gelu_bwd_##NAME, 256, 0, const T *x, const float *bias, const T *dy, T *dx, int N, int C) {                \
        backward(x, bias, dy, dx, N, C);                                                                                  \
    }
GELU(f32, float)
GELU(f16, dev::f16)
GELU(bf16, dev::bf16)
