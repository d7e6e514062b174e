// attention_whole.cu: attention over segments of packed rows, forward, in 16 bits, where no set has more than 264 keys: all
// keys and values of a set lie in shared memory, and whole rows of scores in registers. One softmax, no rescaling.
// math      as in src/ops/attention.rs: S = scale q k^T, P = softmax(S), y = (P m) v, lse = log sum e^S; per head
// shapes    q [Rq,H*D] rows of q_stride elements, k, v likewise of k_stride, v_stride; y [Rq,H*D]; lse [Rq,H] f32
//           sets, members [G], strips of int4: see attention.cuh
// launch    grid (G, H), a block of 128 for all strips of a set: 64 rows at a time, a strip a warp; dynamic shared as declared
//           (68864 for d64, 98928 for d88)
//           name attention_whole_{f16,bf16}_{d64,d88}; D as named
// requires  the strides and the columns at which q, k and v begin: multiples of 8; their addresses and y's 16-byte aligned.
//           Every query row in exactly one strip, at most 264 keys a set; rows that see no key get y = 0, lse = 0
// numerics  S, softmax and sums in f32; P rounded to T, before its division by the sum, for the product with v. Order fixed =>
//           deterministic. In a causal set a row multiplies what it does not see of v by 0, which leaves a NaN one
// aliasing  nothing overlaps
#include "attention.cuh"

namespace {
using namespace attention;
constexpr int KEYS = 264, BLOCKS = KEYS / 8, TILES = (KEYS + TILE - 1) / TILE;
constexpr int V_KEYS = 272;  // a product with v takes 16 keys at a time
constexpr int K_ROWS = KEYS + 1, V_ROWS = V_KEYS + 1;  // odd: the pieces of a row lie in different banks
constexpr int ALL = 1 << 30, THREADS = 32 * MOST_WARPS;
template <int D> struct Whole {
    static constexpr int STEPS = (D + 15) / 16, QUADS = (D + 31) / 32, COLUMNS = D / 8;  // of 16, 32 and 8 columns
    static constexpr int SHARED = (2 * STEPS * K_ROWS + COLUMNS * V_ROWS) * 16;
};

// Starts copying positions 0 .. COUNT-1 of a set, a range of rows after the other; zeros from its keys and from D on.
template <int D, int PIECES, int COUNT, int ROWS, class T> DEV void copy_keys(T *x_s, const Rows<T> &x, const int4 &set) {
    constexpr int LANES = PIECES > 8 ? 16 : 8, STEP = THREADS / LANES;  // threads of a row, rows at a time
    const int piece = int(threadIdx.x) % LANES, own = int(threadIdx.x) / LANES;
    auto copy = [&](int from, int to, int row, bool valid) {
        const T *x_at = valid ? x.row(row + own) + piece * 8 : x.p;
        const size_t step = valid ? STEP * x.stride : 0;
        T *at = x_s + (piece * ROWS + from + own) * 8;
#pragma unroll 4
        for (int r = from + own; r < to; r += STEP, x_at += step, at += STEP * 8) dev::cp_async16(at, x_at, valid);
    };
    if (piece < PIECES) {
        copy(0, set.y, set.x, piece * 8 < D);
        copy(set.y, set.w, set.z, piece * 8 < D);
        copy(set.w, COUNT, 0, false);
    }
    dev::cp_async_commit();
}

// Lane t of four holds word i of piece t, and gets word t of piece i; or the other way round.
DEV void transpose4(uint32_t (&w)[4]) {
    const bool low = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, low ? w[i] : w[i + 1], 1);
        w[i] = low ? other : w[i];
        w[i + 1] = low ? w[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
        w[i] = high ? other : w[i];
        w[i + 2] = high ? w[i + 2] : other;
    }
}

// The rows of a strip, lane/4 and 8 more, piece 4j + lane%4 in each [j]: 16 bytes a lane. Zeros beyond its rows and D.
template <int D, class T> DEV void load_rows(uint4 (&raw)[2][Whole<D>::QUADS], const Rows<T> &q, const int4 &strip) {
    const int lane = int(threadIdx.x) & 31, c = (lane & 3) * 8;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = lane / 4 + half * 8;
        const T *row = q.row(strip.x + r) + c;
#pragma unroll
        for (int j = 0; j < Whole<D>::QUADS; j++)
            raw[half][j] = r < strip.y && j * 32 + c < D ? dev::ld16(row + j * 32) : make_uint4(0, 0, 0, 0);
    }
}

// The same as A operands. The scale's sign goes into them: what is left of it is positive, and a maximum stays one.
template <int D> DEV void to_fragments(uint32_t (&q_r)[Whole<D>::STEPS][4], const uint4 (&raw)[2][Whole<D>::QUADS], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < Whole<D>::QUADS; j++) {
            uint32_t w[4] = {raw[half][j].x, raw[half][j].y, raw[half][j].z, raw[half][j].w};
            transpose4(w);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (2 * j + i / 2 < Whole<D>::STEPS) q_r[2 * j + i / 2][half + 2 * (i & 1)] = w[i];
        }
    const uint32_t flip = scale < 0.f ? 0x80008000u : 0u, keep = scale == 0.f ? 0u : ~0u;
