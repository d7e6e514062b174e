// launch.cpp: the registry of kernels, and running one over its grid. Blocks run one after another.
#include "host.h"
#include "runtime.hpp"
#include <csignal>
#include <cstdio>
#include <mutex>
#include <sys/mman.h>

namespace host {
static Kernel *kernels = nullptr;
void register_kernel(Kernel *kernel) {
    kernel->next = kernels;
    kernels = kernel;
}
// The first one of this name: a kernel that is loaded later takes no name away.
static const Kernel *find(const char *name) {
    const Kernel *found = nullptr;
    for (const Kernel *k = kernels; k; k = k->next) if (!strcmp(k->name, name)) found = k;
    return found;
}

void (*checker)(const Event &) = nullptr;
uintptr_t checked_place = 0;
void checker_found(const std::string &message) {
    if (!current) return;
    set_error(message + here());
    abandon();
}

// The worker of this OS thread; it lives as long as the process, like the thread-local pointer to it.
static Worker *this_worker() {
    if (worker) return worker;
    void *map = mmap(nullptr, 2 * ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    worker = new Worker{};
    worker->arena = reinterpret_cast<unsigned char *>(round_up(reinterpret_cast<uintptr_t>(map), ARENA_BYTES));
    memset(worker->arena, 0xff, ARENA_BYTES);
    return worker;
}

// The order of the blocks, for the random schedules.
static std::vector<uint32_t> shuffled(uint64_t blocks, uint64_t seed) {
    std::vector<uint32_t> order(blocks);
    for (uint64_t i = 0; i < blocks; i++) order[i] = uint32_t(i);
    uint64_t state = seed * 2654435761u + 7;
    for (uint64_t i = blocks; i > 1; i--) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i - 1], order[(state >> 33) % i]);
    }
    return order;
}

static void run_grid(Worker &w, const uint32_t grid[3], const uint32_t block[3]) {
    const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    std::vector<uint32_t> order;
    if (w.schedule.order >= RANDOM_THREADS) order = shuffled(blocks, w.schedule.seed);
    for (uint64_t i = 0; i < blocks && !w.failed; i++) {
        const uint64_t b = !order.empty() ? order[i] : w.schedule.order == REVERSE ? blocks - 1 - i : i;
        w.random_state = ((w.schedule.seed + 1) * 0x9e3779b97f4a7c15ull ^ (b + 1) * 0xbf58476d1ce4e5b9ull) | 1;
        run_block(grid, block, b);
    }
}

// Runs `kernel`; returns the error, or an empty text. Faults are taken on a stack of their own, since a fault may
// be the overflow of a fiber's stack.
static std::string launch(const Kernel &kernel, const uint32_t grid[3], const uint32_t block[3], void **args, Schedule schedule) {
    Worker *w = this_worker();
    if (!w) return "no memory for the shared memory arena";
    install_fault_handler();
    static std::mutex one_at_a_time;  // the checker knows one launch at a time
    std::unique_lock<std::mutex> lock(one_at_a_time, std::defer_lock);
    if (checker) lock.lock();
    static thread_local char fault_stack[65536];
    stack_t fault{}, before{};
    fault.ss_sp = fault_stack;
    fault.ss_size = sizeof fault_stack;
    sigaltstack(&fault, &before);
    w->schedule = schedule;
    w->kernel = &kernel;
    w->args = args;
    w->dynamic_bytes = size_t(kernel.shared_bytes);
    w->failed = false;
    w->error.clear();
    tell(Event::LAUNCH, nullptr, 0, 0);
    run_grid(*w, grid, block);
    sigaltstack(&before, nullptr);
    return w->error;
}
}  // namespace host

using namespace host;
extern "C" {
int qformer_host_kernel_at(int index, qformer_host_kernel *out) {
    const Kernel *k = kernels;
    while (k && index-- > 0) k = k->next;
    if (!k) return 0;
    *out = {k->name, k->params, k->param_count, k->max_threads, k->shared_bytes};
    return 1;
}
int qformer_host_launch(const char *name, const uint32_t grid[3], const uint32_t block[3], void **args,
                        const qformer_host_schedule *schedule, char *error, size_t capacity) {
    const Kernel *kernel = find(name);
    Schedule s;
    s.order = Order(schedule->order);
    s.copies = Copies(schedule->copies);
    s.seed = schedule->seed;
    const std::string message = kernel ? launch(*kernel, grid, block, args, s) : "no such kernel";
    snprintf(error, capacity, "%s", message.c_str());
    return message.empty() ? 0 : 1;
}
#if !defined(QFORMER_HOST_CHECK)
size_t qformer_host_unwritten(const void *, size_t) { return 0; }
int qformer_host_checked(void) { return 0; }
#endif
}
