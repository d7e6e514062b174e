// rows.cu: rows picked and put back, and a matrix transposed.
// math      gather_rows: y[i] = x[index[i]];  dx[r] = sum of dy[i] with index[i] = r.   transpose: y[j,i] = x[i,j]
// shapes    x,dx [R,C]   y,dy [n,C]   index [n] i32 < R   order, starts, targets: see sorted_rows.cuh.   transpose: y [C,R]
// launch    gather_rows_fwd: grid n, block 128.   gather_rows_bwd: as sorted_rows.cuh says.
//           transpose: grid (ceil(C/32), ceil(R/32)), block (32,8).   dynamic shared 0
// requires  no divisibility or alignment.   gather_rows_bwd writes the target rows only: the others are the caller's
// numerics  sums in f32 in a fixed order.   accumulate 1: dx += , 0: dx =
// aliasing  nothing overlaps
#include "sorted_rows.cuh"

namespace {
template <class T> DEV void gather(const T *x, const int *index, T *y, int C) {
    const size_t from = size_t(index[blockIdx.x]) * size_t(C), to = size_t(blockIdx.x) * size_t(C);
    for (int c = int(threadIdx.x) * 8; c < C; c += int(blockDim.x) * 8) {
        float v[8];
        dev::load8(x + from + c, C - c, v);
        dev::store8(y + to + c, C - c, v);
    }
}
template <class T> DEV void transpose(const T *x, T *y, int R, int C) {
    DEV_SHARED(float, tile_s, [32][33]);
    const int tx = int(threadIdx.x), ty = int(threadIdx.y), c0 = int(blockIdx.x) * 32, r0 = int(blockIdx.y) * 32;
    for (int i = ty; i < 32; i += 8)
        if (r0 + i < R && c0 + tx < C) tile_s[i][tx] = dev::load(x + size_t(r0 + i) * size_t(C) + size_t(c0 + tx));
    __syncthreads();
    for (int i = ty; i < 32; i += 8)
        if (c0 + i < C && r0 + tx < R) dev::store(y + size_t(c0 + i) * size_t(R) + size_t(r0 + tx), tile_s[tx][i]);
}
}  // namespace

#define ROWS(NAME, T)                                                                                                      \
    DEV_KERNEL(gather_rows_fwd_##NAME, 128, 0, const T *x, const int *index, T *y, int C) { gather(x, index, y, C); }      \
    DEV_KERNEL(gather_rows_bwd_##NAME, 256, 0, const T *dy, const int *order, const int *starts, const int *targets,       \
               T *dx, int C, int accumulate) {                                                                             \
        sorted_rows::sum(dy, order, starts, targets, dx, C, accumulate != 0);                                              \
    }                                                                                                                      \
    DEV_KERNEL(transpose_fwd_##NAME, 256, 0, const T *x, T *y, int R, int C) { transpose(x, y, R, C); }
ROWS(f32, float)
ROWS(f16, dev::f16)
ROWS(bf16, dev::bf16)
