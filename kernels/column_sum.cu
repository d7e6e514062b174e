// column_sum.cu: sums over rows: gradients of biases, and what blocks of other kernels leave behind.
// math      out[c] = sum_N(x[r,c])
// shapes    x [N,C] T, rows of `stride` elements   out [C] f32   partial [P,C] f32 and counters [ceil(C/256)] u32 for its own use (null if P = 1)
// launch    grid (ceil(C/256), P), block (32,8), dynamic shared 0
// requires  N >= 0, C >= 1, stride >= C, P >= 1; no divisibility or alignment.   counters are 0 before and after
// numerics  sums in f32 in a fixed order: a block has a share of the rows of 256 columns, and the last block of these columns
//           adds up the shares => deterministic.   accumulate 1: out += , 0: out =
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
constexpr int AHEAD = 8;  // rows of a thread that are fetched together

// sum[0..8) += columns c .. of rows first, first + 8, .. < last
template <class T> DEV void add_rows(const T *x, int C, int stride, int c, int first, int last, float (&sum)[8]) {
    const int count = min(8, C - c);
    if (count <= 0) return;
    const bool whole = count == 8 && stride * int(sizeof(T)) % 16 == 0 && dev::aligned16(x);
    const T *from = x + c;
    for (int r = first; r < last; r += 8 * AHEAD) {
        if (whole) {
            dev::Raw<T, 8> raw[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                raw[k] = dev::Raw<T, 8>{};
                if (r + 8 * k < last) raw[k] = dev::fetch<T, 8>(from + size_t(r + 8 * k) * size_t(stride));
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                float v[8];
                dev::widen(raw[k], v);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += v[i];
            }
        } else {
            for (int k = r; k < min(last, r + 8 * AHEAD); k += 8) {
                float v[8];
                dev::load_some(from + size_t(k) * size_t(stride), count, v);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += v[i];
            }
        }
    }
}

// A thread has 8 columns; the 8 threads of a column are added up in their order. -> column 32 ty + tx of the block's
DEV float of_column(const float (&sum)[8], float (&sum_s)[8][256]) {
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), column = ty * 32 + tx, place = (column & 7) * 32 + column / 8;
#pragma unroll
    for (int i = 0; i < 8; i++) sum_s[ty][i * 32 + tx] = sum[i];
    __syncthreads();
    float all = sum_s[0][place];
    for (int k = 1; k < 8; k++) all += sum_s[k][place];
    return all;
}

template <class T> DEV void column_sum(const T *x, float *out, float *partial, uint32_t *counters, int N, int C, int stride,
                                   bool accumulate) {
    DEV_SHARED(float, sum_s, [8][256]);
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), c = (int(blockIdx.x) * 32 + tx) * 8, P = int(gridDim.y);
    const int column = int(blockIdx.x) * 256 + ty * 32 + tx;
    const int rows = (N + P - 1) / P, first = int(blockIdx.y) * rows, last = min(N, first + rows);
    float sum[8] = {};
    add_rows(x, C, stride, c, first + ty, last, sum);
    float all = of_column(sum, sum_s);
    if (P > 1) {
        if (column < C) partial[size_t(blockIdx.y) * size_t(C) + size_t(column)] = all;
        if (!dev::last_block(counters + blockIdx.x, gridDim.y)) return;
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] = 0.f;
        add_rows(partial, C, C, c, ty, P, sum);
        all = of_column(sum, sum_s);
    }
    if (column < C) out[column] = accumulate ? out[column] + all : all;
}
}  // namespace

#define COLUMN_SUM(NAME, T)                                                                                                \
    DEV_KERNEL(column_sum_##NAME, 256, 0, const T *x, float *out, float *partial, uint32_t *counters, int N, int C,        \
               int stride, int accumulate) {                                                                               \
        column_sum(x, out, partial, counters, N, C, stride, accumulate != 0);                                              \
    }
COLUMN_SUM(f32, float)
COLUMN_SUM(f16, dev::f16)
COLUMN_SUM(bf16, dev::bf16)
