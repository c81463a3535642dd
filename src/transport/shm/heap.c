/*
 * Heap in an arena: first fit over a list of ranges sorted by offset. Allocations are few and large
 * (pads, fusion buffers, gradient buckets), so a list is enough. Any thread; heap->lock guards all.
 *
 * Invariant: the ranges tile [begin, end); no two free neighbours.
 */
#include "transport/shm/heap.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define ALIGN_SMALL 64u
#define ALIGN_PAGE  4096u
#define ALIGN_HUGE  (2u << 20)

typedef struct range {
    struct range *next;
    size_t        off, len;
    bool          used;
} range_t;

struct hora_heap {
    pthread_mutex_t lock;
    int             fd;
    uint8_t        *base;
    range_t        *first;
};

static range_t *range_new(size_t off, size_t len, range_t *next) {
    range_t *range = malloc(sizeof(*range));
    if (range != NULL)
        *range = (range_t){next, off, len, false};
    return range;
}

hora_status_t hora_heap_create(int fd, uint8_t *base, size_t begin, size_t end,
                               hora_heap_t **heap_p) {
    hora_heap_t *heap = calloc(1, sizeof(*heap));
    if (heap == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "arena heap");
    heap->first = range_new(begin, end - begin, NULL);
    if (heap->first == NULL) {
        free(heap);
        return hora_fail(HORA_ERR_NO_MEMORY, "arena heap");
    }
    heap->fd = fd;
    heap->base = base;
    pthread_mutex_init(&heap->lock, NULL);
    *heap_p = heap;
    return HORA_OK;
}

void hora_heap_destroy(hora_heap_t *heap) {
    if (heap == NULL)
        return;
    for (range_t *range = heap->first, *next; range != NULL; range = next) {
        next = range->next;
        free(range);
    }
    pthread_mutex_destroy(&heap->lock);
    free(heap);
}

static size_t align_up(size_t value, size_t align) {
    return (value + align - 1) & ~(align - 1);
}

/* Cuts the first `len` bytes off a free range; what is left stays free behind it. */
static bool split(range_t *range, size_t len) {
    if (range->len == len)
        return true;
    range_t *rest = range_new(range->off + len, range->len - len, range->next);
    if (rest == NULL)
        return false;
    range->len = len;
    range->next = rest;
    return true;
}

static range_t *take(hora_heap_t *heap, size_t len, size_t align) {
    for (range_t *range = heap->first; range != NULL; range = range->next) {
        size_t gap = align_up(range->off, align) - range->off;
        if (range->used || range->len < gap || range->len - gap < len)
            continue;
        if (gap > 0) {
            if (!split(range, gap))
                return NULL;
            range = range->next;
        }
        if (!split(range, len))
            return NULL;
        range->used = true;
        return range;
    }
    return NULL;
}

static void merge(hora_heap_t *heap) {
    for (range_t *range = heap->first; range->next != NULL;) {
        range_t *next = range->next;
        if (range->used || next->used) {
            range = next;
            continue;
        }
        range->len += next->len;
        range->next = next->next;
        free(next);
    }
}

/* Reserves the pages now. Where the file system cannot, they come at first touch. */
static bool reserve(hora_heap_t *heap, const range_t *range) {
    if (range->len >= ALIGN_HUGE)
        madvise(heap->base + range->off, range->len, MADV_HUGEPAGE);
    while (fallocate(heap->fd, 0, (off_t)range->off, (off_t)range->len) != 0)
        if (errno != EINTR)
            return errno == EOPNOTSUPP || errno == ENOSYS;
    return true;
}

static void give_back(hora_heap_t *heap, const range_t *range) {
    size_t begin = align_up(range->off, ALIGN_PAGE);
    size_t end = (range->off + range->len) & ~(size_t)(ALIGN_PAGE - 1);
    if (end > begin)
        (void)fallocate(heap->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)begin,
                        (off_t)(end - begin));
}

hora_status_t hora_heap_alloc(hora_heap_t *heap, size_t bytes, void **ptr_p) {
    size_t   align = bytes >= ALIGN_HUGE ? ALIGN_HUGE : bytes >= ALIGN_PAGE ? ALIGN_PAGE : ALIGN_SMALL;
    range_t *range = NULL;
    bool     reserved = false;
    if (bytes < SIZE_MAX - ALIGN_HUGE) {
        pthread_mutex_lock(&heap->lock);
        range = take(heap, align_up(bytes ? bytes : 1, ALIGN_SMALL), align);
        reserved = range != NULL && reserve(heap, range);
        if (range != NULL && !reserved) {
            range->used = false;
            merge(heap);
        }
        pthread_mutex_unlock(&heap->lock);
    }
    if (range == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "%zu bytes do not fit into the shared-memory arena "
                         "(raise HORA_ARENA_SIZE)", bytes);
    if (!reserved)
        return hora_fail(HORA_ERR_NO_MEMORY, "no memory for %zu bytes in the shared-memory arena",
                         bytes);
    *ptr_p = heap->base + range->off;
    return HORA_OK;
}

hora_status_t hora_heap_free(hora_heap_t *heap, void *ptr) {
    size_t   off = (size_t)((uint8_t *)ptr - heap->base);
    range_t *range;
    pthread_mutex_lock(&heap->lock);
    for (range = heap->first; range != NULL && !(range->used && range->off == off);)
        range = range->next;
    if (range != NULL) {
        give_back(heap, range);
        range->used = false;
        merge(heap);
    }
    pthread_mutex_unlock(&heap->lock);
    return range != NULL ? HORA_OK
                         : hora_fail(HORA_ERR_INVALID_ARGUMENT,
                                     "pointer %p was not allocated by hora_alloc", ptr);
}
