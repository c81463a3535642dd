/*
 * A JSON array in a file that grows, and that is valid JSON at every moment: whoever is killed, in
 * the midst of whatever, leaves a file that any parser takes. One thread at a time.
 */
#ifndef HORA_UTIL_TRACE_FILE_H
#define HORA_UTIL_TRACE_FILE_H

#include "util/status.h"

#include <stddef.h>

#define HORA_TRACE_ELEMENT_MAX 4000 /* bytes of one element */

typedef struct hora_trace_file hora_trace_file_t;

/* The file that `path` means, as an absolute path with no link at its end, so that it stays the
 * same when the process changes its folder. HORA_ERR_SYSTEM names path and reason: there is no such
 * folder, or what is there is no regular file. The caller frees *full_p. */
hora_status_t hora_trace_file_resolve(const char *path, char **full_p);

/* Makes, or replaces, the file with the array [first]. full: from hora_trace_file_resolve. copy: of
 * this library in the process; the name of the passing file beside it has this number, so that
 * copies cannot take each other's. */
hora_status_t hora_trace_file_create(const char *full, unsigned copy, const char *first,
                                     size_t len, hora_trace_file_t **file_p);
/* Appends an element. It is in the file after the next flush at the latest. */
hora_status_t hora_trace_file_put(hora_trace_file_t *file, const char *element, size_t len);
hora_status_t hora_trace_file_flush(hora_trace_file_t *file);
/* Flushes, takes the unused room away, closes and frees. NULL is allowed. */
hora_status_t hora_trace_file_close(hora_trace_file_t *file);

#endif
