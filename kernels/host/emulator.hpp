// emulator.hpp: the part of the CUDA language that kernels see when they are compiled for the host.
//
// dev.cuh includes this when the compiler is not nvcc. Only a small, explicit set of CUDA names exists here;
// whatever is collective over a warp or asynchronous goes through a function of namespace `host`, which knows
// the place it was called from. There is no atomic but the counter of dev::last_block, on purpose: no kernel of this crate
// may use another.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// ---- keywords ----------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// ---- vector types ------------------------------------------------------------------------------------------
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- the runtime, as kernels use it ------------------------------------------------------------------------
// The caller's place in the source, as two last arguments that nobody writes.
#define HOST_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace host {

// What a kernel reads through threadIdx and its kin.
struct Thread {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
    unsigned index, lane, warp;  // index within the block; lane and warp follow from it
};
// Plain __thread (no C++ wrapper call) is right here, because a fiber never changes its OS thread.
extern __thread Thread *current;

// Ends the launch with an error. The fiber is never resumed, so its destructors do not run.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void barrier(const char *file, int line);

enum Op { SYNCWARP, SHUFFLE, VOTE, LDMATRIX, MMA };
using Execute = void (*)(void **lanes, uint32_t mask);
// Warp rendezvous: returns when all lanes of `mask` have come; the last one executes for all.
void collective(Op op, uint32_t mask, void *lane, Execute execute, const char *file, int line);

// Counts a block; true for the last of `count`, which finds the counter 0 again.
bool arrive(uint32_t *counter, uint32_t count, const char *file, int line);

unsigned char *dynamic_shared();
void *static_shared(const void *key, size_t bytes, size_t align, const char *name);
void *carve(unsigned char *base, size_t offset, size_t bytes, size_t align);

void check_aligned(const void *p, size_t bytes, const char *file, int line);
void cp_async(void *shared, const void *global, int bytes, int source_bytes, const char *file, int line);
void cp_async_commit();
void cp_async_wait(int groups_left);
void ldmatrix_x4(uint32_t *r, const void *row, bool transposed, const char *file, int line);
void mma_16816(bool is_half, float *d, const uint32_t *a, const uint32_t *b, const char *file, int line);

// ---- registry: a kernel's name, its parameters and limits, and how to call it with void** -------------------
struct Param {
    uint32_t size;
    char kind;  // 'p' pointer, 'i' integer, 'f' float, 's' structure
};
struct Kernel {
    const char *name;
    void (*invoke)(const void *function, void **args);
    const void *function;
    const Param *params;
    int param_count, max_threads, shared_bytes;  // shared_bytes: the dynamic shared memory a launch must give
    Kernel *next;
};
void register_kernel(Kernel *kernel);

template <class T> constexpr char kind_of() {
    return std::is_pointer_v<T> ? 'p' : std::is_integral_v<T> ? 'i' : std::is_floating_point_v<T> ? 'f' : 's';
}
// Reads the arguments from the caller's memory, which the checker does not know: keep it uninstrumented.
template <class... A, size_t... I>
__attribute__((no_sanitize_thread)) inline void unpack(void (*f)(A...), void **args, std::index_sequence<I...>) {
    f(*static_cast<std::remove_reference_t<A> *>(args[I])...);
}
template <class... A> struct Register {
    __attribute__((no_sanitize_thread)) static void invoke(const void *function, void **args) {
        unpack(reinterpret_cast<void (*)(A...)>(const_cast<void *>(function)), args, std::index_sequence_for<A...>{});
    }
    static inline const Param params[] = {Param{uint32_t(sizeof(A)), kind_of<A>()}...};
    Kernel kernel;
    Register(const char *name, void (*f)(A...), int max_threads, int shared_bytes)
        : kernel{name, invoke, reinterpret_cast<const void *>(f), params, int(sizeof...(A)), max_threads, shared_bytes, nullptr} {
        register_kernel(&kernel);
    }
};

// ---- shuffles ----------------------------------------------------------------------------------------------
template <class T> struct ShuffleLane { T in, out; int source; };
template <class T> void shuffle_all(void **lanes, uint32_t mask) {
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        auto *lane = static_cast<ShuffleLane<T> *>(lanes[l]);
        if (!(mask >> lane->source & 1)) fail("shuffle: lane %d reads lane %d, which is not in mask %08x", l, lane->source, mask);
        lane->out = static_cast<ShuffleLane<T> *>(lanes[lane->source])->in;
    }
}
template <class T> T shuffle(uint32_t mask, T value, int source, const char *file, int line) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    ShuffleLane<T> lane{value, value, source};
    collective(SHUFFLE, mask, &lane, shuffle_all<T>, file, line);
    return lane.out;
}

template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace host

#define threadIdx (host::current->thread)
#define blockIdx (host::current->block)
#define blockDim (host::current->block_dim)
#define gridDim (host::current->grid_dim)

#define __syncthreads() host::barrier(__FILE__, __LINE__)
static inline void __syncwarp(uint32_t mask = 0xffffffffu, HOST_PLACE) {
    host::collective(host::SYNCWARP, mask, nullptr, nullptr, file, line);
}
template <class T> T __shfl_sync(uint32_t mask, T v, int source, HOST_PLACE) {
    return host::shuffle(mask, v, source & 31, file, line);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int x, HOST_PLACE) {
    return host::shuffle(mask, v, (int(host::current->lane) ^ x) & 31, file, line);
}

// ---- 16-bit floating point: storage only, arithmetic is done in f32 ----------------------------------------
struct __half { uint16_t x; };
struct __nv_bfloat16 { uint16_t x; };
static inline float __half2float(__half h) {
    const uint32_t sign = uint32_t(h.x & 0x8000u) << 16, rest = h.x & 0x7fffu;
    if (rest >= 0x7c00u) return host::bits<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    return host::bits<float>(host::bits<uint32_t>(host::bits<float>(rest << 13) * 0x1p112f) | sign);
}
static inline __half __float2half_rn(float f) {  // to nearest even, as cvt.rn.f16.f32
    uint32_t x = host::bits<uint32_t>(f);
    const uint32_t sign = x >> 16 & 0x8000u;
    x &= 0x7fffffffu;
    if (x > 0x7f800000u) return {0x7fff};
    if (x >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
    if (x < 0x38800000u) {  // subnormal: let the adder round
        return {uint16_t(sign | (host::bits<uint32_t>(host::bits<float>(x) + 0.5f) - 0x3f000000u))};
    }
    return {uint16_t(sign | (x + 0xc8000fffu + (x >> 13 & 1)) >> 13)};
}
static inline float __bfloat162float(__nv_bfloat16 b) { return host::bits<float>(uint32_t(b.x) << 16); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    const uint32_t x = host::bits<uint32_t>(f);
    if ((x & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {uint16_t((x + 0x7fffu + (x >> 16 & 1)) >> 16)};
}
static inline uint16_t __half_as_ushort(__half h) { return h.x; }
static inline __half __ushort_as_half(uint16_t x) { return {x}; }
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 b) { return b.x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t x) { return {x}; }

// ---- arithmetic --------------------------------------------------------------------------------------------
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
static inline uint32_t __float_as_uint(float f) { return host::bits<uint32_t>(f); }
static inline float __uint_as_float(uint32_t u) { return host::bits<float>(u); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
