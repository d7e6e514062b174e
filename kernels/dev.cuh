// dev.cuh: what every kernel is written with. The only file with PTX, and the only one that knows whether nvcc
// compiles it for a GPU or g++ for the emulator in host/. Kernels include this, or a header of their own op that does,
// and nothing else.
//
// Contracts: collectives (warp_*, block_*, ldmatrix, mma) are called by converged code, all lanes or all threads.
// Storage is f32, f16 or bf16; arithmetic is f32.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DEV static __device__ __forceinline__
#define DEV_METHOD __device__ __forceinline__
// A kernel: its C name, the largest block, the dynamic shared memory in bytes, its parameters, and then its body.
#define DEV_KERNEL(name, max_threads, shared_bytes, ...)                               \
    static_assert((shared_bytes) <= 227 * 1024, "dynamic shared memory of " #name);    \
    extern "C" __global__ void __launch_bounds__(max_threads) name(__VA_ARGS__)
// The same, of which `blocks` of the largest size must find registers in one multiprocessor.
#define DEV_KERNEL_BESIDE(name, max_threads, blocks, shared_bytes, ...)                \
    static_assert((shared_bytes) <= 227 * 1024, "dynamic shared memory of " #name);    \
    extern "C" __global__ void __launch_bounds__(max_threads, blocks) name(__VA_ARGS__)
#define DEV_SHARED(T, name, dims) __shared__ T name dims
#define DEV_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define DEV_PLACE_PARAM
#else
#include "host/emulator.hpp"
#define DEV static inline
#define DEV_METHOD inline
#define DEV_KERNEL_BESIDE(name, max_threads, blocks, shared_bytes, ...) DEV_KERNEL(name, max_threads, shared_bytes, __VA_ARGS__)
#define DEV_KERNEL(name, max_threads, shared_bytes, ...)                               \
    static_assert((shared_bytes) <= 227 * 1024, "dynamic shared memory of " #name);    \
    extern "C" void name(__VA_ARGS__);                                                 \
    static ::host::Register register_##name(#name, &name, max_threads, shared_bytes);  \
    extern "C" void name(__VA_ARGS__)
#define DEV_SHARED(T, name, dims)                                                      \
    using name##_array = T dims;                                                       \
    static const char name##_key = 0;                                                  \
    name##_array &name = *static_cast<name##_array *>(                                 \
        ::host::static_shared(&name##_key, sizeof(name##_array), alignof(name##_array), #name))
#define DEV_DYNAMIC_SHARED(name) unsigned char *const name = ::host::dynamic_shared()
#define DEV_PLACE_PARAM , HOST_PLACE
#endif

namespace dev {
typedef __half f16;
typedef __nv_bfloat16 bf16;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// ---- one element of storage --------------------------------------------------------------------------------
DEV float load(const float *p) { return *p; }
DEV float load(const f16 *p) { return __half2float(*p); }
DEV float load(const bf16 *p) { return __bfloat162float(*p); }
DEV void store(float *p, float v) { *p = v; }
DEV void store(f16 *p, float v) { *p = __float2half_rn(v); }
DEV void store(bf16 *p, float v) { *p = __float2bfloat16_rn(v); }
// v as it will be read back from storage of type T
DEV float rounded(float v, const float *) { return v; }
DEV float rounded(float v, const f16 *) { return __half2float(__float2half_rn(v)); }
DEV float rounded(float v, const bf16 *) { return __bfloat162float(__float2bfloat16_rn(v)); }

DEV uint32_t bits16(float v, const f16 *) { return __half_as_ushort(__float2half_rn(v)); }
DEV uint32_t bits16(float v, const bf16 *) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
DEV float from_bits16(uint32_t x, const f16 *) { return __half2float(__ushort_as_half(uint16_t(x))); }
DEV float from_bits16(uint32_t x, const bf16 *) { return __bfloat162float(__ushort_as_bfloat16(uint16_t(x))); }
// two 16-bit elements in one register, the first one low
#if defined(__CUDACC__)
DEV uint32_t bits16x2(float low, float high, const f16 *) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}
DEV uint32_t bits16x2(float low, float high, const bf16 *) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}
template <class T> DEV uint32_t pack2(float low, float high) { return bits16x2(low, high, static_cast<const T *>(nullptr)); }
#else
template <class T> DEV uint32_t pack2(float low, float high) {
    const T *type = nullptr;
    return bits16(low, type) | bits16(high, type) << 16;
}
#endif

// ---- 4 bytes (two 16-bit elements), 8 and 16 bytes at once; p must be aligned to as many -------------------
DEV uint32_t ld4(const void *p DEV_PLACE_PARAM) {
#if !defined(__CUDACC__)
    host::check_aligned(p, 4, file, line);
#endif
    return *static_cast<const uint32_t *>(p);
}
DEV void st4(void *p, uint32_t v DEV_PLACE_PARAM) {
#if !defined(__CUDACC__)
    host::check_aligned(p, 4, file, line);
#endif
    *static_cast<uint32_t *>(p) = v;
}
DEV uint2 ld8(const void *p DEV_PLACE_PARAM) {
#if !defined(__CUDACC__)
    host::check_aligned(p, 8, file, line);
#endif
    return *static_cast<const uint2 *>(p);
}
DEV void st8(void *p, uint2 v DEV_PLACE_PARAM) {
#if !defined(__CUDACC__)
    host::check_aligned(p, 8, file, line);
#endif
    *static_cast<uint2 *>(p) = v;
}
DEV bool aligned16(const void *p) { return (uintptr_t(p) & 15) == 0; }
DEV uint4 ld16(const void *p DEV_PLACE_PARAM) {
#if !defined(__CUDACC__)
    host::check_aligned(p, 16, file, line);
#endif
    return *static_cast<const uint4 *>(p);
}
DEV void st16(void *p, uint4 v DEV_PLACE_PARAM) {
#if !defined(__CUDACC__)
    host::check_aligned(p, 16, file, line);
#endif
    *static_cast<uint4 *>(p) = v;
}

// ---- raw: N elements as they lie in memory, in 8, 16 or 32 bytes. What is fetched raw and widened later does not wait ----
template <class T, int N> struct Raw {
    uint32_t w[sizeof(T) * N / 4];
};
template <class T, int N> DEV Raw<T, N> fetch(const T *p) {
    Raw<T, N> raw;
    if constexpr (sizeof(T) * N == 8) {
        const uint2 a = ld8(p);
        raw.w[0] = a.x, raw.w[1] = a.y;
    } else {
#pragma unroll
        for (int i = 0; i < int(sizeof(T)) * N / 16; i++) {
            const uint4 a = ld16(p + i * (16 / int(sizeof(T))));
            raw.w[4 * i] = a.x, raw.w[4 * i + 1] = a.y, raw.w[4 * i + 2] = a.z, raw.w[4 * i + 3] = a.w;
        }
    }
    return raw;
}
template <class T, int N> DEV void widen(const Raw<T, N> &raw, float (&v)[N]) {
    const T *type = nullptr;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if constexpr (sizeof(T) == 4) v[i] = __uint_as_float(raw.w[i]);
        else v[i] = from_bits16(i & 1 ? raw.w[i / 2] >> 16 : raw.w[i / 2] & 0xffffu, type);
    }
}
template <class T, int N> DEV void put(T *p, const float (&v)[N]) {
    uint32_t w[sizeof(T) * N / 4];
#pragma unroll
    for (int i = 0; i < int(sizeof(T)) * N / 4; i++) {
        if constexpr (sizeof(T) == 4) w[i] = __float_as_uint(v[i]);
        else w[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
    }
    if constexpr (sizeof(T) * N == 8) {
        st8(p, make_uint2(w[0], w[1]));
    } else {
#pragma unroll
        for (int i = 0; i < int(sizeof(T)) * N / 16; i++)
            st16(p + i * (16 / int(sizeof(T))), make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]));
    }
}
// The first `count` of N elements at p, one by one; the others become 0. Any count, any alignment.
template <class T, int N> DEV void load_some(const T *p, int count, float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = i < count ? load(p + i) : 0.f;
}
template <class T, int N> DEV void store_some(T *p, int count, const float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < count) store(p + i, v[i]);
}

