// gelu_tanh.cu: GELU in its tanh form.
// math      y = x s,  s = 1 / (1 + e^(-2u)),  u = sqrt(2/pi) (x + 0.044715 x^3)
//           dx = dy (s + 2 x s (1 - s) u'),  u' = sqrt(2/pi) (1 + 0.134145 x^2)
// shapes    x,y,dx,dy [n] T
// launch    fwd, bwd: grid ceil(n/2048), block 256, dynamic shared 0
// requires  n >= 1; no divisibility or alignment
// numerics  in f32
// aliasing  y may be x; dx may be dy
#include "dev.cuh"

namespace {
constexpr float ROOT = 0.79788456080286536f;
DEV float share(float x) { return 1.f / (1.f + expf(-2.f * ROOT * (x + 0.044715f * x * x * x))); }

// out = f(x, z), eight elements a thread
template <class T, class F> DEV void map(const T *x, const T *z, T *out, uint64_t n, F f) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    const int count = n - at < 8 ? int(n - at) : 8;
    float a[8], b[8];
    dev::load8(x + at, count, a);
    dev::load8(z + at, count, b);
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] = f(a[i], b[i]);
    dev::store8(out + at, count, a);
}
}  // namespace

#define GELU_TANH(NAME, T)                                                                                        \
    DEV_KERNEL(gelu_tanh_fwd_##NAME, 256, 0, const T *x, T *y, uint64_t n) {                                      \
        map(x, x, y, n, [](float v, float) { return v * share(v); });                                             \
    }                                                                                                             \
    DEV_KERNEL(gelu_tanh_bwd_##NAME, 256, 0, const T *x, const T *dy, T *dx, uint64_t n) {                        \
        map(x, dy, dx, n, [](float v, float d) {                                                                  \
            const float s = share(v);                                                                             \
            return d * (s + 2.f * ROOT * v * s * (1.f - s) * (1.f + 0.134145f * v * v));                          \
        });                                                                                                       \
    }
GELU_TANH(f32, float)
GELU_TANH(f16, dev::f16)
GELU_TANH(bf16, dev::bf16)
