// sorted_rows.cuh: sums of rows that have the same target, for the backward of whatever picks rows. No atomics: the rows
// are sorted by target beforehand.
// tables    targets [U]: the targets, each once.   order [n]: rows of dy, those of targets[u] at starts[u] .. starts[u+1]
//           in ascending order.   starts [U+1]
// launch    grid (U, ceil(C/(8 X))), block (X,Y), X a multiple of 32, X Y <= 256: Y threads share the rows of a target
#pragma once
#include "dev.cuh"

namespace sorted_rows {
constexpr int AHEAD = 4;  // rows of a thread that are fetched together

// A thread has 8 columns.
template <class T, class D>
DEV void sum(const T *dy, const int *order, const int *starts, const int *targets, D *out, int C, bool accumulate) {
    DEV_SHARED(float, sum_s, [8][256]);
    const int X = int(blockDim.x), Y = int(blockDim.y), tx = int(threadIdx.x), ty = int(threadIdx.y), u = int(blockIdx.x);
    const int c = (int(blockIdx.y) * X + tx) * 8, count = max(0, min(8, C - c)), first = starts[u] + ty, last = starts[u + 1];
    D *to = out + size_t(targets[u]) * size_t(C) + size_t(c);
    float sum[8] = {}, old[8] = {};
    if (ty == 0 && accumulate) dev::load_any(to, count, old);
    const bool whole = count == 8 && C * int(sizeof(T)) % 16 == 0 && dev::aligned16(dy);
    for (int i = first; i < last; i += Y * AHEAD) {
        float v[8];
        if (whole) {
            dev::Raw<T, 8> raw[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                raw[k] = dev::Raw<T, 8>{};
                if (i + k * Y < last) raw[k] = dev::fetch<T, 8>(dy + size_t(order[i + k * Y]) * size_t(C) + size_t(c));
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                dev::widen(raw[k], v);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] += v[j];
            }
        } else {
            for (int k = i; k < min(last, i + Y * AHEAD); k += Y) {
                dev::load_some(dy + size_t(order[k]) * size_t(C) + size_t(c), count, v);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] += v[j];
            }
        }
    }
    if (Y > 1) {
#pragma unroll
        for (int j = 0; j < 8; j++) sum_s[j][ty * X + tx] = sum[j];
        __syncthreads();
        if (ty > 0) return;
        for (int k = 1; k < Y; k++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += sum_s[j][k * X + tx];
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += old[j];
    dev::store_any(to, count, sum);
}
}  // namespace sorted_rows
