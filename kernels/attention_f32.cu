// attention_f32.cu: attention over segments of packed rows, forward and backward, in f32: the oracle mode. Plain
// multiply-adds; a warp holds 16 rows of one side, and its lanes stand for 32 rows of the other.
// math      as in attention_fwd.cu and attention_bwd.cu, whose tables, shapes and arguments these kernels take, but for
//           lse [Rq,H,2]: the largest S of a row and the sum of e^(S - largest); their logarithm would cost P digits
// launch    attention_{fwd,bwd_q,bwd_kv}_f32: grid and block as there, dynamic shared 58112.   Any D <= 160
// requires  no divisibility, no alignment beyond that of a float
// numerics  everything in f32, sums in a fixed order, no atomics => deterministic
// aliasing  nothing overlaps (dk and dv may be columns of one buffer)
#include "attention.cuh"

namespace {
using namespace attention;
constexpr int MOST_D = 160, PITCH = MOST_D + 1, COLUMNS = MOST_D / 32, WEIGHTS = TILE + 1;
constexpr int SHARED = (2 * TILE * PITCH + 2 * MOST_WARPS * STRIP * WEIGHTS) * 4;

struct Shared {
    float *a_s, *b_s;  // [TILE][PITCH]: k and v, or q and dy
    float *p_s, *g_s;  // [STRIP][WEIGHTS] of this warp
};
DEV Shared cut(unsigned char *base) {
    dev::Carve carve{base, 0};
    Shared s;
    s.a_s = dev::take<float>(carve, TILE * PITCH), s.b_s = dev::take<float>(carve, TILE * PITCH);
    const int warp = int(threadIdx.x) / 32 * STRIP * WEIGHTS;
    s.p_s = dev::take<float>(carve, MOST_WARPS * STRIP * WEIGHTS) + warp;
    s.g_s = dev::take<float>(carve, MOST_WARPS * STRIP * WEIGHTS) + warp;
    return s;
}
template <class Source> DEV void load_tile(float *tile_s, const Rows<float> &x, int D, int rows, Source source) {
    for (int i = int(threadIdx.x); i < TILE * D; i += int(blockDim.x)) {
        const int r = i / D, c = i % D;
        tile_s[r * PITCH + c] = r < rows ? x.row(source(r))[c] : 0.f;
    }
}
// s[r] = row r of x . this lane's row of the tile, for the 16 rows from `first` (those beyond `rows` repeat the last).
DEV void products(float (&s)[STRIP], const Rows<float> &x, int first, int rows, const float *tile_s, int D) {
    const float *mine = tile_s + (int(threadIdx.x) & 31) * PITCH;
#pragma unroll
    for (int r = 0; r < STRIP; r++) s[r] = 0.f;
    for (int c = 0; c < D; c++) {
        const float y = mine[c];
#pragma unroll
        for (int r = 0; r < STRIP; r++) s[r] += x.row(first + min(r, rows - 1))[c] * y;
    }
}
// acc[r][i] += sum over the tile's rows t of p[r,t] * tile[t, lane + 32 i]; summed by itself first, which rounds less
DEV void add_weighted(float (&acc)[STRIP][COLUMNS], const float *p_s, const float *tile_s, int D) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        if (lane + 32 * i >= D) continue;
        float part[STRIP] = {};
        for (int t = 0; t < TILE; t++) {
            const float x = tile_s[t * PITCH + lane + 32 * i];
#pragma unroll
            for (int r = 0; r < STRIP; r++) part[r] += p_s[r * WEIGHTS + t] * x;
        }
#pragma unroll
        for (int r = 0; r < STRIP; r++) acc[r][i] += part[r];
    }
}
DEV void store_rows(float *y, size_t stride, int rows, int D, const float (&acc)[STRIP][COLUMNS], float by) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int r = 0; r < STRIP; r++) {
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            float *to = y + size_t(r) * stride + lane + 32 * i;
            if (r < rows && lane + 32 * i < D) *to = acc[r][i] * by;
        }
    }
}
DEV Rows<float> head_of(const float *p, int stride, int column) { return Rows<float>{p + column, size_t(stride)}; }

// What a warp of the forward and of dq works on.
struct Place {
    int D, head, heads, column, key_column, lane, warp;
    size_t width;
    int4 block, strip;
    DEV_METHOD Place(const int4 *blocks, const int4 *strips, int d, int group)
        : D(d), head(int(blockIdx.y)), heads(int(gridDim.y)), column(head * d), key_column(head / group * d),
          lane(int(threadIdx.x) & 31), warp(int(threadIdx.x) / 32),
          width(size_t(heads) * size_t(d)), block(blocks[blockIdx.x]), strip(strips[int(blockIdx.x) * (int(blockDim.x) / 32) + warp]) {}
    DEV_METHOD bool seen(int r, int position) const { return position < min(block.w, strip.z + r); }
    DEV_METHOD uint64_t element(int r, int position) const {
        return ((uint64_t(strip.x + r) * uint64_t(heads) + uint64_t(head)) << 16) + uint64_t(position);
    }
    DEV_METHOD size_t statistic(int r) const { return size_t(strip.x + r) * size_t(heads) + size_t(head); }
};
}  // namespace

