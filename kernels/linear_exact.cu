// linear_exact.cu: dense layers of few rows, for decoding: the weights go straight from memory to the tensor cores, once.
// math      y_p = f(x w_p^T + b_p) for the parts p < P, up to three;  f(u) = u, or exact GELU, u (1 + erf(u / sqrt 2)) / 2
// shapes    x [R,K]   w_p [N,K]   b_p [N] or null   y_p [R,N]   all T; those of absent parts are null
//           norm: x = LayerNorm(z) of z [R,K] T or of z + residual [R,K] T, gamma, beta [K] f32; x is written, too
// launch    grid (ceil(N/8), P ceil(R/16)), block 256, or 384 where K > 1536; dynamic shared 0
//           norm: K <= 768, block 256, dynamic shared 16 (768 + 8) elements: every block normalises its rows again
// requires  no divisibility or alignment (what is aligned to 16 bytes is read so).   gelu: 0 or 1
// numerics  products in T, sums in f32; steps of 32 k go to the warps in turns, and the warps' sums are added in order: a row's
//           result depends on its own numbers alone, bit for bit, not on R or on its place. norm: the bits of layer_norm.cu and
//           then of this kernel
// aliasing  nothing overlaps
#include "layer_norm.cuh"

namespace {
constexpr int ROWS = 16, COLUMNS = 8, STEP = 32;
constexpr float SQRT_HALF = 0.70710678118654752f;

// 8 elements at p, two in a register: those that are left in the row, then zeros; zeros too where there is no row.
template <bool WHOLE, class T> DEV uint4 eight(const T *p, int left, bool there) {
    if (!there || left <= 0) return make_uint4(0, 0, 0, 0);
    if (WHOLE) return dev::ld16(p);
    float v[8];
    dev::load8(p, left, v);
    return make_uint4(dev::pack2<T>(v[0], v[1]), dev::pack2<T>(v[2], v[3]), dev::pack2<T>(v[4], v[5]), dev::pack2<T>(v[6], v[7]));
}

// sum [16,8] = this warp's steps of x [rows,K], rows `pitch` apart, @ w [columns,K]^T. A lane has k (l%4) 8 .. +8 of a step, of x's rows l/4 and
// l/4 + 8 and of w's row l/4: another order of k than the instruction's, but the same in both.
template <bool WHOLE, int WARPS, class T>
DEV void multiply(const T *x, int pitch, const T *w, int rows, int columns, int K, float *sum) {
    constexpr int AHEAD = !WHOLE ? 1 : WARPS > 8 ? 4 : 3,  // steps on their way: 768 k are three of 8 warps, 3072 eight of 12
                  STRIDE = WARPS * STEP;
    const int lane = int(threadIdx.x) % 32, row = lane / 4;
    int left = K - int(threadIdx.x) / 32 * STEP;  // of the rows, for the warp
    const size_t at = size_t(K - left + lane % 4 * 8);
    const T *x0 = x + size_t(row) * size_t(pitch) + at, *x8 = x0 + 8 * size_t(pitch), *own = w + size_t(row) * size_t(K) + at;
    float acc[4] = {};
#pragma unroll 1
    for (; left > 0; left -= AHEAD * STRIDE, x0 += AHEAD * STRIDE, x8 += AHEAD * STRIDE, own += AHEAD * STRIDE) {
        uint4 b[AHEAD], a0[AHEAD], a8[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int mine = left - i * STRIDE - lane % 4 * 8;
            b[i] = eight<WHOLE>(own + i * STRIDE, mine, row < columns);
            a0[i] = eight<WHOLE>(x0 + i * STRIDE, mine, row < rows);
            a8[i] = eight<WHOLE>(x8 + i * STRIDE, mine, row + 8 < rows);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (left <= i * STRIDE) break;  // all lanes; and the compiler puts off no load to behind this branch
            dev::mma(acc, {a0[i].x, a8[i].x, a0[i].y, a8[i].y}, b[i].x, b[i].y, x);
            dev::mma(acc, {a0[i].z, a8[i].z, a0[i].w, a8[i].w}, b[i].z, b[i].w, x);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sum[(row + i / 2 * 8) * COLUMNS + lane % 4 * 2 + i % 2] = acc[i];
}
// The same without tensor cores: a lane has w's row l/4 and all rows of x; the four lanes of a row are added at the end.
template <bool WHOLE, int WARPS>
DEV void multiply(const float *x, int pitch, const float *w, int rows, int columns, int K, float *sum) {
    const int lane = int(threadIdx.x) % 32, column = lane / 4;
    float acc[ROWS] = {}, a[8], b[8];
#pragma unroll 1
    for (int first = int(threadIdx.x) / 32 * STEP; first < K; first += WARPS * STEP) {
        const int k = first + lane % 4 * 8;
        if (k >= K || column >= columns) continue;
        if (WHOLE) dev::unpack8(w + size_t(column) * size_t(K) + k, b);
        else dev::load8(w + size_t(column) * size_t(K) + k, K - k, b);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows) continue;
            if (WHOLE) dev::unpack8(x + size_t(r) * size_t(pitch) + k, a);
            else dev::load8(x + size_t(r) * size_t(pitch) + k, K - k, a);
#pragma unroll
            for (int i = 0; i < 8; i++) acc[r] += a[i] * b[i];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        acc[r] += __shfl_xor_sync(0xffffffffu, acc[r], 1);
        acc[r] += __shfl_xor_sync(0xffffffffu, acc[r], 2);
        if (lane % 4 == 0) sum[r * COLUMNS + column] = acc[r];
    }
}

// A layer's part: what there is of it, and its tile of rows.
template <class T> struct Layer {
    const T *w, *bias;
    T *y;
    int R, N, K;
    bool gelu;
    int tile;
    DEV_METHOD int rows() const { return min(ROWS, R - tile * ROWS); }
    // This block's of P parts.
    DEV_METHOD Layer(const T *w0, const T *w1, const T *w2, const T *b0, const T *b1, const T *b2, T *y0, T *y1, T *y2, int R, int N,
                     int K, int P, int gelu)
        : R(R), N(N), K(K), gelu(gelu != 0), tile(int(blockIdx.y) / P) {
        const int p = int(blockIdx.y) % P;
        w = p == 0 ? w0 : p == 1 ? w1 : w2, bias = p == 0 ? b0 : p == 1 ? b1 : b2, y = p == 0 ? y0 : p == 1 ? y1 : y2;
    }
};

// x: the rows of the tile, `pitch` apart
template <int WARPS, class T> DEV void forward(const T *x, int pitch, const Layer<T> &l) {
    DEV_SHARED(float, sum_s, [WARPS][ROWS * COLUMNS]);
    const int t = int(threadIdx.x), column = int(blockIdx.x) * COLUMNS, row = l.tile * ROWS, N = l.N, K = l.K;
    const int rows = l.rows(), columns = min(COLUMNS, N - column);
    const T *w = l.w + size_t(column) * size_t(K), *bias = l.bias;
    if (K % 8 == 0 && dev::aligned16(x) && dev::aligned16(w)) multiply<true, WARPS>(x, pitch, w, rows, columns, K, sum_s[t / 32]);
    else multiply<false, WARPS>(x, pitch, w, rows, columns, K, sum_s[t / 32]);
    __syncthreads();
    const int r = t / COLUMNS, c = t % COLUMNS;
    if (r >= rows || c >= columns) return;
    float u = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) u += sum_s[i][t];
    if (bias) u += dev::load(bias + column + c);
    if (l.gelu) u *= 0.5f * (1.f + erff(u * SQRT_HALF));
    dev::store(l.y + size_t(row + r) * size_t(N) + size_t(column + c), u);
}

// The rows of a block's tile, before and after they are normalised.
template <class T> struct Normed {
    const T *z, *residual;  // residual may be null
    const float *gamma, *beta;
    T *x;
    float eps;
};

// x_s = the normalised rows of the tile as they are stored, `pitch` apart; a warp has every eighth. x too, by one block of a tile.
template <class T> DEV void normalise(const Normed<T> &n, T *x_s, int pitch, int tile, int rows, int K, bool writes) {
    constexpr int U = 16 / int(sizeof(T)), UNITS = layer_norm::COLUMNS / 32 / U;
    const int lane = int(threadIdx.x) & 31;
    const bool whole = layer_norm::whole_rows(K, n.z, n.residual, n.x);
    for (int r = int(threadIdx.x) / 32; r < rows; r += int(blockDim.x) / 32) {
        const size_t at = size_t(tile * ROWS + r) * size_t(K);
        float v[UNITS][U], sum[1] = {}, off[2] = {};
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            const int c = (j * 32 + lane) * U;
            layer_norm::read(n.z + at + c, K - c, whole, v[j]);
            if (n.residual) {
                float more[U];
                layer_norm::read(n.residual + at + c, K - c, whole, more);
#pragma unroll
                for (int i = 0; i < U; i++) v[j][i] = dev::rounded(v[j][i] + more[i], n.z);
            }
#pragma unroll
            for (int i = 0; i < U; i++) sum[0] += v[j][i];
        }
        layer_norm::add_lanes(sum);
        const float rough = sum[0] / float(K);
#pragma unroll
        for (int j = 0; j < UNITS; j++) layer_norm::add_distances(v[j], K - (j * 32 + lane) * U, rough, off);
        layer_norm::add_lanes(off);
        const layer_norm::Statistics s = layer_norm::statistics(rough, off, K, n.eps);
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            const int c = (j * 32 + lane) * U;
            float w[U], b[U];
            dev::load_any(n.gamma + c, K - c, w);
            dev::load_any(n.beta + c, K - c, b);
#pragma unroll
            for (int i = 0; i < U; i++) v[j][i] = layer_norm::normalised(v[j][i], s, w[i], b[i]);
            layer_norm::write(x_s + r * pitch + c, K - c, K % 8 == 0, v[j]);
            if (writes) layer_norm::write(n.x + at + c, K - c, whole, v[j]);
        }
    }
}
}  // namespace

