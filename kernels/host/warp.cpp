// warp.cpp: the block barrier, the warp rendezvous, ldmatrix and mma.sync. Lane layouts follow the PTX ISA.
#include "runtime.hpp"

namespace host {

// ---- __syncthreads -----------------------------------------------------------------------------------------
void barrier(const char *file, int line) {
    Worker &w = *worker;
    Barrier &b = w.barrier;
    if (b.arrived.empty()) b.file = file, b.line = line;
    else if (b.line != line || strcmp(b.file, file))
        fail("divergent barrier: threads meet from %s:%d and %s:%d", b.file, b.line, file, line);
    b.arrived.push_back(int(current->index));
    if (b.arrived.size() < w.fibers.size()) return wait_as(AT_BARRIER, file, line);
    tell(Event::JOIN, nullptr, 0, 0, b.arrived.data(), int(b.arrived.size()));
    for (int t : b.arrived) make_ready(t);
    b.arrived.clear();
    reschedule();
}

// ---- between blocks: they run one after another, so who comes last is known at once -----------------------
bool arrive(uint32_t *counter, uint32_t count, const char *file, int line) {
    check_aligned(counter, 4, file, line);
    at_place(file, line);
    const bool last = *counter == count - 1;
    if (*counter >= count) fail("a counter is %u where only %u blocks come, at %s:%d", *counter, count, file, line);
    *counter = last ? 0 : *counter + 1;
    tell(last ? Event::LAST : Event::ARRIVE, counter, 4, int(current->index));
    return last;
}

// ---- warp rendezvous ---------------------------------------------------------------------------------------
const char *op_name(Op op) {
    static const char *const names[] = {"__syncwarp", "a shuffle", "a vote", "ldmatrix", "mma.sync"};
    return names[op];
}

static Collective &join_collective(Warp &warp, Op op, uint32_t mask, Execute execute, const char *file, int line) {
    for (Collective &c : warp.pending) {
        if (!(c.mask & mask)) continue;
        if (c.mask != mask || c.op != op || c.line != line || strcmp(c.file, file))
            fail("divergent warp: %s, mask %08x, at %s:%d meets %s, mask %08x, at %s:%d", op_name(op), mask, file, line,
                 op_name(c.op), c.mask, c.file, c.line);
        return c;
    }
    warp.pending.push_back(Collective{op, mask, 0, {}, execute, file, line});
    return warp.pending.back();
}

void collective(Op op, uint32_t mask, void *lane, Execute execute, const char *file, int line) {
    Warp &warp = worker->warps[current->warp];
    const unsigned l = current->lane;
    if (!(mask >> l & 1)) fail("%s at %s:%d: lane %u is not in its own mask %08x", op_name(op), file, line, l, mask);
    if (mask & ~warp.valid)
        fail("%s at %s:%d: mask %08x names lanes that do not exist (the warp has %08x)", op_name(op), file, line, mask, warp.valid);
    if (mask & warp.done)
        fail("%s at %s:%d: mask %08x names lanes that have ended (%08x)", op_name(op), file, line, mask, warp.done);
    Collective &c = join_collective(warp, op, mask, execute, file, line);
    c.lanes[l] = lane;
    c.arrived |= 1u << l;
    if (c.arrived != mask) return wait_as(AT_COLLECTIVE, file, line);

    Collective complete = c;
    warp.pending.erase(warp.pending.begin() + (&c - warp.pending.data()));
    int who[32], count = 0;
    for (unsigned i = 0; i < 32; i++) if (mask >> i & 1) who[count++] = int(current->index - l + i);
    if (op == SYNCWARP) tell(Event::JOIN, nullptr, 0, 0, who, count);  // a shuffle orders no memory
    at_place(file, line);
    if (complete.execute) complete.execute(complete.lanes, mask);
    for (int i = 0; i < count; i++) make_ready(who[i]);
    reschedule();
}

// ---- ldmatrix ----------------------------------------------------------------------------------------------
// Lane l gives the address of row l%8 of matrix l/8, and receives of each matrix m the two elements
// (row l/4, columns 2*(l%4) and the next), or of its transpose.
struct LoadLane { uint32_t *r; const void *row; bool transposed; };
static void ldmatrix_all(void **lanes, uint32_t) {
    auto at = [&](int l) { return static_cast<LoadLane *>(lanes[l]); };
    const int first = int(current->index - current->lane);
    for (int m = 0; m < 4; m++) {
        uint16_t x[8][8];
        for (int i = 0; i < 8; i++) {
            const void *row = at(m * 8 + i)->row;
            if (size_t(static_cast<const unsigned char *>(row) - worker->arena) > ARENA_BYTES - 16)
                fail("ldmatrix: lane %d gives an address outside shared memory", m * 8 + i);
            if (uintptr_t(row) % 16) fail("ldmatrix: the row address of lane %d is not 16-byte aligned", m * 8 + i);
            tell(Event::READ, row, 16, first + m * 8 + i);
            memcpy(x[i], row, 16);
        }
        for (int l = 0; l < 32; l++) {
            const int i = l / 4, j = l % 4 * 2;
            const bool t = at(l)->transposed;
            at(l)->r[m] = uint32_t(t ? x[j][i] : x[i][j]) | uint32_t(t ? x[j + 1][i] : x[i][j + 1]) << 16;
        }
    }
}
void ldmatrix_x4(uint32_t *r, const void *row, bool transposed, const char *file, int line) {
    LoadLane lane{r, row, transposed};
    collective(LDMATRIX, ~0u, &lane, ldmatrix_all, file, line);
}

// ---- mma.sync m16n8k16, f32 accumulators -------------------------------------------------------------------
struct MmaLane { bool is_half; float *d; const uint32_t *a, *b; };
static float element(bool is_half, uint32_t pair, int high) {
    const uint16_t x = uint16_t(high ? pair >> 16 : pair);
    return is_half ? __half2float({x}) : __bfloat162float({x});
}
static void mma_all(void **lanes, uint32_t) {
    auto at = [&](int l) { return static_cast<MmaLane *>(lanes[l]); };
    const bool half = at(0)->is_half;
    float a[16][16], b[16][8], c[16][8] = {};
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4 * 2;
        for (int r = 0; r < 4; r++)
            for (int e = 0; e < 2; e++) a[g + (r & 1) * 8][t + (r >> 1) * 8 + e] = element(half, at(l)->a[r], e);
        for (int r = 0; r < 2; r++)
            for (int e = 0; e < 2; e++) b[t + r * 8 + e][g] = element(half, at(l)->b[r], e);
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) c[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4 * 2;
        float *d = at(l)->d;
        d[0] += c[g][t], d[1] += c[g][t + 1], d[2] += c[g + 8][t], d[3] += c[g + 8][t + 1];
    }
}
void mma_16816(bool is_half, float *d, const uint32_t *a, const uint32_t *b, const char *file, int line) {
    MmaLane lane{is_half, d, a, b};
    collective(MMA, ~0u, &lane, mma_all, file, line);
}
}  // namespace host
