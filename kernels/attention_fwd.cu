// attention_fwd.cu: attention over segments of packed rows, forward, in 16 bits. Flash style: the scores never leave the
// registers; keys and values pass through shared memory 32 at a time, the next ones on their way meanwhile.
// math      as in src/ops/attention.rs: S = scale q k^T, P = softmax(S), y = (P m) v, lse = log sum e^S; per head
// shapes    q [Rq,H*D] rows of q_stride elements; k, v [..,H/group*D] of k_stride, v_stride: query head h reads key head
//           h / group; y [Rq,H*D]; lse [Rq,H] f32
//           blocks [G], strips [G*W] of int4: see attention.cuh. `W` strips a block share the block's keys
// launch    grid (G, H), block 32*W (W = 1, 2 or 4), dynamic shared as declared (18432 for d64, 26624 for d88, ..)
//           name attention_fwd_{f16,bf16}_{d32,d64,d80,d88,d96,d112,d128,d160}: D = 64, = 88, else at most as named
// requires  D, the strides and the columns at which q, k and v begin: multiples of 8; their addresses 16-byte aligned.
//           Every query row in exactly one strip; rows that see no key get y = 0, lse = 0
// numerics  S, softmax and sums in f32; P rounded to T for the product with v. Order fixed => deterministic
// aliasing  nothing overlaps
#include "attention.cuh"

namespace {
using namespace attention;

// Online softmax of one tile: s becomes e^(s - m), sum and acc are rescaled to the new maximum m. Scores in log2 units.
template <int BLOCKS> DEV void softmax_tile(float (&s)[TILE / 8][4], float (&m)[2], float (&sum)[2], float (&acc)[BLOCKS][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = m[half];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float base = top == -dev::infinity() ? 0.f : top;  // nothing seen yet: all of s is -inf, and e^s is 0
        const float shrink = dev::fast_exp2(m[half] - base);
        m[half] = top;
        sum[half] *= shrink;
#pragma unroll
        for (int d = 0; d < BLOCKS; d++) acc[d][2 * half] *= shrink, acc[d][2 * half + 1] *= shrink;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[n][2 * half + e];
                x = dev::fast_exp2(x - base);
                sum[half] += x;
            }
    }
}

// s [16,32] = scale q k^T in log2 units; -inf at and beyond each row's limit. `left`: keys of the tile that any row sees.
template <int DP, class T>
DEV void scores(float (&s)[TILE / 8][4], const uint32_t (&q)[DP / 16][4], const T *k_s, float scale, int left, const int (&limit)[2]) {
    const int column = (int(threadIdx.x) & 3) * 2;
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
        float pair[2][4];
        if (j * 16 < left) rows_product<DP>(pair, q, k_s + j * 16 * Sizes<DP>::PITCH);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const int n = 2 * j + e / 4, c = n * 8 + column + (e & 1);
            s[n][e & 3] = j * 16 < left && c < limit[e >> 1 & 1] ? pair[e / 4][e & 3] * scale : -dev::infinity();
        }
    }
}

