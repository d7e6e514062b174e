// column_sum.cu: sums over rows in two stages, for bias gradients and for the partial sums of other kernels.
// math      stage 1: partial[p,c] = sum of x[r,c] over the p-th share of the rows.   stage 2: out[c] = sum_P(partial[p,c])
// shapes    x [N,C] T   partial [P,C] f32   out [C] f32
// launch    column_sum: grid (ceil(C/256), P), block (32,8).   partial_sum: grid ceil(C/32), block (32,8).   dynamic shared 0
// requires  N >= 0, C >= 1, P >= 1; no divisibility or alignment
// numerics  sums in f32 in a fixed order, no atomics => deterministic.   accumulate 1: out += , 0: out =
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
// A thread has 8 columns; the 8 threads of a column share the rows and are added up in their order.
template <class T> DEV void column_sum(const T *x, float *partial, int N, int C) {
    DEV_SHARED(float, sum_s, [8][256]);
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), c = (int(blockIdx.x) * 32 + tx) * 8, count = min(8, C - c);
    const int rows = (N + int(gridDim.y) - 1) / int(gridDim.y), first = int(blockIdx.y) * rows, last = min(N, first + rows);
    float sum[8] = {}, v[8];
    if (count > 0) {
        for (int r = first + ty; r < last; r += 8) {
            dev::load8(x + size_t(r) * size_t(C) + size_t(c), count, v);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += v[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sum_s[ty][i * 32 + tx] = sum[i];
    __syncthreads();
    const int column = int(blockIdx.x) * 256 + ty * 32 + tx, place = (column & 7) * 32 + (column & 255) / 8;
    if (column < C) {
        float all = sum_s[0][place];
        for (int k = 1; k < 8; k++) all += sum_s[k][place];
        partial[size_t(blockIdx.y) * size_t(C) + size_t(column)] = all;
    }
}
}  // namespace

DEV_KERNEL(column_sum_f32, 256, 0, const float *x, float *partial, int N, int C) { column_sum(x, partial, N, C); }
DEV_KERNEL(column_sum_f16, 256, 0, const dev::f16 *x, float *partial, int N, int C) { column_sum(x, partial, N, C); }
DEV_KERNEL(column_sum_bf16, 256, 0, const dev::bf16 *x, float *partial, int N, int C) { column_sum(x, partial, N, C); }

DEV_KERNEL(partial_sum, 256, 0, const float *partial, float *out, int P, int C, int accumulate) {
    DEV_SHARED(float, sum_s, [8][32]);
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), c = int(blockIdx.x) * 32 + tx;
    float sum = 0.f;
    if (c < C)
        for (int p = ty; p < P; p += 8) sum += partial[size_t(p) * size_t(C) + size_t(c)];
    sum_s[ty][tx] = sum;
    __syncthreads();
    if (ty == 0 && c < C) {
        for (int k = 1; k < 8; k++) sum += sum_s[k][tx];
        out[c] = accumulate ? out[c] + sum : sum;
    }
}
