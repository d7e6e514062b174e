// fibers.cpp: threads of a block as fibers, and the scheduler that picks the next one.
#include "runtime.hpp"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

namespace host {
__thread Thread *current = nullptr;
__thread Worker *worker = nullptr;

// ---- context switch ----------------------------------------------------------------------------------------
#if defined(__x86_64__)
extern "C" void qformer_host_switch(void **save, void *to);
// Pushes the callee-saved registers, changes the stack, pops them again. The floating-point control words are
// the same in every fiber and need no saving.
asm(R"(
.text
.globl qformer_host_switch
.type qformer_host_switch,@function
qformer_host_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size qformer_host_switch,.-qformer_host_switch
)");
static void make_context(Context &c, char *stack, size_t bytes, void (*entry)()) {
    void **top = reinterpret_cast<void **>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15)) - 2;
    top[0] = reinterpret_cast<void *>(entry);  // what `ret` finds
    top[1] = nullptr;
    for (int i = 1; i <= 6; i++) top[-i] = nullptr;
    c.stack_pointer = top - 6;
}
static inline void switch_context(Context &from, Context &to) { qformer_host_switch(&from.stack_pointer, to.stack_pointer); }
#else  // portable, and several times slower: swapcontext makes two system calls
static void make_context(Context &c, char *stack, size_t bytes, void (*entry)()) {
    getcontext(&c.context);
    c.context.uc_stack.ss_sp = stack;
    c.context.uc_stack.ss_size = bytes;
    c.context.uc_link = nullptr;
    makecontext(&c.context, entry, 0);
}
static inline void switch_context(Context &from, Context &to) { swapcontext(&from.context, &to.context); }
#endif

static void to_scheduler() { switch_context(self()->context, worker->scheduler); }

// ---- waiting and failing -----------------------------------------------------------------------------------
void make_ready(int thread) {
    Fiber &f = worker->fibers[size_t(thread)];
    f.state = READY;
    worker->warps[f.warp].ready |= 1u << f.lane;
    worker->warps_ready |= 1u << f.warp;
}
void wait_as(State state, const char *file, int line) {
    Fiber *f = self();
    f->state = state, f->file = file, f->line = line;
    to_scheduler();
}
void reschedule() {
    make_ready(int(current->index));
    to_scheduler();
}
void abandon() {
    to_scheduler();
    abort();  // the scheduler never comes back to a fiber that gave up
}
std::string here() {
    char text[160] = "";
    if (current) {
        const Thread &t = *current;
        snprintf(text, sizeof text, " [block (%u,%u,%u) thread (%u,%u,%u)]", t.block.x, t.block.y, t.block.z, t.thread.x,
                 t.thread.y, t.thread.z);
    }
    return text;
}
void set_error(const std::string &message) {
    if (worker->failed) return;
    worker->failed = true;
    worker->error = message;
}
void fail(const char *format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (!current) {
        fprintf(stderr, "host kernels: %s (outside a kernel)\n", text);
        abort();
    }
    set_error(text + here());
    abandon();
}

// ---- one block ---------------------------------------------------------------------------------------------
static void fiber_main() {
    Worker &w = *worker;
    Fiber *f = self();
    w.kernel->invoke(w.kernel->function, w.args);
    if (!f->copies.empty()) fail("a thread ends with cp.async copies that it never waited for");
    f->state = DONE;
    w.live--;
    Warp &warp = w.warps[f->warp];
    warp.done |= 1u << f->lane;
    for (Collective &c : warp.pending) {
        if (!(c.mask >> f->lane & 1)) continue;
        fail("a lane ends while others of its warp wait for it in %s, mask %08x, at %s:%d", op_name(c.op), c.mask, c.file, c.line);
    }
    abandon();
}

static int nth_bit(uint32_t set, uint32_t n) {
    while (n--) set &= set - 1;
    return __builtin_ctz(set);
}
static int first_bit(uint32_t set) { return __builtin_ctz(set); }
static int last_bit(uint32_t set) { return 31 - __builtin_clz(set); }
static int random_bit(Worker &w, uint32_t set) { return nth_bit(set, w.random(uint32_t(__builtin_popcount(set)))); }

