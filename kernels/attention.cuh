// attention.cuh: what the attention kernels share: the tables they work from, tiles in shared memory, fragments, dropout.
//
// A segment of src/ops/attention.rs lets query rows see the key rows of a and then of b; the keys it sees are numbered
// 0, 1, .. in that order (their *position*). src/device/attention.rs turns the segments into these tables of int4:
//   strip  {q_row, rows, first, -}       up to 16 query rows; row r sees the positions below first + r, and below the
//                                        block's keys (first is huge where nothing is causal)
//   block  {a_row, a_rows, b_row, keys}  the keys of all strips of a block: position j is row a_row + j, from a_rows on
//                                        row b_row + j - a_rows.     Warp w of block x takes strip x * warps + w
//   set    a block, once for all strips that see its keys; member {begin, end, -, -}: these strips
//   tile   {k_row, rows, begin, end}     up to 16 key rows a warp, one block, and its steps begin .. end
//   step   {q_row, rows, key, diagonal}  up to 32 query rows that see the tile, whose first key has position `key` there;
//                                        row r sees the tile's keys 0 .. r + diagonal
// Dropout's element number is ((query row * heads + head) << 16) + position.
#pragma once
#include "dev.cuh"

namespace attention {
using dev::Dropout;
constexpr int TILE = 32;     // keys (or, for dk and dv, query rows) in shared memory at a time
constexpr int STRIP = 16;    // rows of a warp
constexpr int MOST_WARPS = 4;

// The order of magnitude of everything: head size D <= DP = the next multiple of 16; rows of a tile lie PITCH elements
// apart, an odd number of 16-byte pieces, so that the eight rows of an ldmatrix meet eight different banks.
template <int DP> struct Sizes {
    static constexpr int PITCH = DP + 8;
    static constexpr int STAGE = TILE * PITCH;         // elements of one tile
    static constexpr int SHARED = 2 * 2 * STAGE * 2;   // two tiles, two stages, 16 bits
};

// One operand: rows of `stride` elements, p at the head's first column.
template <class T> struct Rows {
    const T *p;
    size_t stride;
    DEV_METHOD const T *row(int r) const { return p + size_t(r) * stride; }
};

// The row of a key position.
DEV int key_row(const int4 &block, int position) {
    return position < block.y ? block.x + position : block.z + position - block.y;
}

// Starts copying 32 rows of D columns, row r from source(r); rows from `rows` on and columns from D on become zeros.
template <int DP, class T, class Source> DEV void copy_tile(T *tile_s, const Rows<T> &x, int D, int rows, Source source) {
    constexpr int PIECES = DP / 8;
    for (int i = int(threadIdx.x); i < TILE * PIECES; i += int(blockDim.x)) {
        const int r = i / PIECES, c = i % PIECES * 8;
        const bool valid = r < rows && c < D;
        dev::cp_async16(tile_s + r * Sizes<DP>::PITCH + c, valid ? x.row(source(r)) + c : x.p, valid);
    }
}

// The 16 rows of a warp as A operands of mma, straight from global memory; zeros beyond `rows` and D.
template <int STEPS, class T> DEV void load_strip(uint32_t (&f)[STEPS][4], const Rows<T> &x, int first, int rows, int D) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = lane / 4 + (i & 1) * 8, c = k * 16 + (lane & 3) * 2 + (i >> 1) * 8;
            f[k][i] = r < rows && c < D ? dev::ld4(x.row(first + r) + c) : 0u;
        }
}

// s[2][4] = a [16,DP] @ (16 rows of a tile from `row_s` on)^T: two 16x8 results side by side.
template <int DP, class T> DEV void rows_product(float (&s)[2][4], const uint32_t (&a)[DP / 16][4], const T *row_s) {
    const int lane = int(threadIdx.x) & 31;
    const T *at = row_s + ((lane & 7) + (lane >> 4) * 8) * Sizes<DP>::PITCH + (lane >> 3 & 1) * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) s[i / 4][i & 3] = 0.f;
#pragma unroll
    for (int k = 0; k < DP / 16; k++) {
        uint32_t b[4];
        dev::ldmatrix_x4(b, at + k * 16);
        dev::mma(s[0], a[k], b[0], b[1], row_s);
        dev::mma(s[1], a[k], b[2], b[3], row_s);
    }
}

// The same with the warp's rows read where they are used: for heads so wide that no registers are left to keep them in.
template <int DP, class T>
DEV void rows_product_of(float (&s)[2][4], const Rows<T> &x, int first, int rows, int D, const T *row_s) {
    const int lane = int(threadIdx.x) & 31;
    const T *at = row_s + ((lane & 7) + (lane >> 4) * 8) * Sizes<DP>::PITCH + (lane >> 3 & 1) * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) s[i / 4][i & 3] = 0.f;
#pragma unroll 2
    for (int k = 0; k < DP / 16; k++) {
        uint32_t a[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = lane / 4 + (i & 1) * 8, c = k * 16 + (lane & 3) * 2 + (i >> 1) * 8;
            a[i] = r < rows && c < D ? dev::ld4(x.row(first + r) + c) : 0u;
        }
        dev::ldmatrix_x4(b, at + k * 16);
        dev::mma(s[0], a, b[0], b[1], row_s);
        dev::mma(s[1], a, b[2], b[3], row_s);
    }
}

