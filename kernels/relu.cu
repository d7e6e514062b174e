// relu.cu: ReLU, which keeps a bit an element for its backward.
// math      y = x where x > 0, else 0;   dx = dy where x > 0, else 0
// shapes    x,y,dx,dy [n] T   bits [ceil(n/8)] u8: bit i of byte b is element 8b + i
// launch    fwd, bwd: grid ceil(n/2048), block 256, dynamic shared 0
// requires  n >= 1; no divisibility or alignment
// numerics  none: numbers pass or do not. NaN passes
// aliasing  y may be x; dx may be dy
#include "dev.cuh"

namespace {
template <class T> DEV void forward(const T *x, T *y, uint8_t *bits, uint64_t n) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    const int count = n - at < 8 ? int(n - at) : 8;
    float v[8];
    dev::load8(x + at, count, v);
    uint32_t passes = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool stops = i >= count || v[i] <= 0.f;
        passes |= uint32_t(!stops) << i;
        v[i] = stops ? 0.f : v[i];
    }
    dev::store8(y + at, count, v);
    bits[at / 8] = uint8_t(passes);
}
template <class T> DEV void backward(const T *dy, const uint8_t *bits, T *dx, uint64_t n) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    const int count = n - at < 8 ? int(n - at) : 8;
    const uint32_t passes = bits[at / 8];
    float v[8];
    dev::load8(dy + at, count, v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = passes >> i & 1u ? v[i] : 0.f;
    dev::store8(dx + at, count, v);
}
}  // namespace

#define RELU(NAME, T)                                                                                        \
    DEV_KERNEL(relu_fwd_##NAME, 256, 0, const T *x, T *y, uint8_t *bits, uint64_t n) { forward(x, y, bits, n); } \
    DEV_KERNEL(relu_bwd_##NAME, 256, 0, const T *dy, const uint8_t *bits, T *dx, uint64_t n) { backward(dy, bits, dx, n); }
RELU(f32, float)
RELU(f16, dev::f16)
RELU(bf16, dev::bf16)
