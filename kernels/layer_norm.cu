// layer_norm.cu: bias, dropout, residual and LayerNorm over the last axis in one pass.
// math      z = residual + drop(x + bias);  n = (z - mean) * rstd;  y = n * w + b;  rstd = 1/sqrt(var(z) + eps)
//           g = dy * w;  dz = dsum + rstd * (g - mean(g) - n * mean(g * n));  dx = drop(dz)
//           dw = sum_N(dy * n);  db = sum_N(dy)
// shapes    x,y,dx,dy [N,C] T   z,residual,dz,dsum [N,C] R   bias,w,b [C] f32   mean,rstd [N] f32   dwb [2,C] f32: dw, db; add 1: +=
//           for its own use, null if dwb is: partial [P + ceil(P/17),2,C] f32, counters [ceil(P/17) + 1] u32
// launch    bwd and bwd_whole alike: G = ceil(C/768) warps have a row. block 32 * (8/G * G), grid P, any 1 <= P <= N/(8/G) rounded up: two for every
//           multiprocessor. dynamic shared 8 * 768 * S * (bytes of a T and of an R), S = 3 if both are of 16 bits, else 2
// dropout   forward keeps its decisions: kept [N C / U] u8, a bit for each of U = 16 / (bytes of an R) neighbours; bwd_whole reads
//           them and draws nothing, bwd draws them again.   kept null: nothing is dropped
// requires  N >= 1, 1 <= C <= 2048; no divisibility or alignment (tail inside).  Null means absent: x, bias, residual, z,
//           dsum, dx, dwb, kept.   counters are 0 before and after.   kept and bwd_whole: C <= 768, a multiple of 8; bwd_whole:
//           dy, z, w, dsum, dz and dx aligned to 16 bytes
// numerics  sums in f32, two-pass variance, statistics of z as it is stored. The second pass also finds what the rough mean is off
//           and moves it there: a constant row has a mean that is exact and a variance of 0, which eps alone would blow up. dw and db are summed by warps, blocks, 17 blocks
//           and then all, each in a fixed order (the last block of them adds up) => deterministic
// aliasing  z may be residual, dz may be dsum; nothing else overlaps
#include "layer_norm.cuh"