// acc [16,D] += p [16,16] @ (16 rows of a tile); p rounded to T.
template <int DP, class T> DEV void columns_product(float (&acc)[DP / 8][4], const float (&p)[2][4], const T *row_s, int D) {
    const int lane = int(threadIdx.x) & 31;
    const uint32_t a[4] = {dev::pack2<T>(p[0][0], p[0][1]), dev::pack2<T>(p[0][2], p[0][3]),
                           dev::pack2<T>(p[1][0], p[1][1]), dev::pack2<T>(p[1][2], p[1][3])};
    const T *at = row_s + ((lane & 7) + (lane >> 3 & 1) * 8) * Sizes<DP>::PITCH + (lane >> 4) * 8;
#pragma unroll
    for (int d = 0; d < DP / 16; d++) {
        if (d * 16 >= D) continue;
        uint32_t b[4];
        dev::ldmatrix_x4_trans(b, at + d * 16);
        dev::mma(acc[2 * d], a, b[0], b[1], row_s);
        if (d * 16 + 8 < D) dev::mma(acc[2 * d + 1], a, b[2], b[3], row_s);
    }
}

// The rows of a warp's accumulators, times `by[half]`, to y; rows from `rows` on are not written.
template <int DP, class T>
DEV void store_strip(T *y, size_t stride, int rows, int D, const float (&acc)[DP / 8][4], const float (&by)[2]) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = lane / 4 + half * 8;
        if (r >= rows) continue;
#pragma unroll
        for (int d = 0; d < DP / 8; d++) {
            const int c = d * 8 + (lane & 3) * 2;
            if (d * 8 >= D) continue;
            T *to = y + size_t(r) * stride + c;
            dev::st4(to, dev::pack2<T>(acc[d][2 * half] * by[half], acc[d][2 * half + 1] * by[half]));
        }
    }
}

// The ends of a strip's rows, of whose keys e^(S - base) add up to `sum` over the lanes of a row: by = 1 / sum times what
// dropout scales by, and log sum e^S (base in log2 units). Zeros where no key is seen.
DEV void finish_rows(float (&by)[2], float (&sum)[2], const float (&base)[2], bool sees, const Dropout &drop, float *lse,
                     const int4 &strip, int head, int heads) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        const int r = lane / 4 + half * 8;
        by[half] = sees ? (drop.threshold ? drop.scale : 1.f) / sum[half] : 0.f;
        if ((lane & 3) == 0 && r < strip.y)
            lse[size_t(strip.x + r) * size_t(heads) + size_t(head)] = sees ? (base[half] + log2f(sum[half])) * dev::LN_2 : 0.f;
    }
}

// ---- dropout: bit 4n+e says whether this lane's score [n][e] is kept -------------------------------------------
// A counter holds four neighbouring positions. A warp computes each counter once and hands out the bits.
DEV uint32_t four_kept(const Dropout &d, uint64_t element) {
    const uint4 w = dev::dropout_words(d, element / 4);
    return uint32_t(w.x >= d.threshold) | uint32_t(w.y >= d.threshold) << 1 | uint32_t(w.z >= d.threshold) << 2 |
           uint32_t(w.w >= d.threshold) << 3;
}

// Scores of 16 query rows (strip row lane/4 in [n][0..1], 8 more in [n][2..3]) and 32 positions from `key`, a multiple
// of 32. element: of position 0 in strip row 0; row_elements: between rows.
DEV uint32_t kept_of_queries(const Dropout &d, uint64_t element, uint64_t row_elements, int key) {
    const int lane = int(threadIdx.x) & 31, odd = lane & 1;
    uint32_t mine = 0, kept = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {  // pair of column blocks i/2, rows i%2; an even lane takes the first of the pair
        const int block = (i / 2) * 2 + odd;
        const uint64_t row = element + uint64_t(lane / 4 + (i & 1) * 8) * row_elements;
        mine |= four_kept(d, row + uint64_t(key + block * 8 + (lane >> 1 & 1) * 4)) << (4 * i);
    }
    const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int shift = 4 * i + 2 * odd, to = 8 * (i / 2) + 2 * (i & 1);
        kept |= ((odd ? other : mine) >> shift & 3u) << to | ((odd ? mine : other) >> shift & 3u) << (to + 4);
    }
    return kept;
}

// Scores of 16 keys (key lane/4 in [n][0..1], 8 more in [n][2..3]) and 32 query rows. element: of the warp's first key
// in query row 0.
DEV uint32_t kept_of_keys(const Dropout &d, uint64_t element, uint64_t row_elements) {
    const int lane = int(threadIdx.x) & 31, word = lane / 4 & 3;
    uint32_t kept = 0;
    if (element & 3) {  // the keys begin inside a counter (b after an a of odd length): no sharing
#pragma unroll 1
        for (int i = 0; i < 16; i++) {
            const int query = (i / 4) * 8 + (lane & 3) * 2 + (i & 1), key = lane / 4 + (i >> 1 & 1) * 8;
            const uint64_t e = element + uint64_t(query) * row_elements + uint64_t(key);
            kept |= (four_kept(d, e) >> (e & 3) & 1u) << i;
        }
        return kept;
    }
    // Counter c of a column block: query (lane&3)*2 + c%2, keys of this lane's four, 8 further down for c >= 2.
    // Lane `word` of four computes counter `word`; then each takes its word of all four.
    uint32_t mine = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        const int query = n * 8 + (lane & 3) * 2 + (word & 1), key = (lane / 16) * 4 + (word >> 1) * 8;
        mine |= four_kept(d, element + uint64_t(query) * row_elements + uint64_t(key)) << (4 * n);
    }
#pragma unroll
    for (int x = 0; x < 4; x++) {
        const uint32_t other = x ? __shfl_xor_sync(0xffffffffu, mine, 4 * x) : mine;
        kept |= (other >> word & 0x1111u) << (word ^ x);
    }
    return kept;
}
}  // namespace attention
