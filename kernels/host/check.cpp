// check.cpp: an exact memory checker (feature host-check).
//
// Kernels are compiled with -fsanitize=thread, which makes the compiler call __tsan_readN or __tsan_writeN before
// every memory access. The sanitizer's own library is not linked: those functions are defined here and know the
// CUDA model. They report accesses out of bounds of a buffer or of an array in shared memory, reads of memory that
// nobody wrote, bytes with an asynchronous copy in flight, and data races.
// A race is decided by vector clocks, one per thread, joined by __syncthreads and __syncwarp (and by nothing else;
// a shuffle orders no memory). Blocks of a grid are ordered by dev::last_block alone: the last one comes after what the
// others did before they came. Each 4-byte granule remembers four accesses, so a race with an older one can be missed; a
// report is never wrong.
#include "host.h"
#include "runtime.hpp"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <mutex>
#include <pthread.h>
#include <unistd.h>
extern "C" char __executable_start, _end;  // the program's own image: constants of the kernels

namespace host {
namespace {
enum : uint8_t { INITIALISED = 1, IN_FLIGHT = 2 };  // of a byte
struct Access {                                     // one remembered access to a granule of 4 bytes
    uint32_t block, clock;
    uintptr_t place;
    uint16_t thread;
    uint8_t bytes;  // bit i: byte i of the granule; 0: no access here
    bool write;
};
struct Region {
    const char *base = nullptr;
    size_t bytes = 0;
    bool shared = false;
    std::vector<uint8_t> state;    // of each byte
    std::vector<Access> accesses;  // four for each granule, made at the first use
    Access *granule(const char *g) {
        if (accesses.empty()) accesses.resize((bytes / 4 + 2) * 4);
        return &accesses[size_t(g - reinterpret_cast<const char *>(uintptr_t(base) & ~uintptr_t(3))) / 4 * 4];
    }
};
struct Span {
    const char *lo, *hi;
    bool has(const char *p) const { return p >= lo && p < hi; }
};

std::mutex buffers_lock;  // other threads allocate while a launch runs
std::map<const char *, Region> buffers;
Region arena;
std::vector<Span> arrays;  // the arrays in shared memory
std::vector<std::vector<uint32_t>> clocks;
uint32_t block_id = 1, first_block = 1, victim = 0;
using Seen = std::map<uint32_t, std::vector<uint32_t>>;  // of a block: the clocks of its threads
std::map<const char *, Seen> arrivals;                   // at each counter of dev::last_block
Seen before;                                             // what comes before the running block
Span image, os_stack;

// ---- reports -----------------------------------------------------------------------------------------------
// A place is file:line of a wrapper call (pointer | line << 48), or an address in the code.
std::string text_of(uintptr_t place) {
    if (place >> 48) {
        const std::string file = reinterpret_cast<const char *>(place & 0xffffffffffff);
        return file + ":" + std::to_string(place >> 48);
    }
    Dl_info info;
    link_map *map = nullptr;
    char program[400] = "", command[600], out[400] = "?";
    if (!place || !dladdr1(reinterpret_cast<void *>(place), &info, reinterpret_cast<void **>(&map), RTLD_DL_LINKMAP)) return "?";
    if (map->l_name[0]) snprintf(program, sizeof program, "%s", map->l_name);
    else if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return "?";
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", program, size_t(place - 1 - map->l_addr));
    if (FILE *f = popen(command, "r")) {
        if (fgets(out, sizeof out, f)) out[strcspn(out, "\n (")] = 0;
        pclose(f);
    }
    const char *shorter = strstr(out, "kernels/");
    return shorter ? shorter : out;
}
[[gnu::noinline]] void report(const std::string &what, uintptr_t place) { checker_found(what + " at " + text_of(place)); }
std::string describe(const Access &a) {
    return std::string(a.write ? "write" : "read") + " by thread " + std::to_string(a.thread) +
           (a.block != block_id ? " of another block" : "") + " at " + text_of(a.place);
}

// ---- one access --------------------------------------------------------------------------------------------
// The region an access belongs to; null if it needs no check (stacks, constants) or if it was reported.
Region *region_of(const char *p, size_t n, uintptr_t place) {
    if (size_t(p - arena.base) < arena.bytes) {
        for (const Span &a : arrays) if (p >= a.lo && p + n <= a.hi) return &arena;
        report("shared memory access of " + std::to_string(n) + " bytes outside every array", place);
        return nullptr;
    }
    const Worker &w = *worker;
    const Span stacks{w.stacks, w.stacks + size_t(w.stack_count) * STACK_BYTES};
    const Span fibers{reinterpret_cast<const char *>(w.fibers.data()), reinterpret_cast<const char *>(w.fibers.data() + w.fibers.size())};
    const void *thread_local_current = &current;
    if (stacks.has(p) || fibers.has(p) || image.has(p) || os_stack.has(p) || p == thread_local_current) return nullptr;
    Region *found = nullptr;
    {  // no lock may be held across report(), which never returns to this fiber
        std::lock_guard<std::mutex> lock(buffers_lock);
        auto it = buffers.upper_bound(p);
        if (it != buffers.begin() && p < (--it)->second.base + it->second.bytes + 65536) found = &it->second;
    }
    if (!found) report("access to memory that is no device buffer", place);
    else if (p + n > found->base + found->bytes)
        report("access of " + std::to_string(n) + " bytes at offset " + std::to_string(p - found->base) + " of a buffer of " +
                   std::to_string(found->bytes) + " bytes", place);
    return found;
}

void check_state(Region &r, const char *p, size_t n, bool write, bool copy, uintptr_t place) {
    uint8_t *state = r.state.data() + (p - r.base);
    bool unwritten = false, flying = false;
    for (size_t i = 0; i < n; i++) unwritten |= !(state[i] & INITIALISED), flying |= bool(state[i] & IN_FLIGHT);
    if (flying && !copy) report("access to bytes with a cp.async in flight", place);
    if (unwritten && !write) report(std::string("read of uninitialised ") + (r.shared ? "shared" : "global") + " memory", place);
    if (write) for (size_t i = 0; i < n; i++) state[i] |= INITIALISED;
}

// Whether an access of another block comes before the running one.
bool is_before(const Access &other) {
    const auto it = before.find(other.block);
    return it != before.end() && it->second[other.thread] >= other.clock;
}
// Compares with the accesses the granule remembers, and remembers this one.
void check_race(Region &r, const char *g, const Access &mine) {
    Access *four = r.granule(g);
    int slot = -1;
    for (int i = 0; i < 4; i++) {
        const Access &other = four[i];
        if (!other.bytes || other.block < first_block || (r.shared && other.block != block_id)) {
            slot = i;
            continue;
        }
        const bool ordered = other.block == block_id
                                 ? other.thread == mine.thread || clocks[mine.thread][other.thread] >= other.clock
                                 : is_before(other);
        if ((other.bytes & mine.bytes) && (other.write || mine.write) && !ordered)
            return checker_found(std::string("data race on ") + (r.shared ? "shared" : "global") + " memory: " + describe(mine) + " and " + describe(other));
        if (ordered && (other.bytes & mine.bytes) == other.bytes && (mine.write || !other.write)) slot = i;  // superseded
    }
    if (slot < 0) {
        slot = int(victim++ & 3);
        if (!mine.write && four[slot].write) slot = int(victim++ & 3);
    }
    four[slot] = mine;
}

void access(const void *address, size_t n, bool write, int thread, uintptr_t place, bool copy = false) {
    if (!n) return;
    const char *p = static_cast<const char *>(address);
    Region *r = region_of(p, n, place);
    if (!r) return;
    check_state(*r, p, n, write, copy, place);
    const uint32_t clock = clocks[size_t(thread)][size_t(thread)];
    for (const char *g = reinterpret_cast<const char *>(uintptr_t(p) & ~uintptr_t(3)); g < p + n; g += 4) {
        uint8_t bytes = 0;
        for (int i = 0; i < 4; i++) if (g + i >= p && g + i < p + n) bytes |= uint8_t(1 << i);
        check_race(*r, g, Access{block_id, clock, place, uint16_t(thread), bytes, write});
    }
}

// ---- events ------------------------------------------------------------------------------------------------
void begin_launch() {
    first_block = block_id + 1;
    arrivals.clear();
    pthread_attr_t attributes;
    void *stack;
    size_t bytes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &bytes);
    pthread_attr_destroy(&attributes);
    os_stack = {static_cast<const char *>(stack), static_cast<const char *>(stack) + bytes};
    image = {&__executable_start, &_end};
}
void begin_block(const Event &e) {
    block_id++;
    arrays.clear();
    before.clear();
    if (arena.base != e.p) {
        arena = Region{};
        arena.base = static_cast<const char *>(e.p), arena.bytes = e.bytes, arena.shared = true;
        arena.state.resize(e.bytes);
    }
    const size_t n = size_t(e.thread);
    clocks.assign(n, std::vector<uint32_t>(n, 0));
    for (size_t t = 0; t < n; t++) clocks[t][t] = 1;
}
void join(const int *who, int count) {
    std::vector<uint32_t> all(clocks.size(), 0);
    if (size_t(count) == clocks.size()) {  // the whole block: everyone's own clock says it all
        for (size_t t = 0; t < clocks.size(); t++) all[t] = clocks[t][t];
    } else {
        for (int i = 0; i < count; i++)
            for (size_t t = 0; t < all.size(); t++) all[t] = std::max(all[t], clocks[size_t(who[i])][t]);
    }
    for (int i = 0; i < count; i++) {
        const size_t t = size_t(who[i]);
        clocks[t] = all;
        clocks[t][t]++;
    }
}
// A block comes to a counter: a read and a write that no other block's races with. The last one sees all before it.
void arrive(const Event &e, const char *p) {
    if (Region *r = region_of(p, e.bytes, checked_place)) check_state(*r, p, e.bytes, false, false, checked_place);
    Seen &all = arrivals[p];
    if (e.kind == Event::LAST) {
        before.insert(all.begin(), all.end());
        arrivals.erase(p);
    } else {
        all[block_id] = clocks[size_t(e.thread)];
    }
}
void set_in_flight(const void *p, size_t n, bool flying) {
    uint8_t *state = arena.state.data() + (static_cast<const char *>(p) - arena.base);
    for (size_t i = 0; i < n; i++) state[i] = uint8_t(flying ? state[i] | IN_FLIGHT : state[i] & ~IN_FLIGHT);
}
// The bytes of [p, p + n) in its buffer, or null.
uint8_t *state_of(const char *p, size_t n) {
    auto it = buffers.upper_bound(p);
    if (it == buffers.begin()) return nullptr;
    Region &r = (--it)->second;
    return p + n <= r.base + r.bytes ? r.state.data() + (p - r.base) : nullptr;
}
void buffer_event(const Event &e) {
    const char *p = static_cast<const char *>(e.p);
    std::lock_guard<std::mutex> lock(buffers_lock);
    if (e.kind == Event::FREE) buffers.erase(p);
    else if (e.kind == Event::ALLOCATE) {
        Region &r = buffers[p] = Region{};
        r.base = p, r.bytes = e.bytes;
        r.state.resize(e.bytes);
    } else if (uint8_t *state = state_of(p, e.bytes)) std::fill_n(state, e.bytes, uint8_t(INITIALISED));
}
void on_event(const Event &e) {
    const char *p = static_cast<const char *>(e.p);
    switch (e.kind) {
        case Event::LAUNCH: return begin_launch();
        case Event::BLOCK: return begin_block(e);
        case Event::JOIN: return join(e.who, e.who_count);
        case Event::READ: return access(e.p, e.bytes, false, e.thread, checked_place);
        case Event::WRITE: return access(e.p, e.bytes, true, e.thread, checked_place);
        case Event::COPY_BEGIN:
            access(e.p, e.bytes, true, e.thread, checked_place);
            return set_in_flight(e.p, e.bytes, true);
        case Event::COPY_END:
            set_in_flight(e.p, e.bytes, false);
            return access(e.p, e.bytes, true, e.thread, checked_place, true);
        case Event::ARRIVE:
        case Event::LAST: return arrive(e, p);
        case Event::SHARED_ARRAY:
            arrays.push_back({p, p + e.bytes});
            std::fill_n(arena.state.begin() + (p - arena.base), e.bytes, uint8_t(0));
            return;
        default: return buffer_event(e);
    }
}
struct Install {
    Install() { checker = on_event; }
} install;

void instrumented(const void *p, size_t n, bool write, uintptr_t place, bool needs_alignment) {
    if (!current) return;
    if (needs_alignment && uintptr_t(p) % n) report("misaligned access of " + std::to_string(n) + " bytes", place);
    access(p, n, write, int(current->index), place);
}
}  // namespace
}  // namespace host

