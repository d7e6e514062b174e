// embedding.cu: rows of a table, plus rows of a second one (words and positions).
// math      y[i] = table[ids[i]] + table2[ids2[i]];   dtable[v] = sum of dy[i] with ids[i] = v
// shapes    table [V,C] T   ids [n] i32   table2, ids2 likewise or null   y,dy [n,C] T   dtable [V,C] f32
//           order, starts, targets: see sorted_rows.cuh; the host leaves out the padding id, which gets no gradient
// launch    fwd: grid n, block 128.   bwd: as sorted_rows.cuh says, once for each table.   dynamic shared 0
// requires  no divisibility or alignment; ids below V.   bwd writes the rows of the targets only
// numerics  sums in f32 in a fixed order, no atomics.   accumulate 1: dtable += , 0: dtable =
// aliasing  nothing overlaps
#include "sorted_rows.cuh"

namespace {
template <class T> DEV void forward(const T *table, const int *ids, const T *table2, const int *ids2, T *y, int C) {
    const size_t i = blockIdx.x;
    const T *row = table + size_t(ids[i]) * size_t(C), *row2 = table2 ? table2 + size_t(ids2[i]) * size_t(C) : nullptr;
    for (int c = int(threadIdx.x) * 8; c < C; c += int(blockDim.x) * 8) {
        float v[8], w[8] = {};
        dev::load8(row + c, C - c, v);
        if (row2) dev::load8(row2 + c, C - c, w);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += w[j];
        dev::store8(y + i * size_t(C) + c, C - c, v);
    }
}
}  // namespace

#define EMBEDDING(NAME, T)                                                                                                 \
    DEV_KERNEL(embedding_fwd_##NAME, 128, 0, const T *table, const int *ids, const T *table2, const int *ids2, T *y,       \
               int C) {                                                                                                    \
        forward(table, ids, table2, ids2, y, C);                                                                           \
    }                                                                                                                      \
    DEV_KERNEL(embedding_bwd_##NAME, 256, 0, const T *dy, const int *order, const int *starts, const int *targets,         \
               float *dtable, int C, int accumulate) {                                                                     \
        sorted_rows::sum(dy, order, starts, targets, dtable, C, accumulate != 0);                                          \
    }
EMBEDDING(f32, float)
EMBEDDING(f16, dev::f16)
EMBEDDING(bf16, dev::bf16)
