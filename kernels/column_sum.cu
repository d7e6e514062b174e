// column_sum.cu: sums over rows: gradients of biases, and what blocks of other kernels leave behind.
// math      out[c] = sum_N(x[r,c])
// shapes    x [N,C] T, rows of `stride` elements   out [C] f32   partial [P,C] f32 and counters [ceil(C/256)] u32 for its own use (null if P = 1)
// launch    grid (ceil(C/256), P), block (32,8), dynamic shared 0
// requires  N >= 0, C >= 1, stride >= C, P >= 1; no divisibility or alignment.   counters are 0 before and after
// numerics  sums in f32 in a fixed order: a block has a share of the rows of 256 columns, and the last block of these columns
//           adds up the shares => deterministic.   accumulate 1: out += , 0: out =
// aliasing  nothing overlaps
#include "column_sum.cuh"

namespace {
template <class T> DEV void sum_rows(const T *x, float *out, float *partial, uint32_t *counters, int N, int C, int stride,
                                 bool accumulate) {
    const column_sum::Share at(N, C);
    float sum[8] = {};
    column_sum::add_rows(x, C, stride, at.c, at.first, at.last, sum);
    column_sum::finish(sum, out, partial, counters, C, accumulate);
}
}  // namespace

#define COLUMN_SUM(NAME, T)                                                                                                \
    DEV_KERNEL(column_sum_##NAME, 256, 0, const T *x, float *out, float *partial, uint32_t *counters, int N, int C,        \
               int stride, int accumulate) {                                                                               \
        sum_rows(x, out, partial, counters, N, C, stride, accumulate != 0);                                                \
    }
COLUMN_SUM(f32, float)
COLUMN_SUM(f16, dev::f16)
COLUMN_SUM(bf16, dev::bf16)
