// planted.cu: kernels with one deliberate mistake each (and a few that are right where it matters). They prove, on
// every run of the tests, that the emulator and its checker find each class of mistake. Never built for a GPU.
#include "../dev.cuh"

// ---- barriers and warps ------------------------------------------------------------------------------------
DEV_KERNEL(planted_no_barrier_after_write, 64, 0, float *out) {  // reads what another warp may not have written yet
    DEV_SHARED(float, a, [64]);
    a[threadIdx.x] = 1.f;
    out[threadIdx.x] = a[63 - threadIdx.x];
}
DEV_KERNEL(planted_no_barrier_before_write, 64, 0, float *out) {  // overwrites what another warp still reads
    DEV_SHARED(float, a, [64]);
    a[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    const float other = a[63 - threadIdx.x];
    a[threadIdx.x] = -1.f;
    out[threadIdx.x] = other;
}
DEV_KERNEL(planted_exit_before_barrier, 128, 0, float *out) {
    if (threadIdx.x >= 64) return;
    __syncthreads();
    out[threadIdx.x] = 1.f;
}
DEV_KERNEL(planted_exit_before_shuffle, 32, 0, float *out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = dev::warp_sum(1.f);
}
DEV_KERNEL(planted_two_barriers, 64, 0, float *out) {  // the halves of a block wait in different places
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
    out[threadIdx.x] = 1.f;
}
DEV_KERNEL(planted_half_a_shuffle, 32, 0, float *out) {  // a full mask, but only half of the warp comes
    float v = 1.f;
    if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
    __syncthreads();
    out[threadIdx.x] = v;
}
DEV_KERNEL(planted_no_syncwarp, 32, 0, float *out) {  // a shuffle brings lanes together, but orders no memory
    DEV_SHARED(float, a, [32]);
    a[threadIdx.x] = float(threadIdx.x);
    (void)__shfl_xor_sync(0xffffffffu, 1, 1);
    out[threadIdx.x] = a[threadIdx.x ^ 1];
}

// ---- bounds and initialisation -----------------------------------------------------------------------------
DEV_KERNEL(planted_shared_read_past_end, 32, 0, float *out) {
    DEV_SHARED(float, a, [32]);
    a[threadIdx.x] = 1.f;
    __syncthreads();
    out[threadIdx.x] = a[threadIdx.x + 1];
}
DEV_KERNEL(planted_shared_write_past_end, 32, 0, float *out) {
    DEV_SHARED(float, a, [32]);
    a[threadIdx.x + 1] = 1.f;
    __syncthreads();
    out[threadIdx.x] = 1.f;
}
DEV_KERNEL(planted_shared_uninitialised, 32, 0, float *out) {
    DEV_SHARED(float, a, [32]);
    if (threadIdx.x != 3) a[threadIdx.x] = 1.f;
    __syncthreads();
    out[threadIdx.x] = a[31 - threadIdx.x];
}
DEV_KERNEL(planted_global_read_past_end, 64, 0, float *out, const float *in, int n) {  // <= for <
    if (int(threadIdx.x) <= n) out[threadIdx.x] = in[threadIdx.x];
}
DEV_KERNEL(planted_global_write_past_end, 64, 0, float *out, int n) {
    if (int(threadIdx.x) <= n) out[threadIdx.x] = 1.f;
}
DEV_KERNEL(planted_global_uninitialised, 32, 0, float *out, const float *in) { out[threadIdx.x] = in[threadIdx.x] > 0.f; }
DEV_KERNEL(planted_row_never_written, 32, 0, float *out) {
    if (threadIdx.x != 5) out[threadIdx.x] = 1.f;
}
DEV_KERNEL(planted_index_overflow, 32, 0, float *out, int rows, int columns) {  // an offset computed in 32 bits
    const int offset = int(unsigned(rows) * unsigned(columns));
    out[offset + int(threadIdx.x)] = 1.f;
}
DEV_KERNEL(planted_foreign_pointer, 32, 0, float *out) { out[threadIdx.x] = 1.f; }  // the test passes host memory
DEV_KERNEL(planted_stack_overflow, 32, 0, float *out) {
    volatile float big[60000];
    big[threadIdx.x] = 1.f;
    out[threadIdx.x] = big[threadIdx.x];
}
DEV_KERNEL(planted_misaligned, 32, 0, uint32_t *out, const float *in) { out[threadIdx.x] = dev::ld16(in + threadIdx.x).x; }

// ---- between blocks ----------------------------------------------------------------------------------------
DEV_KERNEL(planted_blocks_race, 32, 0, float *out) { out[threadIdx.x] += 1.f; }  // every block, unordered
namespace {
// Every block leaves ones behind; the last one adds them up.
template <bool LATE, bool ANY> DEV void sum_of_blocks(float *left, float *out, uint32_t *counter) {
    const int t = int(threadIdx.x), n = int(blockDim.x);
    if (!LATE) left[int(blockIdx.x) * n + t] = 1.f;
    const bool last = dev::last_block(counter, gridDim.x);
    if (LATE) left[int(blockIdx.x) * n + t] = 1.f;
    if (!last && !ANY) return;
    float sum = 0.f;
    for (int b = 0; b < int(gridDim.x); b++) sum += left[b * n + n - 1 - t];
    out[t] = sum;
}
}  // namespace
DEV_KERNEL(wrapper_last_block, 64, 0, float *left, float *out, uint32_t *counter) { sum_of_blocks<false, false>(left, out, counter); }
// written after the block was counted; read by a block that is not the last
DEV_KERNEL(planted_written_too_late, 64, 0, float *left, float *out, uint32_t *counter) { sum_of_blocks<true, false>(left, out, counter); }
DEV_KERNEL(planted_not_the_last, 64, 0, float *left, float *out, uint32_t *counter) { sum_of_blocks<false, true>(left, out, counter); }

// ---- asynchronous copies -----------------------------------------------------------------------------------
namespace {
template <int GROUPS_LEFT, bool ZERO_FILL> DEV void copy_two(float *out, const float *in, int n) {
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    float *a_s = dev::take<float>(carve, 128), *b_s = dev::take<float>(carve, 128);
    const int i = int(threadIdx.x) * 4;
    const bool valid = i < n;
    if (ZERO_FILL || valid) dev::cp_async16(a_s + i, valid ? in + i : in, valid);
    dev::cp_async_commit();
    dev::cp_async16(b_s + i, in, true);
    dev::cp_async_commit();
    dev::cp_async_wait<GROUPS_LEFT>();
    __syncthreads();
    out[threadIdx.x] = a_s[i] + b_s[i + 1];
    dev::cp_async_wait<0>();
}
}  // namespace
DEV_KERNEL(planted_copies_right, 32, 1024, float *out, const float *in, int n) { copy_two<0, true>(out, in, n); }
DEV_KERNEL(planted_wait_too_little, 32, 1024, float *out, const float *in, int n) { copy_two<1, true>(out, in, n); }
DEV_KERNEL(planted_no_zero_fill, 32, 1024, float *out, const float *in, int n) { copy_two<0, false>(out, in, n); }
DEV_KERNEL(planted_never_waited, 32, 512, float *out, const float *in) {
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    float *a_s = dev::take<float>(carve, 128);
    dev::cp_async16(a_s + threadIdx.x * 4, in + threadIdx.x * 4, true);
    dev::cp_async_commit();
    out[threadIdx.x] = 1.f;
}
namespace {
// A product of a warpgroup over 16 rows of 8 columns, of which only `rows` were written.
DEV void columns_of(float *out, const dev::f16 *in, int rows) {
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    dev::f16 *b_s = dev::take<dev::f16>(carve, 8 * 16 * 8);
    for (int i = int(threadIdx.x); i < 8 * 16; i += int(blockDim.x))
        if (i % 16 < rows) dev::cp_async16(b_s + i * 8, in + i * 8, true);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    dev::shared_written();
    __syncthreads();
    const uint32_t a[4] = {};
    float d[8][4];
    dev::wg_begin();
    dev::wg_columns<64>(d, a, dev::pieces<16>(b_s), false);
    dev::wg_commit();
    dev::wg_end(d);
    out[threadIdx.x] = d[0][0];
}
}  // namespace
DEV_KERNEL(planted_product_right, 128, 2048, float *out, const dev::f16 *in) { columns_of(out, in, 16); }
DEV_KERNEL(planted_product_of_unwritten, 128, 2048, float *out, const dev::f16 *in) { columns_of(out, in, 15); }
DEV_KERNEL(planted_carve_too_large, 32, 512, float *out) {
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    float *a_s = dev::take<float>(carve, 129);
    a_s[threadIdx.x] = 1.f;
    out[threadIdx.x] = a_s[threadIdx.x];
}

// ---- right: what the wrappers do, lane by lane -------------------------------------------------------------
// d[16,8] = a[16,16] @ b[16,8] from row-major memory; b is read transposed by ldmatrix.
DEV_KERNEL(wrapper_mma_f16, 32, 0, const dev::f16 *a, const dev::f16 *b, float *d) {
    DEV_SHARED(uint4, a_s, [32]);  // [16,16] of 2 bytes
    DEV_SHARED(uint4, b_s, [32]);  // [16,8], and 16 rows that stay unused
    const int lane = int(threadIdx.x);
    a_s[lane] = dev::ld16(a + lane * 8);
    b_s[lane] = dev::ld16(b + lane % 16 * 8);
    __syncthreads();
    uint32_t fa[4], fb[4];
    dev::ldmatrix_x4(fa, &a_s[(lane & 15) * 2 + (lane >> 4)]);
    dev::ldmatrix_x4_trans(fb, &b_s[lane]);
    float acc[4] = {};
    dev::mma(acc, fa, fb[0], fb[1], a);
    for (int i = 0; i < 4; i++) d[(lane / 4 + (i >> 1) * 8) * 8 + (lane & 3) * 2 + (i & 1)] = acc[i];
}
// s[64,136] = a[64,16] @ b[136,16]^T and o[64,88] = a[64,16] @ c[16,88], b and c in pieces, twice: once set, once added.
DEV_KERNEL(wrapper_warpgroup_f16, 128, 7200, const dev::f16 *a, const dev::f16 *b, const dev::f16 *c, float *s, float *o) {
    DEV_DYNAMIC_SHARED(shared);
    dev::Carve carve{shared, 0};
    dev::f16 *b_s = dev::take<dev::f16>(carve, 2 * 137 * 8), *c_s = dev::take<dev::f16>(carve, 11 * 16 * 8);
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) / 32, row = warp * 16 + lane / 4;
    for (int i = int(threadIdx.x); i < 2 * 136; i += 128) dev::st16(b_s + (i % 2 * 137 + i / 2) * 8, dev::ld16(b + i * 8));
    for (int i = int(threadIdx.x); i < 16 * 11; i += 128) dev::st16(c_s + (i % 11 * 16 + i / 11) * 8, dev::ld16(c + i * 8));
    dev::shared_written();
    __syncthreads();
    uint32_t f[4];
    for (int i = 0; i < 4; i++) f[i] = dev::ld4(a + (row + (i & 1) * 8) * 16 + (lane & 3) * 2 + (i >> 1) * 8);
    float s_r[17][4], o_r[11][4];
    dev::wg_begin();
    for (int i = 0; i < 2; i++) {
        dev::wg_rows<136>(s_r, f, dev::pieces<137>(b_s), i > 0);
        dev::wg_columns<88>(o_r, f, dev::pieces<16>(c_s), i > 0);
    }
    dev::wg_commit();
    dev::wg_end(s_r);
    dev::wg_end(o_r);
    for (int i = 0; i < 4; i++) {
        const int r = row + (i >> 1) * 8, x = (lane & 3) * 2 + (i & 1);
        for (int n = 0; n < 17; n++) s[r * 136 + n * 8 + x] = s_r[n][i];
        for (int n = 0; n < 11; n++) o[r * 88 + n * 8 + x] = o_r[n][i];
    }
}
// every f16 pattern to f32; every f32 of a range of patterns to f16 and bf16
DEV_KERNEL(wrapper_from_16, 256, 0, const dev::f16 *h, const dev::bf16 *b, float *from_h, float *from_b, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        from_h[i] = dev::load(h + i);
        from_b[i] = dev::load(b + i);
    }
}
DEV_KERNEL(wrapper_to_16, 256, 0, const float *x, dev::f16 *h, dev::bf16 *b, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        dev::store(h + i, x[i]);
        dev::store(b + i, x[i]);
    }
}
DEV_KERNEL(wrapper_philox, 32, 0, const uint32_t *counter, const uint32_t *key, uint32_t *out) {
    if (threadIdx.x == 0) {
        const uint4 w = dev::philox(make_uint2(key[0], key[1]), make_uint4(counter[0], counter[1], counter[2], counter[3]));
        out[0] = w.x, out[1] = w.y, out[2] = w.z, out[3] = w.w;
    }
}