namespace {
using dev::Dropout;
using layer_norm::COLUMNS, layer_norm::read, layer_norm::whole_rows, layer_norm::write;

constexpr int WARPS = 8, TOGETHER = 17;  // warps of a block; blocks added up at once (17 * 17 > 2 * 132)
// Rows under way: one is worked on, the others are on their way to shared memory.
template <class A, class B> constexpr int STAGES = sizeof(A) + sizeof(B) == 4 ? 3 : 2;
template <class A, class B> constexpr int STAGE_BYTES = COLUMNS * int(sizeof(A) + sizeof(B));
template <class A, class B> constexpr int SHARED = WARPS * STAGES<A, B> * STAGE_BYTES<A, B>;

// Which part of which rows a warp has. A lane has U neighbours in every 32 U columns.
struct Part {
    int lane, warp, of_row, slot, slots, first, columns;  // `slots` rows a block; columns first .. first + columns
    DEV_METHOD explicit Part(int C, bool one = false) {
        lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32;
        of_row = (C + COLUMNS - 1) / COLUMNS;
        slots = int(blockDim.x) / 32 / of_row;
        slot = warp / of_row;
        first = warp % of_row * COLUMNS;
        columns = min(COLUMNS, C - first);
        if (one) of_row = 1, first = 0, slot = warp, slots = WARPS, columns = C;  // of warps that have a row each
    }
    // Sums of a whole row; sums_s is free again after another barrier.
    template <int K> DEV_METHOD void total(float (&v)[K], float (&sums_s)[K][WARPS]) const {
        layer_norm::add_lanes(v);
        if (of_row == 1) return;
#pragma unroll
        for (int i = 0; i < K; i++)
            if (lane == 0) sums_s[i][warp] = v[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < K; i++) {
            v[i] = 0.f;
            for (int k = 0; k < of_row; k++) v[i] += sums_s[i][slot * of_row + k];
        }
    }
};

// Rows of a and b (null: zeros) on their way through shared memory, for one warp. Zeros beyond its columns.
template <class A, class B> struct Rows {
    const Part &part;
    const A *a;
    const B *b;
    int N, C;
    bool whole;
    unsigned char *ring_s;  // [STAGES][COLUMNS of a, COLUMNS of b]

    DEV_METHOD A *a_s(int stage) const { return reinterpret_cast<A *>(ring_s + stage * STAGE_BYTES<A, B>); }
    DEV_METHOD B *b_s(int stage) const { return reinterpret_cast<B *>(ring_s + stage * STAGE_BYTES<A, B> + COLUMNS * int(sizeof(A))); }
    DEV_METHOD void clear() {
#pragma unroll 1
        for (int i = part.lane * 16; i < STAGES<A, B> * STAGE_BYTES<A, B>; i += 512) dev::st16(ring_s + i, make_uint4(0, 0, 0, 0));
        __syncwarp();
    }
    template <class T> DEV_METHOD void bring(T *to_s, const T *from) const {
        constexpr int N16 = 16 / int(sizeof(T));
        if (whole) {
#pragma unroll
            for (int k = 0; k < COLUMNS / N16 / 32; k++) {
                const int i = (k * 32 + part.lane) * N16;
                if (i < part.columns) dev::cp_async16(to_s + i, from + i, true);
            }
        } else {
#pragma unroll 1
            for (int i = part.lane; i < part.columns; i += 32) to_s[i] = from[i];
        }
    }
    DEV_METHOD void bring(int stage, int row) const {
        if (row < N) {
            const size_t at = size_t(row) * size_t(C) + size_t(part.first);
            if (a) bring(a_s(stage), a + at);
            if (b) bring(b_s(stage), b + at);
        }
        dev::cp_async_commit();
    }
    // f(row, stage) for every row of this warp; all warps of a block come equally often, the last time perhaps beyond N.
    template <class F> DEV_METHOD void each(F f) {
        constexpr int S = STAGES<A, B>;
        const int step = int(gridDim.x) * part.slots;
        int row = int(blockIdx.x) * part.slots + part.slot;
        clear();
#pragma unroll
        for (int s = 0; s < S - 1; s++) bring(s, row + s * step);
        int stage = 0;
        for (int first = row - part.slot; first < N; first += step) {
            dev::cp_async_wait<S - 2>();
            __syncwarp();  // all lanes' copies of this row are there, and all have read the row before
            bring(stage == 0 ? S - 1 : stage - 1, row + (S - 1) * step);
            f(row, stage);
            stage = stage == S - 1 ? 0 : stage + 1;
            row += step;
        }
        dev::cp_async_wait<0>();
    }
};

template <class T, class R>
DEV void forward(const T *x, const float *bias, const R *residual, const float *w, const float *b, R *z, T *y, float *mean,
                 float *rstd, uint8_t *kept, int N, int C, float eps, const Dropout &dropout) {
    constexpr int U = 16 / int(sizeof(R)), UNITS = COLUMNS / 32 / U;
    DEV_DYNAMIC_SHARED(shared);
    DEV_SHARED(float, sum_s, [1][WARPS]);
    DEV_SHARED(float, off_s, [2][WARPS]);
    const Part part(C);
    dev::Carve carve{shared, 0};
    unsigned char *ring_s = dev::take<unsigned char>(carve, SHARED<T, R>) + part.warp * (SHARED<T, R> / WARPS);
    Rows<T, R> rows{part, x, residual, N, C, whole_rows(C, x, bias, residual, z, y), ring_s};
    float wv[UNITS][U], bv[UNITS][U];
#pragma unroll
    for (int j = 0; j < UNITS; j++) {
        const int c = (j * 32 + part.lane) * U;
        dev::load_any(w + part.first + c, part.columns - c, wv[j]);
        dev::load_any(b + part.first + c, part.columns - c, bv[j]);
    }
    rows.each([&](int row, int stage) {
        const bool inside = row < N;
        const size_t at = size_t(row) * size_t(C) + size_t(part.first);
        const int lane = dev::anew(part.lane);
        float v[UNITS][U];
        float sum[1] = {};
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            const int c = (j * 32 + lane) * U;
            float r[U];
            dev::widen(dev::fetch<T, U>(rows.a_s(stage) + c), v[j]);
            dev::widen(dev::fetch<R, U>(rows.b_s(stage) + c), r);
            if (bias) {
                float more[U];
                read(bias + part.first + c, part.columns - c, rows.whole, more);
#pragma unroll
                for (int i = 0; i < U; i++) v[j][i] += more[i];
            }
            if (x) {
                const uint32_t bits = dev::drop_and_tell(dropout, at + size_t(c), v[j]);
                if (kept && inside && c < part.columns) kept[(at + size_t(c)) / U] = uint8_t(bits);
            }
#pragma unroll
            for (int i = 0; i < U; i++) v[j][i] += r[i];
            if (z) {  // normalise what is stored: backward reads it
                if (inside) write(z + at + c, part.columns - c, rows.whole, v[j]);
#pragma unroll
                for (int i = 0; i < U; i++) v[j][i] = dev::rounded(v[j][i], z);
            }
#pragma unroll
            for (int i = 0; i < U; i++) sum[0] += v[j][i];
        }
        part.total(sum, sum_s);
        const float rough = sum[0] / float(C);
        float off[2] = {};  // of z - rough and its square
#pragma unroll
        for (int j = 0; j < UNITS; j++)
            layer_norm::add_distances(v[j], part.columns - (j * 32 + lane) * U, rough, off);
        part.total(off, off_s);
        const layer_norm::Statistics s = layer_norm::statistics(rough, off, C, eps);
        if (!inside) return;
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            const int c = (j * 32 + lane) * U;
#pragma unroll
            for (int i = 0; i < U; i++) v[j][i] = layer_norm::normalised(v[j][i], s, wv[j][i], bv[j][i]);
            write(y + at + c, part.columns - c, rows.whole, v[j]);
        }
        if (part.lane == 0 && part.first == 0) {
            mean[row] = s.mean;
            rstd[row] = s.rstd;
        }
    });
}

