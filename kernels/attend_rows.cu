// attend_rows.cu: attention of single rows over listed key rows, for decoding with cached keys and values.
// math      y_r = softmax(scale q_r k_l^T) v_l over l in list r, per head; query head h reads key head h / sharing
// shapes    q,y [R,H*D] T   k,v [N,..] rows of k_stride, v_stride elements   rows [..] i32: the lists, one after the other,
//           that of row r at starts[r] .. starts[r+1]   starts [R+1] i32
// launch    grid (R, H), block 128, dynamic shared 0
// requires  D <= 256; no divisibility or alignment.   A row with an empty list gets zeros
// numerics  in f32, sums in a fixed order; a row's result depends on its own list alone, bit for bit
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
constexpr int THREADS = 128;  // and keys at a time
constexpr int AHEAD = 4;      // key rows of a thread on their way

struct Shared {
    float *p, *acc, *sums;  // [THREADS], [groups][lanes * 8], [32]
    int *row;               // [THREADS]
};

// LANES threads have a row between them, eight columns each. WHOLE: its pieces are aligned.
template <int LANES, bool WHOLE, class T>
DEV void attend(const T *q, const T *k, int k_stride, const T *v, int v_stride, const int *rows, const int *starts, T *y, int D,
                float scale, int sharing, Shared s) {
    constexpr int GROUPS = THREADS / LANES;
    const int t = int(threadIdx.x), group = t / LANES, c = t % LANES * 8, left = D - c, end = starts[blockIdx.x + 1];
    const size_t column = size_t(blockIdx.y) * size_t(D), key_column = size_t(int(blockIdx.y) / sharing) * size_t(D), at = size_t(blockIdx.x) * gridDim.y * size_t(D) + column;
    float own[8] = {}, acc[8] = {}, x[AHEAD][8];
    if (left > 0) dev::load8(q + at + c, left, own);
    // This thread's columns of the rows of keys first, first + GROUPS, .. ; behind the last one that one again.
    const auto load = [&](const T *from, int stride, int first, int count) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const T *row = from + size_t(s.row[min(first + i * GROUPS, count - 1)]) * size_t(stride) + key_column;
            if (WHOLE) dev::unpack8(row + (left > 0 ? c : 0), x[i]);
            else dev::load8(row + c, left, x[i]);
        }
    };
    float top = -dev::infinity(), sum = 0.f;
    for (int first = starts[blockIdx.x]; first < end; first += THREADS) {
        const int count = min(THREADS, end - first);
        __syncthreads();  // the keys before have been used
        if (t < count) s.row[t] = rows[first + t];
        __syncthreads();
        for (int begin = 0; begin < count; begin += AHEAD * GROUPS) {  // p = scale q k^T
            load(k, k_stride, begin + group, count);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int l = begin + group + i * GROUPS;
                float dot = 0.f;
#pragma unroll
                for (int e = 0; e < 8; e++) dot += own[e] * x[i][e];
#pragma unroll
                for (int o = LANES / 2; o > 0; o >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, o);
                if (l < count && c == 0) s.p[l] = dot * scale;
            }
        }
        __syncthreads();
        const float score = t < count ? s.p[t] : -dev::infinity();
        const float most = dev::block_max(fmaxf(score, top), s.sums), base = most == -dev::infinity() ? 0.f : most;
        const float p = t < count ? expf(score - base) : 0.f, shrink = expf(top - base);
        s.p[t] = p;
        sum = sum * shrink + dev::block_sum(p, s.sums);  // its barriers also publish s.p
        top = most;
#pragma unroll
        for (int e = 0; e < 8; e++) acc[e] *= shrink;
        for (int begin = 0; begin < count; begin += AHEAD * GROUPS) {  // acc += p v
            load(v, v_stride, begin + group, count);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int l = begin + group + i * GROUPS;
#pragma unroll
                for (int e = 0; e < 8; e++) acc[e] += l < count ? s.p[l] * x[i][e] : 0.f;
            }
        }
    }
#pragma unroll
    for (int e = 0; e < 8; e++) s.acc[group * LANES * 8 + c + e] = acc[e];
    __syncthreads();
    for (int d = t; d < D; d += THREADS) {
        float total = 0.f;
        for (int i = 0; i < GROUPS; i++) total += s.acc[i * LANES * 8 + d];
        dev::store(y + at + d, starts[blockIdx.x] < end ? total / sum : 0.f);
    }
}

template <class T>
DEV void forward(const T *q, const T *k, int k_stride, const T *v, int v_stride, const int *rows, const int *starts, T *y, int D, float scale,
                 int sharing) {
    DEV_SHARED(float, p_s, [THREADS]);
    DEV_SHARED(float, acc_s, [THREADS * 8]);
    DEV_SHARED(float, sums_s, [32]);
    DEV_SHARED(int, row_s, [THREADS]);
    const Shared s = {p_s, acc_s, sums_s, row_s};
    const bool whole = D % 8 == 0 && k_stride % 8 == 0 && v_stride % 8 == 0 && dev::aligned16(k) && dev::aligned16(v);
    if (whole && D <= 64) attend<8, true>(q, k, k_stride, v, v_stride, rows, starts, y, D, scale, sharing, s);
    else if (whole && D <= 128) attend<16, true>(q, k, k_stride, v, v_stride, rows, starts, y, D, scale, sharing, s);
    else if (D <= 128) attend<16, false>(q, k, k_stride, v, v_stride, rows, starts, y, D, scale, sharing, s);
    else attend<32, false>(q, k, k_stride, v, v_stride, rows, starts, y, D, scale, sharing, s);
}
}  // namespace

#define ATTEND_ROWS(NAME, T)                                                                                               \
    DEV_KERNEL(attend_rows_##NAME, THREADS, 0, const T *q, const T *k, int k_stride, const T *v, int v_stride,             \
               const int *rows, const int *starts, T *y, int D, float scale, int sharing) {                                  \
        forward(q, k, k_stride, v, v_stride, rows, starts, y, D, scale, sharing);                                            \
    }
ATTEND_ROWS(f32, float)
ATTEND_ROWS(f16, dev::f16)
ATTEND_ROWS(bf16, dev::bf16)
