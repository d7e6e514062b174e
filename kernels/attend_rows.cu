// attend_rows.cu: attention of single rows over listed key rows, for decoding with cached keys and values.
// math      y_r = softmax(scale q_r k_l^T) v_l over l in list r, per head
// shapes    q,y [R,H*D] T   k,v [N,..] rows of k_stride, v_stride elements   rows [..] i32: the lists, one after the other,
//           that of row r at starts[r] .. starts[r+1]   starts [R+1] i32
// launch    grid (R, H), block 128, dynamic shared 0
// requires  D <= 128; no divisibility or alignment.   A row with an empty list gets zeros
// numerics  in f32; a row's result depends on its own list alone, bit for bit
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
constexpr int THREADS = 128;  // keys at a time

template <class T>
DEV void attend(const T *q, const T *k, int k_stride, const T *v, int v_stride, const int *rows, const int *starts, T *y, int D, float scale) {
    DEV_SHARED(float, q_s, [THREADS]);
    DEV_SHARED(float, p_s, [THREADS]);
    DEV_SHARED(int, row_s, [THREADS]);
    DEV_SHARED(float, shared_s, [32]);
    const int t = int(threadIdx.x), column = int(blockIdx.y) * D, end = starts[blockIdx.x + 1];
    const size_t at = (size_t(blockIdx.x) * gridDim.y + blockIdx.y) * size_t(D) + size_t(t);
    if (t < D) q_s[t] = dev::load(q + at);
    float top = -dev::infinity(), sum = 0.f, acc = 0.f;
    for (int first = starts[blockIdx.x]; first < end; first += THREADS) {
        const int count = min(THREADS, end - first);
        __syncthreads();  // q_s is there, and the keys before have been used
        if (t < count) row_s[t] = rows[first + t];
        float score = -dev::infinity();
        if (t < count) {
            const T *key = k + size_t(row_s[t]) * size_t(k_stride) + size_t(column);
            float dot = 0.f, x[8];
            for (int c = 0; c < D; c += 8) {
                dev::load8(key + c, D - c, x);
#pragma unroll
                for (int i = 0; i < 8; i++) dot += c + i < D ? q_s[c + i] * x[i] : 0.f;
            }
            score = dot * scale;
        }
        const float most = dev::block_max(fmaxf(score, top), shared_s), base = most == -dev::infinity() ? 0.f : most;
        const float p = t < count ? expf(score - base) : 0.f, shrink = expf(top - base);
        p_s[t] = p;
        sum = sum * shrink + dev::block_sum(p, shared_s);  // its barriers also publish p_s
        top = most;
        acc *= shrink;
        if (t < D)
            for (int j = 0; j < count; j++) acc += p_s[j] * dev::load(v + size_t(row_s[j]) * size_t(v_stride) + size_t(column + t));
    }
    if (t < D) dev::store(y + at, starts[blockIdx.x] < end ? acc / sum : 0.f);
}
}  // namespace

#define ATTEND_ROWS(NAME, T)                                                                                               \
    DEV_KERNEL(attend_rows_##NAME, THREADS, 0, const T *q, const T *k, int k_stride, const T *v, int v_stride,             \
               const int *rows, const int *starts, T *y, int D, float scale) {                                             \
        attend(q, k, k_stride, v, v_stride, rows, starts, y, D, scale);                                                    \
    }
ATTEND_ROWS(f32, float)
ATTEND_ROWS(f16, dev::f16)
ATTEND_ROWS(bf16, dev::bf16)