DEV_KERNEL(attention_fwd_f32, 32 * MOST_WARPS, SHARED, const float *q, int q_stride, const float *k, int k_stride, const float *v,
           int v_stride, float *y, float *lse, const int4 *blocks, const int4 *strips, int d, float scale, uint64_t seed,
           uint32_t site, uint32_t step, uint32_t threshold, float drop_scale, int group) {
    DEV_DYNAMIC_SHARED(shared);
    const Shared s = cut(shared);
    const Place at(blocks, strips, d, group);
    const Dropout drop{seed, site, step, threshold, drop_scale};
    const int rows = at.strip.y, keys = at.block.w;
    float acc[STRIP][COLUMNS] = {}, top[STRIP], sum[STRIP] = {}, p[STRIP];
#pragma unroll
    for (int r = 0; r < STRIP; r++) top[r] = -dev::infinity();
    for (int first = 0; first < keys; first += TILE) {
        auto source = [&](int r) { return key_row(at.block, first + r); };
        __syncthreads();  // nobody reads the tile before this one
        load_tile(s.a_s, head_of(k, k_stride, at.key_column), d, keys - first, source);
        load_tile(s.b_s, head_of(v, v_stride, at.key_column), d, keys - first, source);
        __syncthreads();
        if (rows == 0) continue;
        products(p, head_of(q, q_stride, at.column), at.strip.x, rows, s.a_s, d);
        __syncwarp();  // the weights of the tile before have been read
#pragma unroll
        for (int r = 0; r < STRIP; r++) {
            const bool seen = at.seen(r, first + at.lane);
            const float x = seen ? p[r] * scale : -dev::infinity();
            const float most = fmaxf(top[r], dev::warp_max(x)), base = most == -dev::infinity() ? 0.f : most;
            const float shrink = expf(top[r] - base), e = seen ? expf(x - base) : 0.f;
            top[r] = most;
            sum[r] = sum[r] * shrink + dev::warp_sum(e);
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) acc[r][i] *= shrink;
            s.p_s[r * WEIGHTS + at.lane] = r < rows ? e * dev::drop_factor(drop, at.element(r, first + at.lane)) : 0.f;
        }
        __syncwarp();
        add_weighted(acc, s.p_s, s.b_s, d);
    }
#pragma unroll
    for (int r = 0; r < STRIP; r++) {
        const bool any = rows > 0 && at.seen(r, 0);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) acc[r][i] = any ? acc[r][i] / sum[r] : 0.f;
        if (at.lane == 0 && r < rows) lse[2 * at.statistic(r)] = top[r], lse[2 * at.statistic(r) + 1] = sum[r];
    }
    store_rows(y + size_t(at.strip.x) * at.width + size_t(at.column), at.width, rows, d, acc, 1.f);
}

DEV_KERNEL(attention_bwd_q_f32, 32 * MOST_WARPS, SHARED, const float *q, int q_stride, const float *k, int k_stride, const float *v,
           int v_stride, const float *y, const float *dy, const float *lse, float *delta, float *dq, int dq_stride,
           const int4 *blocks, const int4 *strips, int d, float scale, uint64_t seed, uint32_t site, uint32_t step,
           uint32_t threshold, float drop_scale, int group) {
    DEV_DYNAMIC_SHARED(shared);
    const Shared s = cut(shared);
    const Place at(blocks, strips, d, group);
    const Dropout drop{seed, site, step, threshold, drop_scale};
    const int rows = at.strip.y, keys = at.block.w;
    float acc[STRIP][COLUMNS] = {}, row_delta[STRIP], p[STRIP], dp[STRIP];
#pragma unroll
    for (int r = 0; r < STRIP; r++) {
        const size_t from = size_t(at.strip.x + r) * at.width + size_t(at.column);
        float sum = 0.f;
        if (r < rows)
            for (int c = at.lane; c < d; c += 32) sum += y[from + size_t(c)] * dy[from + size_t(c)];
        row_delta[r] = dev::warp_sum(sum);
        if (at.lane == 0 && r < rows) delta[at.statistic(r)] = row_delta[r];
    }
    for (int first = 0; first < keys; first += TILE) {
        auto source = [&](int r) { return key_row(at.block, first + r); };
        __syncthreads();  // nobody reads the tile before this one
        load_tile(s.a_s, head_of(k, k_stride, at.key_column), d, keys - first, source);
        load_tile(s.b_s, head_of(v, v_stride, at.key_column), d, keys - first, source);
        __syncthreads();
        if (rows == 0) continue;
        products(p, head_of(q, q_stride, at.column), at.strip.x, rows, s.a_s, d);
        products(dp, head_of(dy, int(at.width), at.column), at.strip.x, rows, s.b_s, d);
        __syncwarp();  // the weights of the tile before have been read
#pragma unroll
        for (int r = 0; r < STRIP; r++) {
            float g = 0.f;
            if (r < rows && at.seen(r, first + at.lane)) {
                const float prob = expf(p[r] * scale - lse[2 * at.statistic(r)]) / lse[2 * at.statistic(r) + 1];
                g = prob * (dp[r] * dev::drop_factor(drop, at.element(r, first + at.lane)) - row_delta[r]);
            }
            s.p_s[r * WEIGHTS + at.lane] = g;
        }
        __syncwarp();
        add_weighted(acc, s.p_s, s.a_s, d);
    }
    store_rows(dq + size_t(at.strip.x) * size_t(dq_stride) + size_t(at.column), size_t(dq_stride), rows, d, acc, scale);
}

