/*
 * Argument checks (check.h). On the calling thread; no state.
 */
#include "api/check.h"

#include "util/fork.h"

#include <string.h>

hora_status_t hora_check_comm(hora_comm_t *comm, const char *what) {
    if (comm == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: comm is NULL", what);
    if (comm->world->fork_generation != hora_fork_generation)
        return hora_fail(HORA_ERR_UNSUPPORTED, "%s: called in the child of a fork; start processes "
                         "before hora is initialised, or with spawn or forkserver", what);
    return hora_failure_check(&comm->failure);
}

hora_status_t hora_check_options(const hora_call_options_t *options, const char *what,
                                 hora_call_options_t *checked_p) {
    static const hora_call_options_t defaults = HORA_CALL_OPTIONS_INIT;
    *checked_p = defaults;
    if (options == NULL)
        return HORA_OK;
    if (options->size < sizeof(size_t))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: options->size is not set; use "
                         "HORA_CALL_OPTIONS_INIT", what);
    memcpy(checked_p, options, options->size < sizeof(defaults) ? options->size : sizeof(defaults));
    if (checked_p->stream != NULL && checked_p->device < 0)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: options->stream is given, but "
                         "options->device says host memory", what);
    if (!(checked_p->timeout >= 0))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: options->timeout is negative", what);
    return HORA_OK;
}

hora_status_t hora_check_dtype_closely(hora_dtype_t dtype, const char *what) {
    if (hora_dtype_is_valid(dtype))
        return HORA_OK;
    return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: dtype %d is no element type", what, (int)dtype);
}

hora_status_t hora_check_buffer_closely(const void *ptr, size_t count, hora_dtype_t dtype,
                                        const char *argument, const char *what) {
    size_t bytes;
    if (__builtin_mul_overflow(count, hora_dtype_size(dtype), &bytes) || bytes > SIZE_MAX / 2)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: %s: %zu elements of %s are more than memory "
                         "can hold", what, argument, count, hora_dtype_name(dtype));
    if (ptr == NULL && count > 0)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: %s is NULL but has %zu elements", what,
                         argument, count);
    return HORA_OK;
}

hora_status_t hora_check_op(hora_dtype_t dtype, hora_op_t op, const char *what) {
    if (hora_op_supported(dtype, op))
        return HORA_OK;
    if (!hora_dtype_is_valid(dtype))
        return hora_check_dtype(dtype, what);
    if (!hora_op_is_valid(op))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: op %d (%s) is no operation that it takes",
                         what, (int)op, hora_op_name(op));
    if (op == HORA_ADASUM && !hora_dtype_is_float(dtype))
        return hora_fail(HORA_ERR_UNSUPPORTED, "%s: adasum needs a floating-point type, not %s", what,
                         hora_dtype_name(dtype));
    return hora_fail(HORA_ERR_UNSUPPORTED, "%s: operation %s is not defined for type %s", what,
                     hora_op_name(op), hora_dtype_name(dtype));
}

hora_status_t hora_check_plain_op(hora_dtype_t dtype, hora_op_t op, const char *what) {
    if (op == HORA_ADASUM)
        return hora_fail(HORA_ERR_UNSUPPORTED, "%s: adasum is an operation of allreduce only", what);
    return hora_check_op(dtype, op, what);
}

hora_status_t hora_check_rank(const hora_comm_t *comm, int rank, const char *argument,
                              const char *what) {
    if (rank >= 0 && rank < comm->size)
        return HORA_OK;
    return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: %s is %d, but the communicator has ranks 0 to %d",
                     what, argument, rank, comm->size - 1);
}

hora_status_t hora_check_overlap(const void *in, size_t in_bytes, const void *out, size_t out_bytes,
                                 const char *what) {
    const char *a = in, *b = out;
    if (a == b || in_bytes == 0 || out_bytes == 0 || a + in_bytes <= b || b + out_bytes <= a)
        return HORA_OK;
    return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: in and out overlap but are not equal", what);
}