// The same, at once if they are all there and aligned.
template <class T, int N> DEV void load_any(const T *p, int count, float (&v)[N]) {
    if (count >= N && aligned16(p)) widen(fetch<T, N>(p), v);
    else load_some(p, count, v);
}
template <class T, int N> DEV void store_any(T *p, int count, const float (&v)[N]) {
    if (count >= N && aligned16(p)) put(p, v);
    else store_some(p, count, v);
}

// ---- 8 consecutive elements: the unit of work of most elementwise and row kernels --------------------------
template <class T> DEV void unpack8(const T *p, float (&v)[8]) { widen(fetch<T, 8>(p), v); }
template <class T> DEV void pack8(T *p, const float (&v)[8]) { put(p, v); }
template <class T> DEV void load8(const T *p, int count, float (&v)[8]) { load_any(p, count, v); }
template <class T> DEV void store8(T *p, int count, const float (&v)[8]) { store_any(p, count, v); }

// A row of n elements in pieces of at most 8, for a block: f(first, count) for this thread's pieces. The first piece ends
// where the row becomes 16-byte aligned, so that load8 and store8 of the others are whole.
template <class T, class F> DEV void each8(const T *row, int n, F f) {
    const int lead = min(n, int((16 - (uintptr_t(row) & 15)) & 15) / int(sizeof(T)));
    for (int i = int(threadIdx.x) - (lead > 0); i * 8 + lead < n; i += int(blockDim.x)) {
        if (i < 0) f(0, lead);
        else f(lead + i * 8, min(8, n - lead - i * 8));
    }
}

