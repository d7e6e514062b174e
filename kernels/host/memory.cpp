// memory.cpp: shared memory with gaps between the arrays, asynchronous copies, and global memory between
// inaccessible pages. Fresh memory of either kind is filled with 0xff bytes: NaN in f16, bf16 and f32.
#include "runtime.hpp"
#include "host.h"
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <mutex>
#include <sys/mman.h>

namespace host {
size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

// ---- shared memory -----------------------------------------------------------------------------------------
// [0, dynamic_bytes) is what a launch gave; arrays carved out of it and __shared__ arrays lie above, with gaps.
static void *place(std::vector<SharedArray> &list, const void *key, size_t bytes, size_t align) {
    Worker &w = *worker;
    const size_t start = round_up(w.arena_end + GAP, align);
    if (start + bytes + GAP > ARENA_BYTES) fail("the arrays in shared memory do not fit %zu bytes", ARENA_BYTES);
    w.arena_end = start + bytes;
    list.push_back({key, w.arena + start, bytes});
    tell(Event::SHARED_ARRAY, w.arena + start, bytes, 0);
    return w.arena + start;
}
void shared_begin_block() {
    Worker &w = *worker;
    memset(w.arena, 0xff, std::max(w.arena_end, w.dynamic_bytes) + GAP);
    w.statics.clear();
    w.carved.clear();
    w.static_bytes = 0;
    w.arena_end = w.dynamic_bytes;
}
unsigned char *dynamic_shared() { return worker->arena; }
void *carve(unsigned char *base, size_t offset, size_t bytes, size_t align) {
    Worker &w = *worker;
    if (base != w.arena) fail("a carve must start at the base of the dynamic shared memory");
    if (offset + bytes > w.dynamic_bytes)
        fail("shared memory [%zu, %zu) is past the %zu bytes given at launch", offset, offset + bytes, w.dynamic_bytes);
    const void *key = reinterpret_cast<const void *>(offset + 1);
    for (SharedArray &a : w.carved) {
        if (a.key != key) continue;
        if (a.bytes != bytes) fail("shared memory at %zu is taken with %zu and with %zu bytes", offset, a.bytes, bytes);
        return a.p;
    }
    return place(w.carved, key, bytes, std::max<size_t>(align, 16));
}
void *static_shared(const void *key, size_t bytes, size_t align, const char *name) {
    Worker &w = *worker;
    for (SharedArray &a : w.statics) if (a.key == key) return a.p;
    w.static_bytes += round_up(bytes, align);
    if (w.static_bytes > STATIC_SHARED_MAX) fail("__shared__ %s: more than %zu bytes in all", name, STATIC_SHARED_MAX);
    return place(w.statics, key, bytes, std::max<size_t>(align, 128));
}
// Whatever lies between the arrays must still be as it was filled.
void shared_check_canaries() {
    Worker &w = *worker;
    std::vector<SharedArray> used;
    for (auto *list : {&w.carved, &w.statics}) used.insert(used.end(), list->begin(), list->end());
    std::sort(used.begin(), used.end(), [](auto &a, auto &b) { return a.p < b.p; });
    used.push_back({nullptr, w.arena + w.arena_end + GAP, 0});
    const unsigned char *at = w.arena;
    for (const SharedArray &array : used) {
        for (; at < array.p; at++)
            if (*at != 0xff) return set_error("a write past the end of an array in shared memory");
        at = array.p + array.bytes;
    }
}

// ---- cp.async: done at issue or at the wait, both are legal ------------------------------------------------
static void run_copy(const Fiber &f, const AsyncCopy &c) {
    at_place(c.file, c.line);
    tell(Event::READ, c.global, size_t(c.source_bytes), int(f.index));
    tell(Event::COPY_END, c.shared, size_t(c.bytes), int(f.index));
    memcpy(c.shared, c.global, size_t(c.source_bytes));
    memset(static_cast<char *>(c.shared) + c.source_bytes, 0, size_t(c.bytes - c.source_bytes));
}
void check_aligned(const void *p, size_t bytes, const char *file, int line) {
    if (uintptr_t(p) % bytes) fail("misaligned access: %zu bytes at %s:%d", bytes, file, line);
}
void cp_async(void *shared, const void *global, int bytes, int source_bytes, const char *file, int line) {
    Worker &w = *worker;
    if (size_t(static_cast<unsigned char *>(shared) - w.arena) > ARENA_BYTES - size_t(bytes))
        fail("cp.async at %s:%d: the destination is not in shared memory", file, line);
    check_aligned(shared, size_t(bytes), file, line);
    if (source_bytes) check_aligned(global, size_t(bytes), file, line);
    Fiber *f = self();
    const AsyncCopy copy{shared, global, bytes, source_bytes, f->open_group, file, line};
    at_place(file, line);
    tell(Event::COPY_BEGIN, shared, size_t(bytes), int(f->index));
    if (w.schedule.copies == COPY_EARLY || (w.schedule.copies == COPY_RANDOM && w.random(2))) run_copy(*f, copy);
    else f->copies.push_back(copy);
}
void cp_async_commit() { self()->open_group++; }
void cp_async_wait(int groups_left) { run_copies(*self(), groups_left); }
void run_copies(Fiber &f, int groups_left) {
    size_t kept = 0;
    for (AsyncCopy &c : f.copies) {
        if (c.group < f.open_group - groups_left) run_copy(f, c);
        else f.copies[kept++] = c;
    }
    f.copies.resize(kept);
}

// ---- global memory: the end of a buffer (rounded to 16 bytes) against an inaccessible page -----------------
namespace {
constexpr size_t GUARD = 1 << 20;  // address space only: an index that overflowed lands here, not in another buffer
struct Allocation {
    char *map;
    size_t map_bytes;
    char *p;
    size_t bytes;
};
std::vector<Allocation> allocations;
std::mutex allocations_lock;
struct sigaction previous_handler;

// A faulting fiber is left for good, and its launch returns an error; any other fault goes where it went before.
void on_fault(int signal_number, siginfo_t *info, void *context) {
    if (current && worker) {
        const char *at = static_cast<const char *>(info->si_addr);
        char text[160];
        snprintf(text, sizeof text, "access to address %p, which belongs to no buffer", info->si_addr);
        for (const Allocation &a : allocations)
            if (at >= a.map && at < a.map + a.map_bytes)
                snprintf(text, sizeof text, "global access out of bounds: offset %ld of a buffer of %zu bytes", long(at - a.p), a.bytes);
        if (at >= worker->stacks && at < worker->stacks + size_t(worker->stack_count) * STACK_BYTES)
            snprintf(text, sizeof text, "stack overflow: a thread's local arrays are larger than %zu bytes", STACK_BYTES - PAGE);
        set_error(text + here());
        abandon();
    }
    if (previous_handler.sa_flags & SA_SIGINFO) return previous_handler.sa_sigaction(signal_number, info, context);
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
}
}  // namespace
void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_handler);
    });
}
}  // namespace host