template <class T, int DP, int HEAD>
DEV void forward(const Rows<T> &all_q, const Rows<T> &all_k, const Rows<T> &all_v, T *y, float *lse, const int4 *blocks,
                 const int4 *strips, int d, float scale, const Dropout &drop, int group) {
    constexpr int STAGE = Sizes<DP>::STAGE;
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    T *k_s = dev::take<T>(carve, 2 * STAGE), *v_s = dev::take<T>(carve, 2 * STAGE);
    const int D = HEAD ? HEAD : d, head = int(blockIdx.y), heads = int(gridDim.y), column = head * D, key_column = head / group * D;
    const Rows<T> q{all_q.p + column, all_q.stride}, k{all_k.p + key_column, all_k.stride}, v{all_v.p + key_column, all_v.stride};
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
    const int4 block = blocks[blockIdx.x], strip = strips[int(blockIdx.x) * warps + warp];
    const int keys = block.w, q_row = strip.x, rows = strip.y;
    const int most = rows > 0 ? min(keys, strip.z + rows - 1) : 0;  // keys that the strip's last row sees
    auto start_copy = [&](int tile) {
        const int stage = (tile & 1) * STAGE, first = tile * TILE;
        auto source = [&](int r) { return key_row(block, first + r); };
        copy_tile<DP>(k_s + stage, k, D, keys - first, source);
        copy_tile<DP>(v_s + stage, v, D, keys - first, source);
        dev::cp_async_commit();
    };
    if (keys > 0) start_copy(0);
    uint32_t q_r[DP / 16][4];
    load_strip(q_r, q, q_row, rows, D);
    const uint64_t row_elements = uint64_t(heads) << 16, element = (uint64_t(q_row) * uint64_t(heads) + uint64_t(head)) << 16;
    float acc[DP / 8][4] = {}, m[2] = {-dev::infinity(), -dev::infinity()}, sum[2] = {};
    for (int tile = 0; tile * TILE < keys; tile++) {
        dev::cp_async_wait<0>();
        __syncthreads();  // this tile has arrived, and the other stage is no longer read
        if ((tile + 1) * TILE < keys) start_copy(tile + 1);
        const int first = tile * TILE, stage = (tile & 1) * STAGE;
        if (first >= most) continue;
        const int limit[2] = {min(keys, strip.z + lane / 4) - first, min(keys, strip.z + lane / 4 + 8) - first};
        float s[TILE / 8][4];
        scores<DP>(s, q_r, k_s + stage, scale * dev::LOG2_E, most - first, limit);
        softmax_tile(s, m, sum, acc);
        if (drop.threshold) {
            const uint32_t kept = kept_of_queries(drop, element, row_elements, first);
#pragma unroll
            for (int i = 0; i < 16; i++) s[i / 4][i & 3] = kept >> i & 1u ? s[i / 4][i & 3] : 0.f;
        }
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            const float p[2][4] = {{s[2 * j][0], s[2 * j][1], s[2 * j][2], s[2 * j][3]},
                                   {s[2 * j + 1][0], s[2 * j + 1][1], s[2 * j + 1][2], s[2 * j + 1][3]}};
            if (j * 16 < most - first) columns_product<DP>(acc, p, v_s + stage + j * 16 * Sizes<DP>::PITCH, D);
        }
    }
    float by[2];
    finish_rows(by, sum, m, most > 0, drop, lse, strip, head, heads);
    const size_t width = size_t(heads) * size_t(D);
    store_strip<DP>(y + size_t(q_row) * width + size_t(column), width, rows, D, acc, by);
}
}  // namespace

#define ATTENTION(NAME, T, DP, HEAD)                                                                                        \
    DEV_KERNEL(attention_fwd_##NAME, 32 * MOST_WARPS, Sizes<DP>::SHARED, const T *q, int q_stride, const T *k, int k_stride, \
               const T *v, int v_stride, T *y, float *lse, const int4 *blocks, const int4 *strips, int d, float scale,      \
               uint64_t seed, uint32_t site, uint32_t step, uint32_t threshold, float drop_scale, int group) {              \
        forward<T, DP, HEAD>(Rows<T>{q, size_t(q_stride)}, Rows<T>{k, size_t(k_stride)}, Rows<T>{v, size_t(v_stride)}, y, lse, \
                             blocks, strips, d, scale, Dropout{seed, site, step, threshold, drop_scale}, group);            \
    }
ATTENTION(f16_d32, dev::f16, 32, 0)
ATTENTION(f16_d64, dev::f16, 64, 64)
ATTENTION(f16_d80, dev::f16, 80, 0)
ATTENTION(f16_d88, dev::f16, 96, 88)
ATTENTION(f16_d96, dev::f16, 96, 0)
ATTENTION(f16_d112, dev::f16, 112, 0)
ATTENTION(f16_d128, dev::f16, 128, 0)
ATTENTION(f16_d160, dev::f16, 160, 0)
ATTENTION(bf16_d32, dev::bf16, 32, 0)
ATTENTION(bf16_d64, dev::bf16, 64, 64)
ATTENTION(bf16_d80, dev::bf16, 80, 0)
ATTENTION(bf16_d88, dev::bf16, 96, 88)
ATTENTION(bf16_d96, dev::bf16, 96, 0)
ATTENTION(bf16_d112, dev::bf16, 112, 0)
ATTENTION(bf16_d128, dev::bf16, 128, 0)
ATTENTION(bf16_d160, dev::bf16, 160, 0)