// ---- arithmetic --------------------------------------------------------------------------------------------
DEV float fast_exp2(float x) {  // 2 ulp; subnormal results are 0
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
// Has x computed here: the compiler may put off what only a later step needs, and keep all it is made of until then.
DEV void now(float &x) {
#if defined(__CUDACC__)
    asm volatile("" : "+f"(x));
#else
    (void)x;
#endif
}
// x, of which the compiler then knows nothing: what follows from it is computed again rather than kept in registers.
DEV int anew(int x) {
#if defined(__CUDACC__)
    asm volatile("" : "+r"(x));
#endif
    return x;
}
DEV bool finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
DEV float infinity() { return __uint_as_float(0x7f800000u); }
DEV float nan() { return __uint_as_float(0x7fc00000u); }

// ---- reductions; every thread gets the result, and the order of the sum is fixed ---------------------------
DEV float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
DEV float warp_max(float v) {  // a NaN wins
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, v, o);
        v = v > other || v != v ? v : other;
    }
    return v;
}
// sums_s: 32 floats, free for another use after the next barrier. The block is one-dimensional, whole warps.
DEV float block_sum(float v, float *sums_s) {
    v = warp_sum(v);
    __syncthreads();  // the previous use of sums_s is over
    if ((threadIdx.x & 31) == 0) sums_s[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < int(blockDim.x) / 32; i++) sum += sums_s[i];
    return sum;
}
DEV float block_max(float v, float *maxima_s) {
    v = warp_max(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) maxima_s[threadIdx.x / 32] = v;
    __syncthreads();
    float best = maxima_s[0];
    for (int i = 1; i < int(blockDim.x) / 32; i++) best = best > maxima_s[i] || best != best ? best : maxima_s[i];
    return best;
}

// ---- between blocks ----------------------------------------------------------------------------------------
// True in the block that comes here last of `count` blocks with this counter: it sees what the others wrote before. The
// counter is 0 before and after. All threads of a block come, and get the same answer. No order of the blocks follows,
// but a sum that the last one computes alone has a fixed order.
DEV bool last_block(uint32_t *counter, uint32_t count DEV_PLACE_PARAM) {
    DEV_SHARED(uint32_t, last_s, [1]);
    const bool speaks = threadIdx.x == 0 && threadIdx.y == 0;
#if defined(__CUDACC__)
    __threadfence();
    __syncthreads();
    if (speaks) last_s[0] = atomicInc(counter, count - 1) == count - 1;
    __syncthreads();
    __threadfence();
#else
    __syncthreads();
    if (speaks) last_s[0] = host::arrive(counter, count, file, line);
    __syncthreads();
#endif
    return last_s[0] != 0;
}

