// attention_bwd.cu: attention over segments of packed rows, backward, in 16 bits. P is computed again from lse; no
// atomics: dq has an owner for every query row, dk and dv one for every key row, which adds up over all segments.
// math      as in src/ops/attention.rs: delta = sum_D(dy y); dP = (dy v^T) m; dS = P (dP - delta);
//           dq = scale dS k;  dk = scale dS^T q;  dv = (P m)^T dy
// shapes    as in attention_fwd.cu; dy as y; delta [Rq,H] f32; dq, dk, dv rows of their own strides
//           blocks, strips, tiles, steps of int4: see attention.cuh
// launch    attention_bwd_q: grid (G, H), block 32*W, the forward's blocks and strips; it writes delta for
//           attention_bwd_kv: grid (tiles, H), block 32*W with W*16 keys a tile; after it.  dynamic shared as declared
//           (grid (tiles, H/group): a block adds up over the query heads of its key head too)
//           names attention_bwd_{q,kv}_{f16,bf16}_{d32,..} as in attention_fwd.cu
// requires  as in attention_fwd.cu, for dy, y and the gradients too. Every query row in exactly one strip, every key row
//           in exactly one tile (a tile without steps gets zeros)
// numerics  P, dP, dS and all sums in f32; P m and dS rounded to T for their products. Order fixed => deterministic
// aliasing  nothing overlaps (dk and dv may be columns of one buffer)
#include "attention.cuh"

namespace {
using namespace attention;

// delta of the strip rows lane/4 and lane/4 + 8: sum_D(dy y), in all four lanes of a row.
template <int STEPS, class T> DEV void row_products(float (&sum)[2], const uint32_t (&dy)[STEPS][4], const uint32_t (&y)[STEPS][4], const T *type) {
    sum[0] = sum[1] = 0.f;
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[i & 1] += dev::from_bits16(dy[k][i] & 0xffffu, type) * dev::from_bits16(y[k][i] & 0xffffu, type);
            sum[i & 1] += dev::from_bits16(dy[k][i] >> 16, type) * dev::from_bits16(y[k][i] >> 16, type);
        }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    }
}

template <class T, int DP, int HEAD>
DEV void backward_q(const Rows<T> &all_q, const Rows<T> &all_k, const Rows<T> &all_v, const T *y, const T *dy, const float *lse,
                    float *delta, T *dq, int dq_stride, const int4 *blocks, const int4 *strips, int d, float scale, const Dropout &drop,
                    int group) {
    constexpr int STAGE = Sizes<DP>::STAGE, PITCH = Sizes<DP>::PITCH;
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    T *k_s = dev::take<T>(carve, 2 * STAGE), *v_s = dev::take<T>(carve, 2 * STAGE);
    const int D = HEAD ? HEAD : d, head = int(blockIdx.y), heads = int(gridDim.y), column = head * D,
              key_column = head / group * D;
    const Rows<T> q{all_q.p + column, all_q.stride}, k{all_k.p + key_column, all_k.stride}, v{all_v.p + key_column, all_v.stride};
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
    const int4 block = blocks[blockIdx.x], strip = strips[int(blockIdx.x) * warps + warp];
    const int keys = block.w, q_row = strip.x, rows = strip.y;
    const int most = rows > 0 ? min(keys, strip.z + rows - 1) : 0;
    auto start_copy = [&](int tile) {
        const int stage = (tile & 1) * STAGE, first = tile * TILE;
        auto source = [&](int r) { return key_row(block, first + r); };
        copy_tile<DP>(k_s + stage, k, D, keys - first, source);
        copy_tile<DP>(v_s + stage, v, D, keys - first, source);
        dev::cp_async_commit();
    };
    if (keys > 0) start_copy(0);
    const size_t width = size_t(heads) * size_t(D);
    uint32_t q_r[DP / 16][4], dy_r[DP / 16][4];
    float row_delta[2], norm[2] = {};
    load_strip(q_r, Rows<T>{y + column, width}, q_row, rows, D);  // y for a moment
    load_strip(dy_r, Rows<T>{dy + column, width}, q_row, rows, D);
    row_products(row_delta, dy_r, q_r, y);
    load_strip(q_r, q, q_row, rows, D);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = lane / 4 + half * 8;
        const size_t at = size_t(q_row + r) * size_t(heads) + size_t(head);
        if (r < rows) norm[half] = lse[at] * dev::LOG2_E;
        if (r < rows && (lane & 3) == 0) delta[at] = row_delta[half];
    }
    const uint64_t row_elements = uint64_t(heads) << 16, element = (uint64_t(q_row) * uint64_t(heads) + uint64_t(head)) << 16;
    float acc[DP / 8][4] = {};
    for (int tile = 0; tile * TILE < keys; tile++) {
        dev::cp_async_wait<0>();
        __syncthreads();  // this tile has arrived, and the other stage is no longer read
        if ((tile + 1) * TILE < keys) start_copy(tile + 1);
        const int first = tile * TILE, stage = (tile & 1) * STAGE;
        if (first >= most) continue;
        const uint32_t kept = drop.threshold ? kept_of_queries(drop, element, row_elements, first) : 0xffffu;
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            if (first + j * 16 >= most) continue;
            float p[2][4], dp[2][4];
            rows_product<DP>(p, q_r, k_s + stage + j * 16 * PITCH);
            rows_product<DP>(dp, dy_r, v_s + stage + j * 16 * PITCH);
#pragma unroll
            for (int i = 0; i < 8; i++) {  // p becomes dS
                const int half = i >> 1 & 1, c = first + j * 16 + (i / 4) * 8 + (lane & 3) * 2 + (i & 1);
                const bool seen = c < min(keys, strip.z + lane / 4 + half * 8);
                const float prob = dev::fast_exp2(p[i / 4][i & 3] * scale * dev::LOG2_E - norm[half]);
                const float grad = kept >> (8 * j + i) & 1u ? dp[i / 4][i & 3] * drop.scale : 0.f;
                p[i / 4][i & 3] = seen ? prob * (grad - row_delta[half]) : 0.f;
            }
            columns_product<DP>(acc, p, k_s + stage + j * 16 * PITCH, D);
        }
    }
    const float by[2] = {scale, scale};
    store_strip<DP>(dq + size_t(q_row) * size_t(dq_stride) + size_t(column), size_t(dq_stride), rows, D, acc, by);
}