#pragma unroll
    for (int i = 0; i < 4 * Whole<D>::STEPS; i++) q_r[i / 4][i & 3] = (q_r[i / 4][i & 3] ^ flip) & keep;
}

// Which scores dropout keeps: 16 bits of kept_of_queries for each 32 keys, from bit 16 on.
DEV void kept_of_row(uint32_t (&kept)[(TILES + 2) / 2], const Dropout &drop, uint64_t element, uint64_t row_elements) {
    constexpr int WORDS = (TILES + 2) / 2;
#pragma unroll 1
    for (int tile = 0; tile < TILES; tile++) {  // every word moves down: an index known only at run time would not do
#pragma unroll
        for (int i = 0; i + 1 < WORDS; i++) kept[i] = kept[i] >> 16 | kept[i + 1] << 16;
        kept[WORDS - 1] = kept[WORDS - 1] >> 16 | kept_of_queries(drop, element, row_elements, tile * TILE) << 16;
    }
}

// -inf at and beyond each row's limit; `least`: keys that all rows of the warp see.
DEV void mask(float (&s)[BLOCKS][4], int least, const int (&limit)[2]) {
    const int column = (int(threadIdx.x) & 3) * 2;
    if (least < KEYS - 8)
#pragma unroll
        for (int i = 0; i < 4 * (BLOCKS - 1); i++)
            if ((i / 4) * 8 + (i & 1) >= limit[i >> 1 & 1] - column) s[i / 4][i & 3] = -dev::infinity();
#pragma unroll
    for (int i = 0; i < 4; i++)
        if ((BLOCKS - 1) * 8 + (i & 1) >= limit[i >> 1 & 1] - column) s[BLOCKS - 1][i] = -dev::infinity();
}

// The largest score of each row, times `scale`.
DEV void row_maxima(float (&base)[2], const float (&s)[BLOCKS][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = -dev::infinity();
#pragma unroll
        for (int n = 0; n < BLOCKS; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        base[half] = top == -dev::infinity() ? 0.f : top * scale;  // all of s is -inf, and e^s is 0
    }
}

// y of a strip = acc times by[half].
template <int D, class T>
DEV void store_rows(T *y, size_t stride, int rows, const float (&acc)[Whole<D>::COLUMNS][4], const float (&by)[2]) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = lane / 4 + half * 8, c = (lane & 3) * 8;
        T *row = y + size_t(r) * stride + c;
        uint4 out[Whole<D>::QUADS];
#pragma unroll
        for (int j = 0; j < Whole<D>::QUADS; j++) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int n = min(4 * j + i, Whole<D>::COLUMNS - 1);
                w[i] = dev::pack2<T>(acc[n][2 * half] * by[half], acc[n][2 * half + 1] * by[half]);
            }
            transpose4(w);
            out[j] = make_uint4(w[0], w[1], w[2], w[3]);
        }
        if (r < rows)
#pragma unroll
            for (int j = 0; j < Whole<D>::QUADS; j++)
                if (j * 32 + c < D) dev::st16(row + j * 32, out[j]);
    }
}

