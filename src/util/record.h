/*
 * hora's small files: one flat JSON object of strings and whole numbers. Any thread.
 *
 * Nothing in a file is believed: the reader takes exactly the keys that it is told (in any order, with
 * any spaces), bounds every length, and leaves the range of the values to its caller. Numbers are
 * whole, so that no locale's comma gets in; strings have no escapes.
 */
#ifndef HORA_UTIL_RECORD_H
#define HORA_UTIL_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define HORA_RECORD_MAX 16384 /* bytes of a file */

typedef struct hora_record_field {
    const char *key;
    char       *text; /* where a string goes, `room` bytes; NULL: a number */
    size_t      room;
    double     *number;
    bool        seen; /* false at first */
} hora_record_field_t;

typedef enum hora_record_result {
    HORA_RECORD_OK,
    HORA_RECORD_ABSENT, /* there is no such file */
    HORA_RECORD_BAD     /* it cannot be read, or is something else; the fields may be half filled */
} hora_record_result_t;

/* Reads all fields, each once, and nothing else. */
hora_record_result_t hora_record_read(const char *path, hora_record_field_t *fields, size_t n);

/* Writes `path` in one go: readers see the old file or the new one. print writes the whole object.
 * False with errno. */
bool hora_record_write(const char *path, bool (*print)(FILE *file, const void *arg),
                       const void *arg);
/* Could hora_record_write write it? Leaves nothing behind. False with errno. */
bool hora_record_writable(const char *path);

#endif