// out[0..width) = the sum of n <= TOGETHER rows, or out += it, by the whole block
DEV void sum_rows(const float *rows, int n, int width, float *out, bool add) {
    const int U = width % 4 == 0 && dev::aligned16(rows) && dev::aligned16(out) ? 4 : 1;
    for (int c = int(threadIdx.x) * U; c < width; c += int(blockDim.x) * U) {
        dev::Raw<float, 4> raw[TOGETHER];
        float sum[4] = {}, v[4];
#pragma unroll
        for (int p = 0; p < TOGETHER; p++) {
            raw[p] = dev::Raw<float, 4>{};
            if (p >= n) continue;
            const float *from = rows + size_t(p) * size_t(width) + c;
            if (U == 4) raw[p] = dev::fetch<float, 4>(from);
            else raw[p].w[0] = __float_as_uint(*from);
        }
#pragma unroll
        for (int p = 0; p < TOGETHER; p++) {
            dev::widen(raw[p], v);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += v[i];
        }
        if (add) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (i < U) sum[i] += out[c + i];
        }
        if (U == 4) dev::put(out + c, sum);
        else out[c] = sum[0];
    }
}
// The blocks' rows of partial are added up: by the last block of every 17, and then, 17 at a time, by the last of all.
DEV void sum_blocks(float *partial, float *out, uint32_t *counters, int width, bool add) {
    const int P = int(gridDim.x), groups = (P + TOGETHER - 1) / TOGETHER, group = int(blockIdx.x) / TOGETHER;
    const int members = min(TOGETHER, P - group * TOGETHER);
    float *rows = partial + size_t(P) * size_t(width);  // [groups,width]
    if (!dev::last_block(counters + group, uint32_t(members))) return;
    sum_rows(partial + size_t(group) * TOGETHER * size_t(width), members, width, rows + size_t(group) * size_t(width), false);
    if (!dev::last_block(counters + groups, uint32_t(groups))) return;
    for (int n = groups; n > 1; n = (n + TOGETHER - 1) / TOGETHER) {  // in place: row i of the sums from rows 17 i ..
        const int more = (n + TOGETHER - 1) / TOGETHER;
        for (int i = 0; i < more; i++)
            sum_rows(rows + size_t(i) * TOGETHER * size_t(width), min(TOGETHER, n - i * TOGETHER), width,
                     more == 1 ? out : rows + size_t(i) * size_t(width), add && more == 1);
        if (more > 1) __syncthreads();
    }
    if (groups == 1) sum_rows(rows, 1, width, out, add);
}