template <class T, int D>
DEV void forward(const Rows<T> &all_q, const Rows<T> &all_k, const Rows<T> &all_v, T *y, float *lse, const int4 *sets,
                 const int4 *members, const int4 *strips, float scale, const Dropout &drop) {
    constexpr int STEPS = Whole<D>::STEPS, COLUMNS = Whole<D>::COLUMNS, LOW = 136;  // scores of 136 and of 128 keys at a time
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    T *k_s = dev::take<T>(carve, 2 * STEPS * K_ROWS * 8), *v_s = dev::take<T>(carve, COLUMNS * V_ROWS * 8);
    const auto k_pieces = dev::pieces<K_ROWS>(k_s);
    const auto v_pieces = dev::pieces<V_ROWS>(v_s);
    // All heads of a set one after another: what they read are neighbours.
    const int heads = int(gridDim.y), block = int(blockIdx.y * gridDim.x + blockIdx.x), head = block % heads, column = head * D;
    const Rows<T> q{all_q.p + column, all_q.stride}, k{all_k.p + column, all_k.stride}, v{all_v.p + column, all_v.stride};
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32;
    const int4 set = sets[block / heads], member = members[block / heads];
    const size_t width = size_t(heads) * size_t(D);
    auto strip_at = [&](int tile) { return tile + warp < member.y ? strips[tile + warp] : int4{0, 0, ALL, 0}; };
    int4 strip = strip_at(member.x);
    uint4 raw[2][Whole<D>::QUADS];
    load_rows<D>(raw, q, strip);
    copy_keys<D, 2 * STEPS, KEYS, K_ROWS>(k_s, k, set);
    copy_keys<D, COLUMNS, V_KEYS, V_ROWS>(v_s, v, set);
    dev::cp_async_wait<1>();
    dev::shared_written();
    __syncthreads();  // the keys have arrived
    for (int tile = member.x; tile < member.y; tile += MOST_WARPS) {
        const int4 next = strip_at(tile + MOST_WARPS);
        const float to_log2 = scale == 0.f ? dev::LOG2_E : fabsf(scale) * dev::LOG2_E;
        uint32_t q_r[STEPS][4];
        float s[BLOCKS][4];
        to_fragments<D>(q_r, raw, scale);
        dev::wg_begin();
#pragma unroll
        for (int i = 0; i < STEPS; i++) {  // S = q k^T  [64,264]
            dev::wg_rows<LOW>(s, q_r[i], k_pieces.at(0, 2 * i), i > 0);
            dev::wg_rows<KEYS - LOW>(s + LOW / 8, q_r[i], k_pieces.at(LOW, 2 * i), i > 0);
        }
        dev::wg_commit();
        uint32_t kept[(TILES + 2) / 2] = {};
        const uint64_t element = (uint64_t(strip.x) * uint64_t(heads) + uint64_t(head)) << 16;
        if (drop.threshold) kept_of_row(kept, drop, element, uint64_t(heads) << 16);
        dev::wg_end(s);
        const int limit[2] = {min(set.w, strip.z + lane / 4), min(set.w, strip.z + lane / 4 + 8)};
        mask(s, min(set.w, strip.z), limit);
        float base[2], sum[2] = {}, acc[COLUMNS][4];
        row_maxima(base, s, to_log2);
        if (tile == member.x) {
            dev::cp_async_wait<0>();
            dev::shared_written();
            __syncthreads();  // the values have arrived
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            constexpr int TILE_SCORES = 4 * TILE / 8;
            float e[TILE / 8][4];  // s - maximum, its power, what dropout leaves of it
#pragma unroll
            for (int i = 0; i < TILE_SCORES; i++) {
                const int n = 4 * t + i / 4, half = i >> 1 & 1;
                e[i / 4][i & 3] = n < BLOCKS ? dev::fast_exp2(fmaf(s[min(n, BLOCKS - 1)][i & 3], to_log2, -base[half])) : 0.f;
                sum[half] += e[i / 4][i & 3];
            }
            dev::now(sum[0]);
            dev::now(sum[1]);
            if (drop.threshold)
#pragma unroll
                for (int i = 0; i < TILE_SCORES; i++) {
                    const int bit = 16 * (t + 1) + i;
                    if (!(kept[bit / 32] >> (bit & 31) & 1u)) e[i / 4][i & 3] = 0.f;
                }
            uint32_t p[2][4];
#pragma unroll
            for (int i = 0; i < 8; i++)
                p[i / 4][i & 3] = dev::pack2<T>(e[i / 2][2 * (i & 1)], e[i / 2][2 * (i & 1) + 1]);
            if (t == TILES / 2) load_rows<D>(raw, q, next);  // half of s is no longer needed
            dev::wg_begin();
#pragma unroll
            for (int j = 0; j < 2; j++)  // y = P v  [64,D]
                if (t * TILE + j * 16 < KEYS) dev::wg_columns<D>(acc, p[j], v_pieces.at(t * TILE + j * 16, 0), t + j > 0);
            dev::wg_commit();
        }
        float by[2];
        finish_rows(by, sum, base, set.w > 0, drop, lse, strip, head, heads);
        dev::wg_end(acc);
        store_rows<D>(y + size_t(strip.x) * width + size_t(column), width, strip.y, acc, by);
        strip = next;
    }
}
}  // namespace

#define ATTENTION(NAME, T, D)                                                                                               \
    DEV_KERNEL(attention_whole_##NAME, THREADS, Whole<D>::SHARED, const T *q, int q_stride, const T *k, int k_stride,       \
               const T *v, int v_stride, T *y, float *lse, const int4 *sets, const int4 *members, const int4 *strips,       \
               float scale, uint64_t seed, uint32_t site, uint32_t step, uint32_t threshold, float drop_scale) {            \
        forward<T, D>(Rows<T>{q, size_t(q_stride)}, Rows<T>{k, size_t(k_stride)}, Rows<T>{v, size_t(v_stride)}, y, lse,     \
                      sets, members, strips, scale, Dropout{seed, site, step, threshold, drop_scale});                      \
    }
ATTENTION(f16_d64, dev::f16, 64)
ATTENTION(f16_d88, dev::f16, 88)
ATTENTION(bf16_d64, dev::bf16, 64)
ATTENTION(bf16_d88, dev::bf16, 88)
