/*
 * Argument checks that all doors share. Each returns HORA_OK or an error that names the argument.
 */
#ifndef HORA_API_CHECK_H
#define HORA_API_CHECK_H

#include "schedule/plan.h"
#include "transport/comm.h"

/* comm is usable: not NULL, not in a forked child, not failed. `what` names the call. */
hora_status_t hora_check_comm(hora_comm_t *comm, const char *what);
/* Copies the caller's options over the defaults, as far as the caller's struct reaches. */
hora_status_t hora_check_options(const hora_call_options_t *options, const char *what,
                                 hora_call_options_t *checked_p);
/* What the next two say when they do not see at once that all is well. */
hora_status_t hora_check_buffer_closely(const void *ptr, size_t count, hora_dtype_t dtype,
                                        const char *argument, const char *what);
hora_status_t hora_check_dtype_closely(hora_dtype_t dtype, const char *what);
/* count elements of dtype are addressable and the pointer is set unless count is 0. */
static inline hora_status_t hora_check_buffer(const void *ptr, size_t count, hora_dtype_t dtype,
                                              const char *argument, const char *what) {
    bool small = count <= SIZE_MAX / 2 / 16; /* of any type */
    return small && (ptr != NULL || count == 0)
               ? HORA_OK
               : hora_check_buffer_closely(ptr, count, dtype, argument, what);
}
static inline hora_status_t hora_check_dtype(hora_dtype_t dtype, const char *what) {
    return hora_dtype_is_valid(dtype) ? HORA_OK : hora_check_dtype_closely(dtype, what);
}
/* The type can be reduced with the operation. */
hora_status_t hora_check_op(hora_dtype_t dtype, hora_op_t op, const char *what);
/* The same for an operation of anything but an allreduce, the only one that takes HORA_ADASUM. */
hora_status_t hora_check_plain_op(hora_dtype_t dtype, hora_op_t op, const char *what);
hora_status_t hora_check_rank(const hora_comm_t *comm, int rank, const char *argument,
                              const char *what);
/* in and out are equal or apart. */
hora_status_t hora_check_overlap(const void *in, size_t in_bytes, const void *out, size_t out_bytes,
                                 const char *what);

#endif