// ---- Philox4x32-10 and dropout -----------------------------------------------------------------------------
DEV uint4 philox(uint2 key, uint4 c) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
        const uint32_t h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ key.x, l1, h0 ^ c.w ^ key.y, l0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return c;
}
// Element e of a site is kept if word e%4 of philox(seed, (e/4, site, step)) >= threshold = floor(p * 2^32), and is
// then multiplied by scale = 1/(1-p). threshold 0: no dropout.
struct Dropout {
    uint64_t seed;
    uint32_t site, step, threshold;
    float scale;
};
DEV uint4 dropout_words(const Dropout &d, uint64_t four) {
    return philox(make_uint2(uint32_t(d.seed), uint32_t(d.seed >> 32)), make_uint4(uint32_t(four), uint32_t(four >> 32), d.site, d.step));
}
// 0 or scale: what element e is multiplied by.
DEV float drop_factor(const Dropout &d, uint64_t e) {
    if (d.threshold == 0) return 1.f;
    const uint4 w = dropout_words(d, e / 4);
    const uint32_t word = (e & 3) == 0 ? w.x : (e & 3) == 1 ? w.y : (e & 3) == 2 ? w.z : w.w;
    return word >= d.threshold ? d.scale : 0.f;
}
// Multiplies v[i] by the factor of element e + i; N a multiple of 4.
template <int N> DEV void drop(const Dropout &d, uint64_t e, float (&v)[N]) {
    if (d.threshold == 0) return;
    const int shift = int(e & 3);
    uint32_t w[N + 4];
#pragma unroll
    for (int q = 0; q < N / 4 + 1; q++) {
        uint4 a = make_uint4(0, 0, 0, 0);
        if (q < N / 4 || shift) a = dropout_words(d, e / 4 + uint64_t(q));
        w[4 * q] = a.x, w[4 * q + 1] = a.y, w[4 * q + 2] = a.z, w[4 * q + 3] = a.w;
    }
    if (shift) {
#pragma unroll
        for (int i = 0; i < N; i++)  // selects, not w[i + shift]: an index known only at run time would put w into local memory
            w[i] = shift == 1 ? w[i + 1] : shift == 2 ? w[i + 2] : w[i + 3];
    }
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = w[i] >= d.threshold ? v[i] * d.scale : 0.f;
}
// drop, and whether element i is kept as bit i of the result.
template <int N> DEV uint32_t drop_and_tell(const Dropout &d, uint64_t e, float (&v)[N]) {
    if (d.threshold == 0) return (1u << N) - 1u;
    float factor[N];
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < N; i++) factor[i] = 1.f;
    drop(d, e, factor);
#pragma unroll
    for (int i = 0; i < N; i++) {
        kept |= uint32_t(factor[i] != 0.f) << i;
        v[i] = factor[i] != 0.f ? v[i] * d.scale : 0.f;
    }
    return kept;
}
// drop from those bits.
template <int N> DEV void drop_again(uint32_t kept, float scale, float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = kept >> i & 1u ? v[i] * scale : 0.f;
}
DEV void drop8(const Dropout &d, uint64_t e, float (&v)[8]) { drop(d, e, v); }

// ---- dynamic shared memory, cut into typed arrays (on the host each has gaps around it) --------------------
struct Carve {
    unsigned char *base;
    uint32_t offset;
};
template <class T> DEV T *take(Carve &c, int count, int align = 16) {
    c.offset = (c.offset + uint32_t(align) - 1) / uint32_t(align) * uint32_t(align);
#if defined(__CUDACC__)
    T *p = reinterpret_cast<T *>(c.base + c.offset);
#else
    T *p = static_cast<T *>(host::carve(c.base, c.offset, sizeof(T) * size_t(count), size_t(align)));
#endif
    c.offset += uint32_t(sizeof(T)) * uint32_t(count);
    return p;
}

