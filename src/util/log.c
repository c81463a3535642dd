/*
 * The log. Any thread; a line is formatted on the stack and written with one write(2), so lines
 * of several ranks on one terminal do not mix. Preserves errno.
 */
#include "util/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

_Atomic hora_log_level_t hora_log_threshold = HORA_LOG_WARNING;

static atomic_bool hide_times;
static atomic_int  own_rank = -1;

static const char *const names[] = {"error", "warning", "info", "debug", "trace"};

bool hora_log_setup(const char *level, bool hide_time) {
    hide_times = hide_time;
    if (strcasecmp(level, "off") == 0 || strcasecmp(level, "fatal") == 0) {
        hora_log_threshold = HORA_LOG_OFF;
        return true;
    }
    if (strcasecmp(level, "warn") == 0)
        level = "warning";
    for (int i = 0; i < (int)(sizeof(names) / sizeof(names[0])); i++)
        if (strcasecmp(level, names[i]) == 0) {
            hora_log_threshold = (hora_log_level_t)i;
            return true;
        }
    return false;
}

void hora_log_set_rank(int rank) {
    atomic_store(&own_rank, rank);
}

static int write_prefix(char *line, size_t len, hora_log_level_t level) {
    char            stamp[40] = "";
    char            who[24] = "";
    struct timespec now;
    struct tm       local;
    if (!hide_times && clock_gettime(CLOCK_REALTIME, &now) == 0 && localtime_r(&now.tv_sec, &local)) {
        size_t n = strftime(stamp, sizeof(stamp), "%Y-%m-%d %H:%M:%S", &local);
        snprintf(stamp + n, sizeof(stamp) - n, ".%03d ", (int)(now.tv_nsec / 1000000));
    }
    int rank = atomic_load(&own_rank);
    if (rank >= 0)
        snprintf(who, sizeof(who), "[%d] ", rank);
    return snprintf(line, len, "hora %s%s%s: ", stamp, who, names[level]);
}

void hora_log_write(hora_log_level_t level, const char *format, ...) {
    int     saved = errno;
    char    line[2304];
    va_list args;
    int     n = write_prefix(line, sizeof(line), level);
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, args);
    va_end(args);
    size_t len = (size_t)n + (m < 0 ? 0 : (size_t)m);
    if (len > sizeof(line) - 1)
        len = sizeof(line) - 1;
    line[len++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, len);
    (void)ignored; /* nothing can be done about a log that cannot be written */
    errno = saved;
}
