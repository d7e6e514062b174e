// layer_norm.cuh: the arithmetic of LayerNorm of a row, for every kernel that normalises one: the same bits in each. What is
// multiplied and added at once is written as such, and not left to the compiler.
// math      n = (v - mean) rstd,  y = n w + b.  mean = rough + off,  rough = sum(v) / C,  off = sum(v - rough) / C;
//           rstd = 1/sqrt(sum((v - rough)^2) / C - off^2 + eps)
// layout    a warp has up to COLUMNS columns of a row, a lane U neighbours in every 32 U of them: v[j][i] is column (32 j + lane) U + i.
//           A lane adds up its own in their order, then the lanes are added by halves
#pragma once
#include "dev.cuh"

namespace layer_norm {
constexpr int COLUMNS = 768;

// The sums of all lanes, in every lane.
template <int K> DEV void add_lanes(float (&v)[K]) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1)
#pragma unroll
        for (int i = 0; i < K; i++) v[i] += __shfl_xor_sync(0xffffffffu, v[i], o);
}
// off += v - rough and its square, of the first `left` elements.
template <int U> DEV void add_distances(float (&v)[U], int left, float rough, float (&off)[2]) {
    if (left < U) {  // beyond the columns: no distance
#pragma unroll
        for (int i = 0; i < U; i++)
            if (i >= left) v[i] = rough;
    }
#pragma unroll
    for (int i = 0; i < U; i++) {
        const float d = v[i] - rough;
        off[0] += d;
        off[1] = fmaf(d, d, off[1]);
    }
}
struct Statistics {
    float mean, rstd;
};
DEV Statistics statistics(float rough, const float (&off)[2], int C, float eps) {
    const float moved = off[0] / float(C), var = fmaf(-moved, moved, off[1] / float(C));
    // max would take a NaN for 0
    return {rough + moved, 1.f / sqrtf((var < 0.f ? 0.f : var) + eps)};
}
DEV float normalised(float v, const Statistics &s, float w, float b) { return fmaf((v - s.mean) * s.rstd, w, b); }

// v[0..U) = a piece of a row; pieces that are whole are read at once.
template <class T, int U> DEV void read(const T *p, int count, bool whole, float (&v)[U]) {
    if (!whole || count <= 0) dev::load_some(p, count, v);
    else dev::widen(dev::fetch<T, U>(p), v);
}
template <class T, int U> DEV void write(T *p, int count, bool whole, const float (&v)[U]) {
    if (!whole) dev::store_some(p, count, v);
    else if (count > 0) dev::put(p, v);
}
// Whether rows of C elements may be moved in pieces of 16 bytes.
template <class... P> DEV bool whole_rows(int C, const P *...p) {
    return C % 8 == 0 && ((uintptr_t(p) | ...) & 15) == 0;
}
}  // namespace layer_norm
