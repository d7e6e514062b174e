// silu_mul.cu: SiLU of one tensor times another.
// math      y = g s u,  s = 1 / (1 + e^(-g));   dg = dy u s (1 + g (1 - s)),  du = dy g s
// shapes    g,u,y,dy,dg,du [n] T
// launch    fwd, bwd: grid ceil(n/2048), block 256, dynamic shared 0
// requires  n >= 1; no divisibility or alignment
// numerics  in f32
// aliasing  y may be g or u; dg and du may be dy, g or u, but not each other
#include "dev.cuh"

namespace {
DEV float share(float g) { return 1.f / (1.f + expf(-g)); }

template <class T> DEV void forward(const T *g, const T *u, T *y, uint64_t n) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    const int count = n - at < 8 ? int(n - at) : 8;
    float a[8], b[8];
    dev::load8(g + at, count, a);
    dev::load8(u + at, count, b);
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] *= share(a[i]) * b[i];
    dev::store8(y + at, count, a);
}
template <class T> DEV void backward(const T *g, const T *u, const T *dy, T *dg, T *du, uint64_t n) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    const int count = n - at < 8 ? int(n - at) : 8;
    float a[8], b[8], d[8];
    dev::load8(g + at, count, a);
    dev::load8(u + at, count, b);
    dev::load8(dy + at, count, d);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float s = share(a[i]);
        b[i] *= d[i] * s * (1.f + a[i] * (1.f - s));
        d[i] *= a[i] * s;
    }
    dev::store8(dg + at, count, b);
    dev::store8(du + at, count, d);
}
}  // namespace

#define SILU_MUL(NAME, T)                                                                                             \
    DEV_KERNEL(silu_mul_fwd_##NAME, 256, 0, const T *g, const T *u, T *y, uint64_t n) { forward(g, u, y, n); }        \
    DEV_KERNEL(silu_mul_bwd_##NAME, 256, 0, const T *g, const T *u, const T *dy, T *dg, T *du, uint64_t n) {          \
        backward(g, u, dy, dg, du, n);                                                                                \
    }
SILU_MUL(f32, float)
SILU_MUL(f16, dev::f16)
SILU_MUL(bf16, dev::bf16)