DEV_KERNEL(attention_bwd_kv_f32, 32 * MOST_WARPS, SHARED, const float *q, int q_stride, const float *k, int k_stride, const float *v,
           int v_stride, const float *dy, const float *lse, const float *delta, float *dk, int dk_stride, float *dv, int dv_stride,
           const int4 *tiles, const int4 *steps, int d, float scale, uint64_t seed, uint32_t site, uint32_t step, uint32_t threshold,
           float drop_scale, int group) {
    DEV_DYNAMIC_SHARED(shared);
    const Shared s = cut(shared);
    const Dropout drop{seed, site, step, threshold, drop_scale};
    const int heads = int(gridDim.y) * group, key_column = int(blockIdx.y) * d, lane = int(threadIdx.x) & 31;
    const int4 tile = tiles[blockIdx.x];
    const int key = int(threadIdx.x) / 32 * STRIP, k_row = tile.x + key, rows = max(0, min(STRIP, tile.y - key));
    float dk_r[STRIP][COLUMNS] = {}, dv_r[STRIP][COLUMNS] = {}, p[STRIP], g[STRIP];
    const int own_steps = tile.w - tile.z;
    for (int i = 0; i < own_steps * group; i++) {
        const int4 now = steps[tile.z + i % own_steps];
        const int head = int(blockIdx.y) * group + i / own_steps, column = head * d;
        auto source = [&](int r) { return now.x + r; };
        __syncthreads();  // nobody reads the rows before these
        load_tile(s.a_s, head_of(q, q_stride, column), d, now.y, source);
        load_tile(s.b_s, head_of(dy, heads * d, column), d, now.y, source);
        __syncthreads();
        if (rows == 0) continue;
        products(p, head_of(k, k_stride, key_column), k_row, rows, s.a_s, d);
        products(g, head_of(v, v_stride, key_column), k_row, rows, s.b_s, d);
        const size_t statistic = size_t(now.x + lane) * size_t(heads) + size_t(head);  // of this lane's query row
        const float top = lane < now.y ? lse[2 * statistic] : 0.f, sum = lane < now.y ? lse[2 * statistic + 1] : 1.f;
        const float row_delta = lane < now.y ? delta[statistic] : 0.f;
        const uint64_t element = (uint64_t(statistic) << 16) + uint64_t(now.z + key);
        __syncwarp();  // the weights of the step before have been read
#pragma unroll
        for (int c = 0; c < STRIP; c++) {
            const bool seen = lane < now.y && c < rows && key + c <= lane + now.w;
            const float prob = seen ? expf(p[c] * scale - top) / sum : 0.f;
            const float factor = seen ? dev::drop_factor(drop, element + uint64_t(c)) : 0.f;
            s.p_s[c * WEIGHTS + lane] = prob * factor;
            s.g_s[c * WEIGHTS + lane] = seen ? prob * (g[c] * factor - row_delta) : 0.f;
        }
        __syncwarp();
        add_weighted(dv_r, s.p_s, s.b_s, d);
        add_weighted(dk_r, s.g_s, s.a_s, d);
    }
    store_rows(dk + size_t(k_row) * size_t(dk_stride) + size_t(key_column), size_t(dk_stride), rows, d, dk_r, scale);
    store_rows(dv + size_t(k_row) * size_t(dv_stride) + size_t(key_column), size_t(dv_stride), rows, d, dv_r, 1.f);
}