#define LINEAR_EXACT(NAME, T)                                                                                              \
    DEV_KERNEL(linear_exact_##NAME, 384, 0, const T *x, const T *w0, const T *w1, const T *w2, const T *b0, const T *b1,   \
               const T *b2, T *y0, T *y1, T *y2, int R, int N, int K, int P, int gelu) {                                   \
        const Layer<T> layer(w0, w1, w2, b0, b1, b2, y0, y1, y2, R, N, K, P, gelu);                                        \
        const T *rows = x + size_t(layer.tile * ROWS) * size_t(K);                                                         \
        if (blockDim.x > 256) forward<12>(rows, K, layer);                                                                 \
        else forward<8>(rows, K, layer);                                                                                   \
    }                                                                                                                      \
    DEV_KERNEL(linear_exact_norm_##NAME, 256, (ROWS * (layer_norm::COLUMNS + 8) * int(sizeof(T))), const T *z,             \
               const T *residual, const float *gamma, const float *beta, T *x, float eps, const T *w0, const T *w1,        \
               const T *w2, const T *b0, const T *b1, const T *b2, T *y0, T *y1, T *y2, int R, int N, int K, int P,        \
               int gelu) {                                                                                                 \
        const Layer<T> layer(w0, w1, w2, b0, b1, b2, y0, y1, y2, R, N, K, P, gelu);                                        \
        DEV_DYNAMIC_SHARED(shared);                                                                                        \
        dev::Carve carve{shared, 0};                                                                                       \
        const int pitch = (K + 7) / 8 * 8 + 8;                                                                             \
        T *x_s = dev::take<T>(carve, ROWS * pitch);                                                                        \
        const bool writes = blockIdx.x == 0 && int(blockIdx.y) % P == 0;                                                   \
        normalise(Normed<T>{z, residual, gamma, beta, x, eps}, x_s, pitch, layer.tile, layer.rows(), K, writes);           \
        __syncthreads();                                                                                                   \
        forward<8>(static_cast<const T *>(x_s), pitch, layer);                                                             \
    }
LINEAR_EXACT(f32, float)
LINEAR_EXACT(f16, dev::f16)
LINEAR_EXACT(bf16, dev::bf16)
