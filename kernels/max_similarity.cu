// max_similarity.cu: the similarity of pictures and captions, the largest product over a picture's queries.
// math      y[i,j] = max_q a[i*Q+q] . b[j], best[i,j] the first such q;
//           or y[i,j] = a[i*Q+given[i,j]] . b[j], best = given;
//           da[i*Q+q] = sum of dy[i,j] b[j] with best[i,j] = q;   db[j] = sum_i dy[i,j] a[i*Q+best[i,j]]
// shapes    a,da [A*Q,E] T   b,db [B,E] T   y,dy [A,B] f32   best,given [A,B] i32; given null: the maximum
// launch    fwd: grid (ceil(B/64), A), block 128.   bwd_a: grid (Q, A), block 128.   bwd_b: grid B, block 128.   dynamic shared 0
// requires  no divisibility or alignment.   A <= 65535
// numerics  products and sums in f32 in a fixed order; the first NaN of a maximum wins
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
constexpr int TEXTS = 64, QUERIES = 32, DEPTH = 32;  // of a tile

// (value, place) of two candidates for a maximum, the first one from lower queries
DEV void take_larger(float &value, int &place, float other, int other_place) {
    if (other > value || (other != other && value == value)) value = other, place = other_place;
}

// Thread (tx, ty) of (16, 8): queries ty*4 .. +3 of a tile, texts tx + 16*0..3.
template <class T> DEV void forward(const T *a, const T *b, const int *given, float *y, int *best, int Q, int B, int E) {
    DEV_SHARED(float, a_s, [QUERIES][DEPTH + 1]);
    DEV_SHARED(float, b_s, [TEXTS][DEPTH + 1]);
    DEV_SHARED(float, value_s, [8][TEXTS]);
    DEV_SHARED(int, place_s, [8][TEXTS]);
    const int t = int(threadIdx.x), tx = t & 15, ty = t / 16, j0 = int(blockIdx.x) * TEXTS;
    const size_t picture = blockIdx.y;
    float value[4] = {};
    int place[4] = {};
    for (int q0 = 0; q0 < Q; q0 += QUERIES) {
        float acc[4][4] = {};
        for (int e0 = 0; e0 < E; e0 += DEPTH) {
            __syncthreads();  // the tiles before have been read
            for (int i = t; i < QUERIES * DEPTH; i += 128) {
                const int q = q0 + i / DEPTH, e = e0 + i % DEPTH;
                a_s[i / DEPTH][i % DEPTH] = q < Q && e < E ? dev::load(a + (picture * size_t(Q) + size_t(q)) * size_t(E) + size_t(e)) : 0.f;
            }
            for (int i = t; i < TEXTS * DEPTH; i += 128) {
                const int j = j0 + i / DEPTH, e = e0 + i % DEPTH;
                b_s[i / DEPTH][i % DEPTH] = j < B && e < E ? dev::load(b + size_t(j) * size_t(E) + size_t(e)) : 0.f;
            }
            __syncthreads();
            for (int e = 0; e < DEPTH; e++) {
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) acc[i][j] += a_s[ty * 4 + i][e] * b_s[tx + 16 * j][e];
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float v = acc[0][j];
            int p = q0 + ty * 4;
            if (given) {  // the others are no candidates
                const int text = j0 + tx + 16 * j;
                const int own = text < B ? given[picture * size_t(B) + size_t(text)] - q0 - ty * 4 : 0;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (i != own) acc[i][j] = -dev::infinity();
                v = acc[0][j];
            }
#pragma unroll
            for (int i = 1; i < 4; i++)
                if (q0 + ty * 4 + i < Q) take_larger(v, p, acc[i][j], q0 + ty * 4 + i);
            value_s[ty][tx + 16 * j] = v;
            place_s[ty][tx + 16 * j] = p;
        }
        __syncthreads();
        if (ty == 0) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (q0 == 0) value[j] = value_s[0][tx + 16 * j], place[j] = place_s[0][tx + 16 * j];
                for (int k = q0 == 0; k < 8; k++)
                    if (q0 + k * 4 < Q) take_larger(value[j], place[j], value_s[k][tx + 16 * j], place_s[k][tx + 16 * j]);
            }
        }
    }
    if (ty == 0) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int text = j0 + tx + 16 * j;
            if (text >= B) continue;
            y[picture * size_t(B) + size_t(text)] = value[j];
            best[picture * size_t(B) + size_t(text)] = place[j];
        }
    }
}

// One row of da: the captions whose best query it is.
template <class T> DEV void backward_a(const float *dy, const int *best, const T *b, T *da, int B, int E) {
    const int q = int(blockIdx.x);
    const size_t picture = blockIdx.y;
    for (int e = int(threadIdx.x); e < E; e += int(blockDim.x)) {
        float sum = 0.f;
        for (int j = 0; j < B; j++) {
            const size_t at = picture * size_t(B) + size_t(j);
            if (best[at] == q) sum += dy[at] * dev::load(b + size_t(j) * size_t(E) + size_t(e));
        }
        dev::store(da + (picture * size_t(gridDim.x) + size_t(q)) * size_t(E) + size_t(e), sum);
    }
}
template <class T> DEV void backward_b(const float *dy, const int *best, const T *a, T *db, int A, int Q, int B, int E) {
    const size_t j = blockIdx.x;
    for (int e = int(threadIdx.x); e < E; e += int(blockDim.x)) {
        float sum = 0.f;
        for (int i = 0; i < A; i++) {
            const size_t at = size_t(i) * size_t(B) + j;
            sum += dy[at] * dev::load(a + (size_t(i) * size_t(Q) + size_t(best[at])) * size_t(E) + size_t(e));
        }
        dev::store(db + j * size_t(E) + size_t(e), sum);
    }
}
}  // namespace

#define MAX_SIMILARITY(NAME, T)                                                                                            \
    DEV_KERNEL(max_similarity_fwd_##NAME, 128, 0, const T *a, const T *b, const int *given, float *y, int *best, int Q,    \
               int B, int E) {                                                                                             \
        forward(a, b, given, y, best, Q, B, E);                                                                            \
    }                                                                                                                      \
    DEV_KERNEL(max_similarity_bwd_a_##NAME, 128, 0, const float *dy, const int *best, const T *b, T *da, int B, int E) {   \
        backward_a(dy, best, b, da, B, E);                                                                                 \
    }                                                                                                                      \
    DEV_KERNEL(max_similarity_bwd_b_##NAME, 128, 0, const float *dy, const int *best, const T *a, T *db, int A, int Q,     \
               int B, int E) {                                                                                             \
        backward_b(dy, best, a, db, A, Q, B, E);                                                                           \
    }
MAX_SIMILARITY(f32, float)
MAX_SIMILARITY(f16, dev::f16)
MAX_SIMILARITY(bf16, dev::bf16)