template <class T, int DP, int HEAD>
DEV void backward_kv(const Rows<T> &all_q, const Rows<T> &all_k, const Rows<T> &all_v, const T *dy, const float *lse,
                     const float *delta, T *dk, int dk_stride, T *dv, int dv_stride, const int4 *tiles, const int4 *steps, int d,
                     float scale, const Dropout &drop, int group) {
    constexpr int STAGE = Sizes<DP>::STAGE, PITCH = Sizes<DP>::PITCH;
    DEV_SHARED(float, norm_s, [2][TILE]);
    DEV_SHARED(float, delta_s, [2][TILE]);
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    T *q_s = dev::take<T>(carve, 2 * STAGE), *dy_s = dev::take<T>(carve, 2 * STAGE);
    const int D = HEAD ? HEAD : d, first_head = int(blockIdx.y) * group, heads = int(gridDim.y) * group, column = int(blockIdx.y) * D;
    const size_t width = size_t(heads) * size_t(D);
    const Rows<T> k{all_k.p + column, all_k.stride}, v{all_v.p + column, all_v.stride};
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32;
    const int4 tile = tiles[blockIdx.x];
    const int k_row = tile.x + warp * STRIP, rows = max(0, min(STRIP, tile.y - warp * STRIP));
    const int own_steps = tile.w - tile.z, all_steps = own_steps * group;  // of a query head, of all that read this key head
    auto start_copy = [&](int i) {
        const int4 step = steps[tile.z + i % own_steps];
        const int stage = i & 1, head = first_head + i / own_steps;
        auto source = [&](int r) { return step.x + r; };
        copy_tile<DP>(q_s + stage * STAGE, Rows<T>{all_q.p + head * D, all_q.stride}, D, step.y, source);
        copy_tile<DP>(dy_s + stage * STAGE, Rows<T>{dy + head * D, width}, D, step.y, source);
        dev::cp_async_commit();
        for (int r = int(threadIdx.x); r < TILE; r += int(blockDim.x)) {
            const size_t at = size_t(step.x + r) * size_t(heads) + size_t(head);
            norm_s[stage][r] = r < step.y ? lse[at] * dev::LOG2_E : 0.f;
            delta_s[stage][r] = r < step.y ? delta[at] : 0.f;
        }
    };
    if (all_steps > 0) start_copy(0);
    // Wide heads leave no registers for keys and values beside dk and dv: they are read again for every 16 rows.
    constexpr bool KEPT = DP <= 128;
    uint32_t k_r[DP / 16][4], v_r[DP / 16][4];
    if (KEPT) {
        load_strip(k_r, k, k_row, rows, D);
        load_strip(v_r, v, k_row, rows, D);
    }
    float dk_r[DP / 8][4] = {}, dv_r[DP / 8][4] = {};
    for (int i = 0; i < all_steps; i++) {
        dev::cp_async_wait<0>();
        __syncthreads();  // this step's rows have arrived, and the other stage is no longer read
        if (i + 1 < all_steps) start_copy(i + 1);
        const int4 step = steps[tile.z + i % own_steps];
        const int stage = i & 1, head = first_head + i / own_steps, key = warp * STRIP;  // the warp's first key within the tile
        if (rows == 0 || key > step.y - 1 + step.w) continue;  // no row of the step sees the warp's keys
        const uint64_t row_elements = uint64_t(heads) << 16;
        const uint64_t element = ((uint64_t(step.x) * uint64_t(heads) + uint64_t(head)) << 16) + uint64_t(step.z + key);
        const uint32_t kept = drop.threshold ? kept_of_keys(drop, element, row_elements) : 0xffffu;
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            if (j * 16 >= step.y) continue;
            float p[2][4], ds[2][4];
            const T *q_j = q_s + stage * STAGE + j * 16 * PITCH, *dy_j = dy_s + stage * STAGE + j * 16 * PITCH;
            if (KEPT) {
                rows_product<DP>(p, k_r, q_j);
                rows_product<DP>(ds, v_r, dy_j);
            } else {
                rows_product_of<DP>(p, k, k_row, rows, D, q_j);
                rows_product_of<DP>(ds, v, k_row, rows, D, dy_j);
            }
#pragma unroll
            for (int e = 0; e < 8; e++) {  // p becomes P m, ds becomes dS
                const int r = j * 16 + (e / 4) * 8 + (lane & 3) * 2 + (e & 1), c = key + lane / 4 + (e >> 1 & 1) * 8;
                float &x = p[e / 4][e & 3], &g = ds[e / 4][e & 3];
                const bool seen = r < step.y && c <= r + step.w, keep = kept >> (8 * j + e) & 1u;
                const float prob = seen ? dev::fast_exp2(x * scale * dev::LOG2_E - norm_s[stage][r]) : 0.f;
                g = seen ? prob * ((keep ? g * drop.scale : 0.f) - delta_s[stage][r]) : 0.f;
                x = keep ? prob : 0.f;
            }
            columns_product<DP>(dv_r, p, dy_j, D);
            columns_product<DP>(dk_r, ds, q_j, D);
        }
    }
    const float by_k[2] = {scale, scale}, by_v[2] = {drop.scale, drop.scale};
    store_strip<DP>(dk + size_t(k_row) * size_t(dk_stride) + size_t(column), size_t(dk_stride), rows, D, dk_r, by_k);
    store_strip<DP>(dv + size_t(k_row) * size_t(dv_stride) + size_t(column), size_t(dv_stride), rows, D, dv_r, by_v);
}
}  // namespace