// dw and db of a warp's rows are summed in registers. ONE: rows are moved in whole pieces, and a warp has a row.
// Its decisions are in `kept`; else they are drawn.
template <bool ONE, class T, class R>
DEV void backward(const T *dy, const R *z, const float *mean, const float *rstd, const float *w, const R *dsum, R *dz, T *dx,
                  float *dwb, float *partial, uint32_t *counters, int N, int C, bool add, const Dropout &dropout,
                  const uint8_t *kept) {
    constexpr int U = 16 / int(sizeof(R)), UNITS = COLUMNS / 32 / U;
    DEV_DYNAMIC_SHARED(shared);
    DEV_SHARED(float, sums_s, [2][2][WARPS]);
    const Part part(C, ONE);
    dev::Carve carve{shared, 0};
    unsigned char *all_s = dev::take<unsigned char>(carve, SHARED<T, R>);
    Rows<T, R> rows{part, dy, z, N, C, ONE ? true : whole_rows(C, dy, z, w, dsum, dz, dx),
                    all_s + part.warp * (SHARED<T, R> / WARPS)};
    float dw[UNITS][U] = {}, db[UNITS][U] = {};
    const int step = int(gridDim.x) * part.slots, start = int(blockIdx.x) * part.slots + part.slot;
    float next_mean = start < N ? mean[start] : 0.f, next_rstd = start < N ? rstd[start] : 0.f;
    int turn = 0;
    rows.each([&](int row, int stage) {
        const bool inside = row < N;
        const size_t at = size_t(row) * size_t(C) + size_t(part.first);
        const int lane = dev::anew(part.lane);
        const float mu = next_mean, rs = next_rstd;
        if (row + step < N) next_mean = mean[row + step], next_rstd = rstd[row + step];
        const T *dy_s = rows.a_s(stage);
        const R *z_s = rows.b_s(stage);
        float sums[2] = {};  // of g, of g n
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            const int c = (j * 32 + lane) * U;
            float n[U], g[U], wv[U];
            read(w + part.first + c, part.columns - c, rows.whole, wv);
            dev::widen(dev::fetch<T, U>(dy_s + c), g);
            dev::widen(dev::fetch<R, U>(z_s + c), n);
#pragma unroll
            for (int i = 0; i < U; i++) {  // beyond the columns g = w = 0
                n[i] = (n[i] - mu) * rs;
                if (inside) {
                    dw[j][i] += g[i] * n[i];
                    db[j][i] += g[i];
                }
                g[i] *= wv[i];
                sums[0] += g[i];
                sums[1] += g[i] * n[i];
            }
        }
        part.total(sums, sums_s[turn]);
        turn ^= 1;
        __syncwarp();  // read the row again rather than keep it in registers
        if (!inside) return;
        const float mean_g = sums[0] / float(C), mean_gn = sums[1] / float(C);
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            const int c = (j * 32 + lane) * U, count = part.columns - c;
            float n[U], g[U], wv[U], d[U];
            read(w + part.first + c, count, rows.whole, wv);
            dev::widen(dev::fetch<T, U>(dy_s + c), g);
            dev::widen(dev::fetch<R, U>(z_s + c), n);
#pragma unroll
            for (int i = 0; i < U; i++) d[i] = rs * (g[i] * wv[i] - mean_g - (n[i] - mu) * rs * mean_gn);
            if (dsum) {
                float more[U];
                read(dsum + at + c, count, rows.whole, more);
#pragma unroll
                for (int i = 0; i < U; i++) d[i] += more[i];
            }
            write(dz + at + c, count, rows.whole, d);
            if (dx) {
                if constexpr (ONE) {
                    if (kept && count > 0) dev::drop_again(kept[(at + size_t(c)) / U], dropout.scale, d);
                } else {
                    dev::drop(dropout, at + size_t(c), d);
                }
                write(dx + at + c, count, rows.whole, d);
            }
        }
    });
    if (!dwb) return;
    __syncthreads();  // the rows have been read: their memory holds [2,COLUMNS] f32 of every warp
    float *own_s = reinterpret_cast<float *>(rows.ring_s);
