/* The dozen calls of MPI that `mpi.rs` needs, over MPI_COMM_WORLD. In C, since what MPI's constants are differs between its
   implementations. Every function returns MPI's error code, 0 for success. */

#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

int qformer_mpi_start(int *rank, int *size) {
    int given = 0, there = 0, e = MPI_Initialized(&there);
    if (e == 0 && !there) e = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &given);
    if (e == 0) e = MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (e == 0) e = MPI_Comm_rank(MPI_COMM_WORLD, rank);
    if (e == 0) e = MPI_Comm_size(MPI_COMM_WORLD, size);
    return e;
}

int qformer_mpi_send(int to, const void *bytes, int count) {
    return MPI_Send(bytes, count, MPI_BYTE, to, 1, MPI_COMM_WORLD);
}

int qformer_mpi_receive(int from, void *bytes, int count) {
    MPI_Status status;
    int got = 0, e = MPI_Recv(bytes, count, MPI_BYTE, from, 1, MPI_COMM_WORLD, &status);
    if (e == 0) e = MPI_Get_count(&status, MPI_BYTE, &got);
    return e != 0 ? e : got == count ? 0 : MPI_ERR_TRUNCATE;
}

/* To and from each of n ranks at once: what has no bytes is left out. */
int qformer_mpi_exchange(int n, const void *const *out, const int *out_count, void *const *in, const int *in_count) {
    MPI_Request *all = malloc(2 * (size_t)n * sizeof *all);
    if (all == NULL) return MPI_ERR_NO_MEM;
    int used = 0, e = 0;
    for (int i = 0; i < n && e == 0; i++)
        if (in_count[i] > 0) e = MPI_Irecv(in[i], in_count[i], MPI_BYTE, i, 2, MPI_COMM_WORLD, &all[used++]);
    for (int i = 0; i < n && e == 0; i++)
        if (out_count[i] > 0) e = MPI_Isend(out[i], out_count[i], MPI_BYTE, i, 2, MPI_COMM_WORLD, &all[used++]);
    if (e == 0) e = MPI_Waitall(used, all, MPI_STATUSES_IGNORE);
    free(all);
    return e;
}

int qformer_mpi_end(void) {
    return MPI_Finalize();
}

/* Ends this process at once, whatever its other threads wait for. */
void qformer_mpi_leave(int code) {
    _exit(code);
}

int qformer_mpi_text(int error, char *text, int room) {
    char whole[MPI_MAX_ERROR_STRING];
    int length = 0, e = MPI_Error_string(error, whole, &length);
    if (e != 0 || room < 1) return e != 0 ? e : MPI_ERR_ARG;
    if (length > room - 1) length = room - 1;
    for (int i = 0; i < length; i++) text[i] = whole[i];
    text[length] = 0;
    return 0;
}
