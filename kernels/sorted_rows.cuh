// sorted_rows.cuh: sums of rows that have the same target, for the backward of whatever picks rows. No atomics: the rows
// are sorted by target beforehand.
// tables    targets [U]: the targets, each once.   order [n]: rows of dy, those of targets[u] at starts[u] .. starts[u+1]
//           in ascending order.   starts [U+1]
// launch    grid (ceil(C/32), U), block (32,8)
#pragma once
#include "dev.cuh"

namespace sorted_rows {
template <class T, class D>
DEV void sum(const T *dy, const int *order, const int *starts, const int *targets, D *out, int C, bool accumulate) {
    DEV_SHARED(float, sum_s, [8][32]);
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), c = int(blockIdx.x) * 32 + tx, u = int(blockIdx.y);
    float sum = 0.f;
    if (c < C)
        for (int i = starts[u] + ty; i < starts[u + 1]; i += 8) sum += dev::load(dy + size_t(order[i]) * size_t(C) + size_t(c));
    sum_s[ty][tx] = sum;
    __syncthreads();
    if (ty == 0 && c < C) {
        for (int i = 1; i < 8; i++) sum += sum_s[i][tx];
        D *to = out + size_t(targets[u]) * size_t(C) + size_t(c);
        dev::store(to, accumulate ? dev::load(to) + sum : sum);
    }
}
}  // namespace sorted_rows
