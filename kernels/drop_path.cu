// drop_path.cu: whole samples of a branch dropped (stochastic depth); forward and backward alike.
// math      y[i] = x[i] m,   m = 0 or 1 / (1 - p) by the sample i / per; element number of a sample's draw: the sample
// shapes    x,y [n] T, a sample's `per` elements in a row
// launch    grid ceil(n/2048), block 256, dynamic shared 0
// requires  n, per >= 1; no divisibility or alignment
// numerics  one rounding
// aliasing  y may be x
#include "dev.cuh"

namespace {
template <class T> DEV void drop_path(const T *x, T *y, uint64_t n, uint64_t per, const dev::Dropout &drop) {
    const uint64_t at = (uint64_t(blockIdx.x) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    const int count = n - at < 8 ? int(n - at) : 8;
    float v[8];
    dev::load8(x + at, count, v);
    uint64_t sample = at / per;
    uint64_t next = (sample + 1) * per;
    float factor = dev::drop_factor(drop, sample);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (at + uint64_t(i) >= next) {
            sample++;
            next += per;
            factor = dev::drop_factor(drop, sample);
        }
        v[i] *= factor;
    }
    dev::store8(y + at, count, v);
}
}  // namespace

#define DROP_PATH(NAME, T)                                                                                          \
    DEV_KERNEL(drop_path_##NAME, 256, 0, const T *x, T *y, uint64_t n, uint64_t per, uint64_t seed, uint32_t site, \
               uint32_t step, uint32_t threshold, float scale) {                                                   \
        drop_path(x, y, n, per, dev::Dropout{seed, site, step, threshold, scale});                                 \
    }
DROP_PATH(f32, float)
DROP_PATH(f16, dev::f16)
DROP_PATH(bf16, dev::bf16)
