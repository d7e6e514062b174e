// adamw.cu: AdamW over all parameters in one launch, and the norm of their gradients.
// math      g' = unscale g;  m += (g' - m) c1;  v = v b2 + g'^2 c2;  c1 = 1 - b1, c2 = 1 - b2, rounded once;
//           p = p keep - size (m / (sqrt(v) / root + eps)),  keep = 1 - lr wd where `decay`, else 1,
//           size = lr / (1 - b1^t),  root = sqrt(1 - b2^t);   copy = p rounded to T
//           total: the sum of g^2 over everything, not finite if one g is not, or if the loss is not
//           where total is there and not finite, adamw changes nothing
// shapes    slots [S]: a parameter each: its p, m, v, g (f32), copy (T, or null), length, decay
//           chunks [K] of int2 {slot, number of the chunk in it}: 2048 elements each    partial [K] f32   total [1] f32   loss [1] f32 or null
// launch    adamw_{f32,f16,bf16} and adamw_norm: grid K, block 256.   adamw_norm_sum: grid 1, block 256.   dynamic shared 0
// requires  no divisibility or alignment
// numerics  in f32, as torch.optim.AdamW; sums in a fixed order
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
constexpr int CHUNK = 2048;
template <class T> struct Slot {
    float *p, *m, *v;
    const float *g;
    T *copy;
    uint64_t length;
    uint64_t decay;
};
struct Hyper {
    float size, root, c1, b2, c2, eps, keep, unscale;
};

// The formula, for one element.
DEV float update(float p, float g, float &m, float &v, const Hyper &h, float keep) {
    g *= h.unscale;
    m += (g - m) * h.c1;
    v = v * h.b2 + g * g * h.c2;
    return p * keep - h.size * (m / (sqrtf(v) / h.root + h.eps));
}

// This thread's 8 elements of a chunk: f(slot, first, count).
template <class T, class F> DEV void each_piece(const Slot<T> *slots, const int2 *chunks, F f) {
    const int2 chunk = chunks[blockIdx.x];
    const Slot<T> &slot = slots[chunk.x];
    const uint64_t first = uint64_t(chunk.y) * CHUNK + threadIdx.x * 8;
    if (first < slot.length) f(slot, first, slot.length - first < 8 ? int(slot.length - first) : 8);
}

template <class T> DEV void step(const Slot<T> *slots, const int2 *chunks, const Hyper &h) {
    each_piece(slots, chunks, [&](const Slot<T> &s, uint64_t first, int count) {
        float p[8], m[8], v[8], g[8];
        dev::load8(s.p + first, count, p);
        dev::load8(s.m + first, count, m);
        dev::load8(s.v + first, count, v);
        dev::load8(s.g + first, count, g);
        const float keep = s.decay ? h.keep : 1.f;
#pragma unroll
        for (int i = 0; i < 8; i++) p[i] = update(p[i], g[i], m[i], v[i], h, keep);
        dev::store8(s.p + first, count, p);
        dev::store8(s.m + first, count, m);
        dev::store8(s.v + first, count, v);
        if (s.copy) dev::store8(s.copy + first, count, p);
    });
}
}  // namespace

#define ADAMW(NAME, T)                                                                                                     \
    DEV_KERNEL(adamw_##NAME, 256, 0, const Slot<T> *slots, const int2 *chunks, float size, float root, float c1, float b2, \
               float c2, float eps, float keep, float unscale, const float *total) {                                       \
        if (total && !(*total < dev::infinity())) return;                                                                  \
        step(slots, chunks, Hyper{size, root, c1, b2, c2, eps, keep, unscale});                                            \
    }
ADAMW(f32, float)
ADAMW(f16, dev::f16)
ADAMW(bf16, dev::bf16)

DEV_KERNEL(adamw_norm, 256, 0, const Slot<float> *slots, const int2 *chunks, float *partial) {
    DEV_SHARED(float, sums_s, [32]);
    float sum = 0.f;
    each_piece(slots, chunks, [&](const Slot<float> &s, uint64_t first, int count) {
        float g[8];
        dev::load8(s.g + first, count, g);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += g[i] * g[i];
    });
    sum = dev::block_sum(sum, sums_s);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
DEV_KERNEL(adamw_norm_sum, 256, 0, const float *partial, float *total, int K, const float *loss) {
    DEV_SHARED(float, sums_s, [32]);
    float sum = 0.f;
    for (int i = int(threadIdx.x); i < K; i += 256) sum += partial[i];
    sum = dev::block_sum(sum, sums_s);
    if (threadIdx.x == 0) *total = loss && !(fabsf(*loss) < dev::infinity()) ? dev::infinity() : sum;
}
