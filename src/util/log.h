/*
 * The log: lines on standard error, one write per line. Any thread.
 */
#ifndef HORA_UTIL_LOG_H
#define HORA_UTIL_LOG_H

#include <stdatomic.h>
#include <stdbool.h>

typedef enum hora_log_level {
    HORA_LOG_OFF = -1,    /* as a threshold: nothing is logged */
    HORA_LOG_ERROR = 0,   /* the job cannot go on */
    HORA_LOG_WARNING = 1, /* something that a user should look at */
    HORA_LOG_INFO = 2,    /* once per job or per error: what was chosen and why */
    HORA_LOG_DEBUG = 3,   /* once per operation */
    HORA_LOG_TRACE = 4    /* once per message or step */
} hora_log_level_t;

extern _Atomic hora_log_level_t hora_log_threshold; /* set by hora_log_setup */

/* Sets level ("error", "warning", "info", "debug", "trace", "off" or Horovod's "fatal") and whether
 * lines carry the time. Returns false, and changes nothing, for an unknown name. */
bool hora_log_setup(const char *level, bool hide_time);

/* The rank that lines are marked with from now on; -1: not known yet. */
void hora_log_set_rank(int rank);

void hora_log_write(hora_log_level_t level, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

/* A macro so that the arguments of a line that is not wanted are never computed. */
#define hora_log(level, ...)                                                                      \
    do {                                                                                          \
        if ((level) <= atomic_load_explicit(&hora_log_threshold, memory_order_relaxed))           \
            hora_log_write((level), __VA_ARGS__);                                                 \
    } while (0)

#endif
