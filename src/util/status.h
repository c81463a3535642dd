/*
 * Status values and the text of the last error. Any thread; the text is per thread.
 */
#ifndef HORA_UTIL_STATUS_H
#define HORA_UTIL_STATUS_H

#include <hora/hora.h>
#include <stdarg.h>
#include <stdbool.h>

/* Records the text (printf style, lower case, no full stop at the end) as this thread's last error,
 * logs it at level info, and returns `status`. The first function to detect an error calls it,
 * once; callers only pass the status on. */
hora_status_t hora_fail(hora_status_t status, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

/* As hora_fail for a failed system call: appends ": " and the text of `err` (an errno value). */
hora_status_t hora_fail_errno(hora_status_t status, int err, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Makes an error text found elsewhere (another thread, another rank) this thread's last error,
 * without logging it again. */
hora_status_t hora_fail_again(hora_status_t status, const char *text) __attribute__((cold));

static inline bool hora_op_is_valid(hora_op_t op) {
    return (unsigned)op < HORA_OP_COUNT;
}
static inline bool hora_dtype_is_valid(hora_dtype_t dtype) {
    return (unsigned)dtype < HORA_DTYPE_COUNT;
}
bool hora_dtype_is_float(hora_dtype_t dtype);
bool hora_dtype_is_half(hora_dtype_t dtype);

#endif