// ---- cp.async, ldmatrix, mma.sync --------------------------------------------------------------------------
// cp_async16: 16 bytes from global g to shared s; zeros when !valid (g is then not read).
// ldmatrix_x4: lane l names row l%8 of 8x8 matrix l/8.   mma: d[16,8] += a[16,16] @ b[16,8], layouts of the PTX ISA.
#if defined(__CUDACC__)
DEV uint32_t shared_address(const void *p) { return uint32_t(__cvta_generic_to_shared(p)); }
DEV void cp_async16(void *s, const void *g, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(s)), "l"(g), "r"(valid ? 16 : 0) : "memory");
}
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS_LEFT> DEV void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory"); }
DEV void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
#define DEV_MMA(TYPE)                                                                                       \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                             \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const f16 *) { DEV_MMA("f16"); }
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const bf16 *) { DEV_MMA("bf16"); }
#else
DEV void cp_async16(void *s, const void *g, bool valid, HOST_PLACE) { host::cp_async(s, g, 16, valid ? 16 : 0, file, line); }
DEV void cp_async_commit() { host::cp_async_commit(); }
template <int GROUPS_LEFT> DEV void cp_async_wait() { host::cp_async_wait(GROUPS_LEFT); }
DEV void ldmatrix_x4(uint32_t (&r)[4], const void *row, HOST_PLACE) { host::ldmatrix_x4(r, row, false, file, line); }
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, HOST_PLACE) { host::ldmatrix_x4(r, row, true, file, line); }
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const f16 *, HOST_PLACE) {
    const uint32_t b[2] = {b0, b1};
    host::mma_16816(true, d, a, b, file, line);
}
DEV void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const bf16 *, HOST_PLACE) {
    const uint32_t b[2] = {b0, b1};
    host::mma_16816(false, d, a, b, file, line);
}
#endif

// ---- products of a warpgroup -------------------------------------------------------------------------------
// Four warps, the whole block, multiply 64 rows, 16 a warp and in registers as for mma, by an operand in shared memory that
// is cut into pieces of 8 columns: piece c of row r lies at p + (c * ROWS + r) * 8, 16-byte aligned.
//   wg_rows     d[n] [16,8] (+)= a [16,16] @ (rows 8n .. 8n+7 of b, pieces 0 and 1)^T       n < N/8
//   wg_columns  d[n] [16,8] (+)= a [16,16] @ (rows 0 .. 15 of b, piece n)                   n < N/8
// With wgmma (sm_90a) they only start: neither d nor a may be touched between wg_begin, which comes before the first of them
// and again after a write to a, and wg_end, which waits for all. Without it every warp does its part at once by mma.
// shared_written: by every thread after its writes to b (and their cp_async_wait), before the barrier.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <class T, int ROWS> struct Pieces {
    uint32_t p;  // in units of 16 bytes
    DEV_METHOD Pieces at(int row, int piece) const { return Pieces{p + uint32_t(piece * ROWS + row)}; }
};
template <int ROWS, class T> DEV Pieces<T, ROWS> pieces(const T *p) { return Pieces<T, ROWS>{shared_address(p) / 16}; }
DEV void shared_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void wg_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int BLOCKS> DEV void wg_end(float (&d)[BLOCKS][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < 4 * BLOCKS; i++) asm volatile("" : "+f"(d[i / 4][i & 3])::"memory");  // d is read after the wait
}
// A descriptor without swizzle: a core matrix is 8 rows of 16 bytes, one after another. Offsets in units of 16 bytes.
// As it lies (the product runs along the pieces): leading = to the next piece, stride = to the next 8 rows. Transposed
// (it runs along the rows): leading = to the next 8 rows, stride = to the next piece.
DEV uint64_t wg_operand(uint32_t p, uint32_t leading, uint32_t stride) { return uint64_t(stride) << 32 | (leading << 16 | p); }
#define DEV_WG_4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define DEV_WG_16(n) DEV_WG_4(n), DEV_WG_4(n + 1), DEV_WG_4(n + 2), DEV_WG_4(n + 3)
#define DEV_WG_32(n) DEV_WG_16(n), DEV_WG_16(n + 4)
#define DEV_WG_NAMES_32                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define DEV_WG_NAMES_44 DEV_WG_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43"
#define DEV_WG_NAMES_64                                                                                     \
    DEV_WG_NAMES_44 ",%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DEV_WG_NAMES_68 DEV_WG_NAMES_64 ",%64,%65,%66,%67"
// SIZE: n and the types; A: the names of a's four registers; B and ADD: those of the descriptor and of `add`
#define DEV_WGMMA(SIZE, NAMES, A, B, ADD, TRANSPOSED, ...)                                                  \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, " ADD ", 0; wgmma.mma_async.sync.aligned.m64" SIZE     \
                 " {" NAMES "}, {" A "}, " B ", add, 1, 1, " TRANSPOSED "; }"                               \
                 : __VA_ARGS__                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)) : "memory")
