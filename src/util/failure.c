/*
 * Failures. Any thread; `claimed` elects the one writer, `raised` publishes what it wrote.
 */
#include "util/failure.h"

#include <stdio.h>

bool hora_failure_raise(hora_failure_t *failure, hora_status_t status, int rank, const char *text) {
    if (atomic_exchange(&failure->claimed, 1) != 0)
        return false;
    failure->rank = rank;
    snprintf(failure->text, sizeof(failure->text), "%s", text);
    atomic_store_explicit(&failure->raised, (int)status, memory_order_release);
    return true;
}
