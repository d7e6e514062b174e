// column_sum.cuh: sums of the rows of a matrix, by columns, for kernels that read one or make one.
// launch    grid (ceil(C/256), P), block (32,8): a block has a share of the rows of 256 columns, a thread 8 columns of every 8th
//           row; the last block of these columns adds up the shares
// numerics  sums in f32 in a fixed order => deterministic
#pragma once
#include "dev.cuh"

namespace column_sum {
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

// Which columns and rows a thread of N rows of C columns has: columns c .. c + count, rows first, first + 8, .. < last.
struct Share {
    int c, count, first, last;
    DEV_METHOD Share(int N, int C) {
        const int P = int(gridDim.y), rows = (N + P - 1) / P, from = int(blockIdx.y) * rows;
        c = (int(blockIdx.x) * 32 + int(threadIdx.x)) * 8;
        count = min(8, C - c);
        first = from + int(threadIdx.y);
        last = min(N, from + rows);
    }
};

// out = the sums of all shares, or out += them. partial [P,C] f32 and counters [ceil(C/256)] u32 as in column_sum.cu
DEV void finish(float (&sum)[8], float *out, float *partial, uint32_t *counters, int C, bool accumulate) {
    DEV_SHARED(float, sum_s, [8][256]);
    const int P = int(gridDim.y), tx = int(threadIdx.x), ty = int(threadIdx.y), column = int(blockIdx.x) * 256 + ty * 32 + tx;
    float all = of_column(sum, sum_s);
    if (P > 1) {
        if (column < C) partial[size_t(blockIdx.y) * size_t(C) + size_t(column)] = all;
        if (!dev::last_block(counters + blockIdx.x, gridDim.y)) return;
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] = 0.f;
        add_rows(partial, C, C, (int(blockIdx.x) * 32 + tx) * 8, ty, P, sum);
        all = of_column(sum, sum_s);
    }
    if (column < C) out[column] = accumulate ? out[column] + all : all;
}
}  // namespace column_sum
