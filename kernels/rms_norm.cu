// rms_norm.cu: RMSNorm over the last axis.
// math      n = x rstd,  rstd = 1 / sqrt(mean(x^2) + eps);   y = w n
//           g = dy w;   dx = rstd (g - n mean(g n));   dwn = dy n, whose columns' sums are dw
// shapes    x,y,dy,dx [N,C] T   w [C] f32   rstd [N] f32   dwn [N,C] f32, or null
// launch    fwd, bwd: grid N, block ceil(C/8) rounded up to 32, dynamic shared 0
// requires  1 <= C <= 8192; no divisibility or alignment
// numerics  in f32, sums in a fixed order
// aliasing  y may be x, dx may be dy; nothing else overlaps
#include "dev.cuh"

namespace {
// This thread's 8 columns of its row.
struct Piece {
    int c, count;
    size_t at;
    DEV_METHOD explicit Piece(int C) {
        c = int(threadIdx.x) * 8, count = max(0, min(8, C - c));
        at = size_t(blockIdx.x) * size_t(C) + size_t(c);
    }
    template <class T> DEV_METHOD void read(const T *p, float (&v)[8]) const {
        if (count > 0) dev::load8(p + at, count, v);
    }
};

template <class T> DEV void forward(const T *x, const float *w, T *y, float *rstd, int C, float eps) {
    DEV_SHARED(float, sums_s, [32]);
    const Piece piece(C);
    float v[8] = {}, weight[8] = {}, squares = 0.f;
    piece.read(x, v);
    if (piece.count > 0) dev::load8(w + piece.c, piece.count, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) squares += v[i] * v[i];
    const float by = 1.f / sqrtf(dev::block_sum(squares, sums_s) / float(C) + eps);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= by * weight[i];
    if (piece.count > 0) dev::store8(y + piece.at, piece.count, v);
    if (threadIdx.x == 0) rstd[blockIdx.x] = by;
}
template <class T>
DEV void backward(const T *dy, const T *x, const float *rstd, const float *w, T *dx, float *dwn, int C) {
    DEV_SHARED(float, sums_s, [32]);
    const Piece piece(C);
    const float by = rstd[blockIdx.x];
    float d[8] = {}, n[8] = {}, weight[8] = {}, sum = 0.f;
    piece.read(dy, d);
    piece.read(x, n);
    if (piece.count > 0) dev::load8(w + piece.c, piece.count, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        n[i] *= by;
        sum += d[i] * weight[i] * n[i];
    }
    const float mean = dev::block_sum(sum, sums_s) / float(C);
    float dn[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        dn[i] = d[i] * n[i];
        d[i] = by * (d[i] * weight[i] - n[i] * mean);
    }
    if (piece.count > 0) dev::store8(dx + piece.at, piece.count, d);
    if (dwn && piece.count > 0) dev::store8(dwn + piece.at, piece.count, dn);
}
}  // namespace

#define RMS_NORM(NAME, T)                                                                                                  \
    DEV_KERNEL(rms_norm_fwd_##NAME, 1024, 0, const T *x, const float *w, T *y, float *rstd, int C, float eps) {            \
        forward(x, w, y, rstd, C, eps);                                                                                    \
    }                                                                                                                      \
    DEV_KERNEL(rms_norm_bwd_##NAME, 1024, 0, const T *dy, const T *x, const float *rstd, const float *w, T *dx, float *dwn, \
               int C) {                                                                                                    \
        backward(dy, x, rstd, w, dx, dwn, C);                                                                              \
    }
RMS_NORM(f32, float)
RMS_NORM(f16, dev::f16)
RMS_NORM(bf16, dev::bf16)
