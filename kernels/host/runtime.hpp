// runtime.hpp: what the files of the emulator share. Kernels never see it.
//
// A block's threads are fibers on one OS thread; each runs until it has to wait (barrier, warp collective), in an
// order that the schedule sets. All state is per OS thread, so tests may launch from many threads at once.
#pragma once
#include "emulator.hpp"
#include <string>
#include <vector>

namespace host {

// ---- context switch (fibers.cpp) ---------------------------------------------------------------------------
#if defined(__x86_64__)
struct Context { void *stack_pointer; };
#else
}  // namespace host
#include <ucontext.h>
namespace host {
struct Context { ucontext_t context; };
#endif
constexpr size_t STACK_BYTES = 128 << 10;  // of a fiber, its first page inaccessible
constexpr size_t PAGE = 4096;

// ---- one thread, one warp, one block -----------------------------------------------------------------------
enum State : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, DONE };
struct AsyncCopy {
    void *shared;
    const void *global;
    int bytes, source_bytes, group;
    const char *file;
    int line;
};
struct Fiber : Thread {
    Context context;
    State state;
    const char *file;  // where it waits
    int line;
    std::vector<AsyncCopy> copies;
    int open_group;
};
struct Collective {
    Op op;
    uint32_t mask, arrived;
    void *lanes[32];
    Execute execute;
    const char *file;
    int line;
};
struct Warp {
    uint32_t ready, done, valid;
    std::vector<Collective> pending;
};
struct Barrier {
    std::vector<int> arrived;
    const char *file;
    int line;
};
struct SharedArray {
    const void *key;
    unsigned char *p;
    size_t bytes;
};

// ---- the schedule ------------------------------------------------------------------------------------------
enum Order { IN_ORDER, REVERSE, RANDOM_THREADS, RANDOM_WARPS };
enum Copies { COPY_EARLY, COPY_LATE, COPY_RANDOM };  // when an asynchronous copy happens: at issue, or at its wait
struct Schedule {
    Order order = IN_ORDER;
    Copies copies = COPY_RANDOM;
    uint64_t seed = 0;
};

constexpr size_t ARENA_BYTES = 1 << 20;          // shared memory of one block, with gaps between the arrays
constexpr size_t GAP = 1024;                     // canary between two shared arrays
constexpr size_t DYNAMIC_SHARED_MAX = 227 << 10;  // compute capability 9.0
constexpr size_t STATIC_SHARED_MAX = 48 << 10;

// Everything one OS thread needs to run blocks.
struct Worker {
    Schedule schedule;
    const Kernel *kernel;
    void **args;
    char *stacks = nullptr;
    int stack_count = 0;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<uint32_t> priority;  // of the warps, for RANDOM_WARPS
    uint32_t warps_ready;
    int live;
    Barrier barrier;
    Context scheduler;
    // shared memory
    unsigned char *arena;
    std::vector<SharedArray> statics, carved;
    size_t dynamic_bytes, static_bytes, arena_end;
    // outcome
    bool failed;
    std::string error;
    uint64_t random_state;
    uint32_t random(uint32_t below) {
        random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
        return uint32_t((random_state >> 32) % below);
    }
};
extern __thread Worker *worker;
inline Fiber *self() { return static_cast<Fiber *>(current); }

// fibers.cpp
void run_block(const uint32_t grid[3], const uint32_t block[3], uint64_t block_index);
void make_ready(int thread);
void wait_as(State state, const char *file, int line);  // gives the processor to the scheduler
void reschedule();                                      // stays ready, lets others run
[[noreturn]] void abandon();                            // leaves the fiber for good
void set_error(const std::string &message);
std::string here();  // block and thread indices of the running fiber
const char *op_name(Op op);
// memory.cpp
void shared_begin_block();
void shared_check_canaries();
void run_copies(Fiber &fiber, int groups_left);
void install_fault_handler();
size_t round_up(size_t x, size_t to);

// ---- events for the checker (check.cpp, linked only by feature host-check) ---------------------------------
struct Event {
    enum Kind {
        LAUNCH, BLOCK, JOIN, READ, WRITE, COPY_BEGIN, COPY_END, SHARED_ARRAY, ARRIVE, LAST, ALLOCATE, FREE,
        HOST_WRITE
    } kind;
    const void *p;
    size_t bytes;
    int thread;  // BLOCK: the number of threads
    const int *who;
    int who_count;
};
extern void (*checker)(const Event &);
extern uintptr_t checked_place;  // of a wrapper call being executed: file pointer | line << 48
inline void at_place(const char *file, int line) { checked_place = uintptr_t(file) | uintptr_t(line) << 48; }
inline void tell(Event::Kind kind, const void *p, size_t bytes, int thread, const int *who = nullptr, int who_count = 0) {
    if (checker) checker(Event{kind, p, bytes, thread, who, who_count});
}
void checker_found(const std::string &message);  // ends the launch, if one is running
}  // namespace host