#define ATTENTION(NAME, T, DP, HEAD)                                                                                        \
    DEV_KERNEL(attention_bwd_q_##NAME, 32 * MOST_WARPS, Sizes<DP>::SHARED, const T *q, int q_stride, const T *k,            \
               int k_stride, const T *v, int v_stride, const T *y, const T *dy, const float *lse, float *delta, T *dq,      \
               int dq_stride, const int4 *blocks, const int4 *strips, int d, float scale, uint64_t seed, uint32_t site,     \
               uint32_t step, uint32_t threshold, float drop_scale, int group) {                                            \
        backward_q<T, DP, HEAD>(Rows<T>{q, size_t(q_stride)}, Rows<T>{k, size_t(k_stride)}, Rows<T>{v, size_t(v_stride)}, y, \
                                dy, lse, delta, dq, dq_stride, blocks, strips, d, scale,                                    \
                                Dropout{seed, site, step, threshold, threshold ? drop_scale : 1.f}, group);                 \
    }                                                                                                                       \
    DEV_KERNEL(attention_bwd_kv_##NAME, 32 * MOST_WARPS, Sizes<DP>::SHARED, const T *q, int q_stride, const T *k,           \
               int k_stride, const T *v, int v_stride, const T *dy, const float *lse, const float *delta, T *dk,            \
               int dk_stride, T *dv, int dv_stride, const int4 *tiles, const int4 *steps, int d, float scale,               \
               uint64_t seed, uint32_t site, uint32_t step, uint32_t threshold, float drop_scale, int group) {              \
        backward_kv<T, DP, HEAD>(Rows<T>{q, size_t(q_stride)}, Rows<T>{k, size_t(k_stride)}, Rows<T>{v, size_t(v_stride)},  \
                                 dy, lse, delta, dk, dk_stride, dv, dv_stride, tiles, steps, d, scale,                      \
                                 Dropout{seed, site, step, threshold, threshold ? drop_scale : 1.f}, group);                \
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
