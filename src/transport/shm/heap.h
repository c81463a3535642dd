/*
 * Heap in an arena: hands out ranges of a memfd. Its records live in private memory, so that no
 * other rank can damage them. Any thread; one lock.
 */
#ifndef HORA_TRANSPORT_SHM_HEAP_H
#define HORA_TRANSPORT_SHM_HEAP_H

#include "util/status.h"

#include <stdint.h>

typedef struct hora_heap hora_heap_t;

/* Serves [begin, end) of the memfd mapped at base. */
hora_status_t hora_heap_create(int fd, uint8_t *base, size_t begin, size_t end,
                               hora_heap_t **heap_p);
void          hora_heap_destroy(hora_heap_t *heap); /* NULL is allowed */

/* 64-byte aligned; 0 bytes gives a valid pointer too. Pages are reserved before it returns, so that
 * a machine without memory gives HORA_ERR_NO_MEMORY here and no SIGBUS later. */
hora_status_t hora_heap_alloc(hora_heap_t *heap, size_t bytes, void **ptr_p);
/* Returns the pages to the system. HORA_ERR_INVALID_ARGUMENT for a pointer that is not from here. */
hora_status_t hora_heap_free(hora_heap_t *heap, void *ptr);

#endif
