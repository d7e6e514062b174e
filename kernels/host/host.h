/* host.h: the C interface that src/device/host.rs calls. */
#pragma once
#include <stddef.h>
#include <stdint.h>
extern "C" {
/* Fills in what kernel number `index` declares; 0 when there is no such kernel. */
struct qformer_host_kernel {
    const char *name;
    const void *params; /* of host::Param */
    int32_t param_count, max_threads, shared_bytes;
};
int qformer_host_kernel_at(int index, qformer_host_kernel *out);

/* order: 0 in order, 1 reverse, 2 random threads, 3 random warps. copies: 0 early, 1 late, 2 random. */
struct qformer_host_schedule {
    int32_t order, copies;
    uint64_t seed;
};
/* Runs a kernel. 0, or 1 with a message of at most `capacity` bytes (zero at the end) in `error`. */
int qformer_host_launch(const char *name, const uint32_t grid[3], const uint32_t block[3], void **args,
                        const qformer_host_schedule *schedule, char *error, size_t capacity);

void *qformer_host_alloc(size_t bytes); /* null when there is no memory */
void qformer_host_free(void *p);
void qformer_host_forget(void *p, size_t bytes);                 /* it is used anew: filled with NaN, written by nobody */
void qformer_host_written(const void *p, size_t bytes);          /* the host wrote there */
size_t qformer_host_unwritten(const void *p, size_t bytes);      /* bytes never written; 0 without the checker */
int qformer_host_checked(void);                                  /* is the checker linked? */
}