using namespace host;
extern "C" {
void *qformer_host_alloc(size_t bytes) {
    const size_t body = round_up(bytes ? bytes : 1, PAGE), map_bytes = body + 2 * GUARD;
    void *map = mmap(nullptr, map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    char *m = static_cast<char *>(map);
    if (mprotect(m + GUARD, body, PROT_READ | PROT_WRITE)) {
        munmap(map, map_bytes);
        return nullptr;
    }
    char *p = m + GUARD + body - round_up(bytes, 16);
    memset(m + GUARD, 0xff, body);
    {
        std::lock_guard<std::mutex> lock(allocations_lock);
        allocations.push_back({m, map_bytes, p, bytes});
    }
    tell(Event::ALLOCATE, p, bytes, 0);
    return p;
}
void qformer_host_free(void *p) {
    tell(Event::FREE, p, 0, 0);
    std::lock_guard<std::mutex> lock(allocations_lock);
    auto it = std::find_if(allocations.begin(), allocations.end(), [&](const Allocation &a) { return a.p == p; });
    if (it == allocations.end()) return;
    munmap(it->map, it->map_bytes);
    allocations.erase(it);
}
void qformer_host_forget(void *p, size_t bytes) {
    memset(p, 0xff, bytes);
    tell(Event::FREE, p, 0, 0);
    tell(Event::ALLOCATE, p, bytes, 0);
}
void qformer_host_written(const void *p, size_t bytes) { tell(Event::HOST_WRITE, p, bytes, 0); }
}
