/*
 * A table of named things: open addressing, linear probing, deletion without tombstones. It holds
 * pointers only; what is named embeds a hora_name_t and owns the text. Not thread-safe.
 */
#ifndef HORA_UTIL_NAMES_H
#define HORA_UTIL_NAMES_H

#include "util/status.h"

#include <stdint.h>
#include <string.h>

typedef struct hora_name {
    uint64_t    hash; /* hora_name_hash(text, len) */
    size_t      len;  /* bytes of text, without the end as a rule */
    const char *text; /* ends with '\0', which len may count */
} hora_name_t;

typedef struct hora_names {
    hora_name_t **slots; /* NULL: free */
    size_t        room;  /* 0 or a power of two */
    size_t        count;
} hora_names_t;

uint64_t hora_name_hash(const char *text, size_t len);

void hora_names_init(hora_names_t *names);
/* Frees the table, not what is in it. */
void hora_names_destroy(hora_names_t *names);
/* The entry of that name, or NULL. */
hora_name_t *hora_names_find(const hora_names_t *names, uint64_t hash, const char *text,
                             size_t len);
/* Adds an entry whose name is not in the table. HORA_ERR_NO_MEMORY, without a text. */
hora_status_t hora_names_add(hora_names_t *names, hora_name_t *name);
/* Takes an entry out that is in the table. */
void hora_names_remove(hora_names_t *names, hora_name_t *name);

#endif