#define DEV_WG_PRODUCTS(T, TYPES)                                                                           \
    template <int N> DEV void wg_start(float (*d)[4], const uint32_t (&a)[4], uint64_t b, bool add, const T *) { \
        static_assert(N == 64 || N == 88 || N == 128 || N == 136, "no such product");                      \
        if constexpr (N == 64)                                                                              \
            DEV_WGMMA("n64k16.f32." TYPES, DEV_WG_NAMES_32, "%32,%33,%34,%35", "%36", "%37", "1", DEV_WG_32(0)); \
        if constexpr (N == 88)                                                                              \
            DEV_WGMMA("n88k16.f32." TYPES, DEV_WG_NAMES_44, "%44,%45,%46,%47", "%48", "%49", "1", DEV_WG_32(0), \
                      DEV_WG_4(8), DEV_WG_4(9), DEV_WG_4(10));                                              \
        if constexpr (N == 128)                                                                             \
            DEV_WGMMA("n128k16.f32." TYPES, DEV_WG_NAMES_64, "%64,%65,%66,%67", "%68", "%69", "0", DEV_WG_32(0), DEV_WG_32(8)); \
        if constexpr (N == 136)                                                                             \
            DEV_WGMMA("n136k16.f32." TYPES, DEV_WG_NAMES_68, "%68,%69,%70,%71", "%72", "%73", "0", DEV_WG_32(0), DEV_WG_32(8), \
                      DEV_WG_4(16));                                                                        \
    }
DEV_WG_PRODUCTS(f16, "f16.f16")
DEV_WG_PRODUCTS(bf16, "bf16.bf16")
template <int N, class T, int ROWS>
DEV void wg_rows(float (*d)[4], const uint32_t (&a)[4], const Pieces<T, ROWS> &b, bool add) {
    static_assert(N == 128 || N == 136, "as it lies");
    wg_start<N>(d, a, wg_operand(b.p, ROWS, 8), add, static_cast<const T *>(nullptr));
}
template <int N, class T, int ROWS>
DEV void wg_columns(float (*d)[4], const uint32_t (&a)[4], const Pieces<T, ROWS> &b, bool add) {
    static_assert(N == 64 || N == 88, "transposed");
    wg_start<N>(d, a, wg_operand(b.p, 8, ROWS), add, static_cast<const T *>(nullptr));
}
#else
template <class T, int ROWS> struct Pieces {
    const T *p;
    DEV_METHOD Pieces at(int row, int piece) const { return Pieces{p + (piece * ROWS + row) * 8}; }
};
template <int ROWS, class T> DEV Pieces<T, ROWS> pieces(const T *p) { return Pieces<T, ROWS>{p}; }
DEV void shared_written() {}
DEV void wg_begin() {}
DEV void wg_commit() {}
template <int BLOCKS> DEV void wg_end(float (&)[BLOCKS][4]) {}
// The 8 x 8 matrices of two blocks n, n+1 and two halves of the 16 columns or rows that a product runs along; the last
// block of an odd number is read twice.
template <int N, class T, int ROWS>
DEV void wg_rows(float (*d)[4], const uint32_t (&a)[4], const Pieces<T, ROWS> &b, bool add) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
        const bool two = n + 1 < N / 8;
        uint32_t f[4];
        ldmatrix_x4(f, b.at(n * 8 + (lane & 7) + (two ? lane >> 4 : 0) * 8, lane >> 3 & 1).p);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!add) d[n][i] = 0.f;
            if (!add && two) d[n + 1][i] = 0.f;
        }
        mma(d[n], a, f[0], f[1], b.p);
        if (two) mma(d[n + 1], a, f[2], f[3], b.p);
    }
}
template <int N, class T, int ROWS>
DEV void wg_columns(float (*d)[4], const uint32_t (&a)[4], const Pieces<T, ROWS> &b, bool add) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
        const bool two = n + 1 < N / 8;
        uint32_t f[4];
        ldmatrix_x4_trans(f, b.at((lane & 7) + (lane >> 3 & 1) * 8, n + (two ? lane >> 4 : 0)).p);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!add) d[n][i] = 0.f;
            if (!add && two) d[n + 1][i] = 0.f;
        }
        mma(d[n], a, f[0], f[1], b.p);
        if (two) mma(d[n + 1], a, f[2], f[3], b.p);
    }
}
#endif
}  // namespace dev