// The warp with the highest priority; priorities are redrawn now and then, so one warp may run far ahead.
static int favoured_warp(Worker &w) {
    if (w.random(64) == 0) for (uint32_t &p : w.priority) p = w.random(1u << 30);
    int best = first_bit(w.warps_ready);
    for (uint32_t set = w.warps_ready; set; set &= set - 1) {
        const int i = first_bit(set);
        if (w.priority[size_t(i)] > w.priority[size_t(best)]) best = i;
    }
    return best;
}
static Fiber &pick(Worker &w) {
    int warp, lane;
    switch (w.schedule.order) {
        case IN_ORDER: warp = first_bit(w.warps_ready), lane = first_bit(w.warps[size_t(warp)].ready); break;
        case REVERSE: warp = last_bit(w.warps_ready), lane = last_bit(w.warps[size_t(warp)].ready); break;
        case RANDOM_THREADS: warp = random_bit(w, w.warps_ready), lane = random_bit(w, w.warps[size_t(warp)].ready); break;
        default: warp = favoured_warp(w), lane = random_bit(w, w.warps[size_t(warp)].ready);
    }
    Warp &chosen = w.warps[size_t(warp)];
    chosen.ready &= ~(1u << lane);
    if (!chosen.ready) w.warps_ready &= ~(1u << warp);
    return w.fibers[size_t(warp * 32 + lane)];
}

static std::string deadlock(const Worker &w) {
    static const char *const name[] = {"ready", "waiting at the barrier", "waiting for their warp", "ended"};
    std::vector<std::pair<std::string, int>> counts;
    for (const Fiber &f : w.fibers) {
        std::string s = name[f.state];
        if (f.state != DONE) s += std::string(" at ") + f.file + ":" + std::to_string(f.line);
        auto same = std::find_if(counts.begin(), counts.end(), [&](auto &c) { return c.first == s; });
        if (same == counts.end()) counts.push_back({s, 1});
        else same->second++;
    }
    std::string text = "deadlock:";
    for (auto &c : counts) text += " " + std::to_string(c.second) + " threads " + c.first + ";";
    const uint3 b = w.fibers[0].block;
    return text + " block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) + ")";
}

static void grow_stacks(Worker &w, int threads) {
    if (w.stack_count >= threads) return;
    if (w.stacks) munmap(w.stacks, size_t(w.stack_count) * STACK_BYTES);
    void *p = mmap(nullptr, size_t(threads) * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    w.stacks = p == MAP_FAILED ? nullptr : static_cast<char *>(p);
    w.stack_count = w.stacks ? threads : 0;
    for (int i = 0; i < w.stack_count; i++) mprotect(w.stacks + size_t(i) * STACK_BYTES, PAGE, PROT_NONE);
}

static void start_fibers(Worker &w, const uint32_t grid[3], const uint32_t block[3], uint64_t block_index) {
    for (size_t i = 0; i < w.fibers.size(); i++) {
        Fiber &f = w.fibers[i];
        const unsigned u = unsigned(i);
        f.thread = {u % block[0], u / block[0] % block[1], u / (block[0] * block[1])};
        f.block = {uint32_t(block_index % grid[0]), uint32_t(block_index / grid[0] % grid[1]),
                   uint32_t(block_index / (uint64_t(grid[0]) * grid[1]))};
        f.block_dim = {block[0], block[1], block[2]};
        f.grid_dim = {grid[0], grid[1], grid[2]};
        f.index = u, f.lane = u % 32, f.warp = u / 32;
        f.copies.clear();
        f.open_group = 0;
        make_context(f.context, w.stacks + i * STACK_BYTES + PAGE, STACK_BYTES - PAGE, fiber_main);
        w.warps[f.warp].valid |= 1u << f.lane;
        make_ready(int(i));
    }
}

void run_block(const uint32_t grid[3], const uint32_t block[3], uint64_t block_index) {
    Worker &w = *worker;
    const int threads = int(block[0] * block[1] * block[2]);
    grow_stacks(w, threads);
    if (!w.stacks) return set_error("no memory for the stacks of " + std::to_string(threads) + " threads");
    w.live = threads;
    w.fibers.resize(size_t(threads));
    w.warps.assign(size_t(threads + 31) / 32, Warp{});
    w.priority.assign(w.warps.size(), 1);
    w.warps_ready = 0;
    w.barrier.arrived.clear();
    shared_begin_block();
    start_fibers(w, grid, block, block_index);
    tell(Event::BLOCK, w.arena, ARENA_BYTES, threads);
    while (w.live && !w.failed) {
        if (!w.warps_ready) return set_error(deadlock(w));
        Fiber &f = pick(w);
        current = &f;
        switch_context(w.scheduler, f.context);
        current = nullptr;
    }
    if (!w.failed) shared_check_canaries();
}
}  // namespace host
