// mean_rows.cu: means of groups of rows.
// math      y[g] = mean of x[g*n .. (g+1)*n];   dx[r] = dy[r / n] / n
// shapes    x,dx [G*n,C] T   y,dy [G,C] T
// launch    fwd: grid (G, ceil(C/256)), block 256.   bwd: grid (G*n, ceil(C/256)), block 256.   dynamic shared 0
// requires  n >= 1; no divisibility or alignment
// numerics  sums in f32 in the order of the rows
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
template <class T> DEV void forward(const T *x, T *y, int n, int C) {
    const int c = int(blockIdx.y) * 256 + int(threadIdx.x);
    const size_t g = blockIdx.x;
    if (c >= C) return;
    float sum = 0.f;
    for (int i = 0; i < n; i++) sum += dev::load(x + (g * size_t(n) + size_t(i)) * size_t(C) + size_t(c));
    dev::store(y + g * size_t(C) + size_t(c), sum / float(n));
}
template <class T> DEV void backward(const T *dy, T *dx, int n, int C) {
    const int c = int(blockIdx.y) * 256 + int(threadIdx.x);
    const size_t r = blockIdx.x;
    if (c < C) dev::store(dx + r * size_t(C) + size_t(c), dev::load(dy + r / size_t(n) * size_t(C) + size_t(c)) / float(n));
}
}  // namespace

#define MEAN_ROWS(NAME, T)                                                                                 \
    DEV_KERNEL(mean_rows_fwd_##NAME, 256, 0, const T *x, T *y, int n, int C) { forward(x, y, n, C); }      \
    DEV_KERNEL(mean_rows_bwd_##NAME, 256, 0, const T *dy, T *dx, int n, int C) { backward(dy, dx, n, C); }
MEAN_ROWS(f32, float)
MEAN_ROWS(f16, dev::f16)
MEAN_ROWS(bf16, dev::bf16)