#pragma unroll
    for (int j = 0; j < UNITS; j++) {
        const int c = (j * 32 + part.lane) * U;
        dev::put(own_s + c, dw[j]);
        dev::put(own_s + COLUMNS + c, db[j]);
    }
    __syncthreads();
    float *out = partial + size_t(blockIdx.x) * 2 * size_t(C);
    for (int i = int(threadIdx.x); i < 2 * C; i += int(blockDim.x)) {
        const int c = i < C ? i : i - C, place = (i < C ? 0 : COLUMNS) + c % COLUMNS;
        float sum = 0.f;
        for (int s = 0; s < part.slots; s++)
            sum += reinterpret_cast<const float *>(all_s + (s * part.of_row + c / COLUMNS) * (SHARED<T, R> / WARPS))[place];
        out[i] = sum;
    }
    sum_blocks(partial, dwb, counters, 2 * C, add);
}
}  // namespace

#define LAYER_NORM(NAME, T, R)                                                                                              \
    DEV_KERNEL_BESIDE(layer_norm_fwd_##NAME, 256, 2, (SHARED<T, R>), const T *x, const float *bias, const R *residual,               \
               const float *w, const float *b, R *z, T *y, float *mean, float *rstd, uint8_t *kept, int N, int C,           \
               float eps, uint64_t seed, uint32_t site, uint32_t step, uint32_t threshold, float scale) {                   \
        forward(x, bias, residual, w, b, z, y, mean, rstd, kept, N, C, eps, Dropout{seed, site, step, threshold, scale});   \
    }                                                                                                                       \
    DEV_KERNEL_BESIDE(layer_norm_bwd_##NAME, 256, 2, (SHARED<T, R>), const T *dy, const R *z, const float *mean,                     \
               const float *rstd, const float *w, const R *dsum, R *dz, T *dx, float *dwb, float *partial,                  \
               uint32_t *counters, int N, int C, int add, uint64_t seed, uint32_t site, uint32_t step, uint32_t threshold,  \
               float scale) {                                                                                               \
        backward<false>(dy, z, mean, rstd, w, dsum, dz, dx, dwb, partial, counters, N, C, add != 0,                         \
                        Dropout{seed, site, step, threshold, scale}, nullptr);                                              \
    }                                                                                                                       \
    DEV_KERNEL_BESIDE(layer_norm_bwd_whole_##NAME, 256, 2, (SHARED<T, R>), const T *dy, const R *z, const float *mean,      \
               const float *rstd, const float *w, const R *dsum, R *dz, T *dx, float *dwb, float *partial,                  \
               uint32_t *counters, int N, int C, int add, const uint8_t *kept, float scale) {                               \
        backward<true>(dy, z, mean, rstd, w, dsum, dz, dx, dwb, partial, counters, N, C, add != 0,                          \
                       Dropout{0, 0, 0, 0, scale}, kept);                                                                   \
    }
LAYER_NORM(f32, float, float)
LAYER_NORM(f16, dev::f16, dev::f16)
LAYER_NORM(bf16, dev::bf16, dev::bf16)
LAYER_NORM(f16_f32, dev::f16, float)    // 16-bit branch, f32 residual stream
LAYER_NORM(bf16_f32, dev::bf16, float)