extern "C" {
size_t qformer_host_unwritten(const void *p, size_t bytes) {
    std::lock_guard<std::mutex> lock(host::buffers_lock);
    const uint8_t *state = host::state_of(static_cast<const char *>(p), bytes);
    return state ? size_t(std::count(state, state + bytes, uint8_t(0))) : bytes;
}
int qformer_host_checked(void) { return 1; }

#define PLACE reinterpret_cast<uintptr_t>(__builtin_return_address(0))
#define INSTRUMENT(n)                                                                          \
    void __tsan_read##n(void *p) { host::instrumented(p, n, false, PLACE, true); }             \
    void __tsan_write##n(void *p) { host::instrumented(p, n, true, PLACE, true); }             \
    void __tsan_unaligned_read##n(void *p) { host::instrumented(p, n, false, PLACE, false); }  \
    void __tsan_unaligned_write##n(void *p) { host::instrumented(p, n, true, PLACE, false); }  \
    void __tsan_volatile_read##n(void *p) { host::instrumented(p, n, false, PLACE, true); }    \
    void __tsan_volatile_write##n(void *p) { host::instrumented(p, n, true, PLACE, true); }
INSTRUMENT(1) INSTRUMENT(2) INSTRUMENT(4) INSTRUMENT(8) INSTRUMENT(16)
void __tsan_read_range(void *p, size_t n) { host::instrumented(p, n, false, PLACE, false); }
void __tsan_write_range(void *p, size_t n) { host::instrumented(p, n, true, PLACE, false); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
