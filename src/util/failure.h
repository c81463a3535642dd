/*
 * A failure that ends a communicator: who failed, and the text that every waiting call returns.
 * Raised by any thread, once; read by waiting threads with one relaxed load.
 */
#ifndef HORA_UTIL_FAILURE_H
#define HORA_UTIL_FAILURE_H

#include "util/status.h"

#include <stdatomic.h>

#define HORA_FAILURE_TEXT_MAX 768

typedef struct hora_failure {
    atomic_int claimed; /* 1: some thread is writing, or has written, the fields below */
    atomic_int raised;  /* a hora_status_t; 0: none. Set last */
    int        rank;    /* world rank that failed, or -1 */
    char       text[HORA_FAILURE_TEXT_MAX];
} hora_failure_t;

/* Raises it; the first caller wins and gets true. rank: world rank that failed, or -1. */
bool hora_failure_raise(hora_failure_t *failure, hora_status_t status, int rank, const char *text);

/* HORA_OK, or the failure as this thread's last error. Cheap while nothing has failed. */
static inline hora_status_t hora_failure_check(hora_failure_t *failure) {
    int status = atomic_load_explicit(&failure->raised, memory_order_acquire);
    return __builtin_expect(status == 0, 1) ? HORA_OK
                                            : hora_fail_again((hora_status_t)status, failure->text);
}

#endif
