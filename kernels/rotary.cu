// rotary.cu: rotary positions: pairs of columns of each head turn by an angle that grows with the row's position.
// math      of each head, columns (j, j + half), j < half: (u, v) -> (u cos - s v sin, v cos + s u sin), cos and sin of the row's
//           position; all other columns are copied.   s = sign: 1 forward, -1 backward
// shapes    x,y [R,C] T   turns [P,half,2] f32: cosine, sine   positions [R] i32 < P   used: columns that belong to heads
// launch    grid R, block any multiple of 32 up to 256, dynamic shared 0
// requires  used <= C, a multiple of d; 2 half <= d; no alignment
// numerics  in f32
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
template <class T>
DEV void turn(const T *x, T *y, const float *turns, const int *positions, int C, int used, int d, int half, float sign) {
    const size_t row = size_t(blockIdx.x) * size_t(C);
    const float *own = turns + size_t(positions[blockIdx.x]) * size_t(half) * 2;
    for (int c = int(threadIdx.x) * 8; c < C; c += int(blockDim.x) * 8) {
        const int count = min(8, C - c);
        float v[8];
        dev::load8(x + row + c, count, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int j = (c + i) % d;
            if (c + i >= used || j >= 2 * half) continue;  // used <= C: nothing behind the row is read
            const bool first = j < half;
            const float *pair = own + 2 * (first ? j : j - half);
            const float other = dev::load(x + row + c + i + (first ? half : -half));
            v[i] = v[i] * pair[0] + (first ? -sign : sign) * other * pair[1];
        }
        dev::store8(y + row + c, count, v);
    }
}
}  // namespace

#define ROTARY(NAME, T)                                                                                                    \
    DEV_KERNEL(rotary_##NAME, 256, 0, const T *x, T *y, const float *turns, const int *positions, int C, int used, int d,  \
               int half, float sign) {                                                                                     \
        turn(x, y, turns, positions, C, used, d, half, sign);                                                              \
    }
ROTARY(f32, float)
ROTARY(f16, dev::f16)
ROTARY(bf16, dev::bf16)
