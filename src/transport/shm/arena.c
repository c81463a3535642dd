/*
 * The arena (arena.h): making, mapping and finding one's way in it. Runs on the thread that joins
 * or leaves the job; lookups run on any thread and read only what never changes after the join.
 *
 * Invariants. The memfd is sealed against shrinking before anyone else sees it, so a mapping can
 * never lose its pages. A peer's memfd is used only after its size and head were checked.
 */
#include "transport/shm/arena.h"

#include "transport/shm/heap.h"
#include "util/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC         0x616e6572612d6568ull
#define HEAD_BYTES    4096u
#define WHOLE         ((size_t)0x1fffff)
#define VERSION       2 /* of the head and what lies in it */
#define MAILBOX_BYTES (256u << 10)
#define BYTES_MIN     ((size_t)64 << 20)
#define BYTES_MAX     ((size_t)64 << 30)

typedef struct hora_arena_head {
    uint64_t    magic;
    uint64_t    bytes;
    uint32_t    version;
    int32_t     local, local_size;
    hora_bell_t bell;
} hora_arena_head_t;

typedef struct mapping {
    uint8_t *base; /* NULL: not mapped */
    size_t   bytes;
} mapping_t;

struct hora_arena {
    hora_world_t *world;
    int           local, local_size, fd;
    size_t        heap_begin; /* equal in all arenas of the host */
    hora_heap_t  *heap;
    atomic_size_t lent; /* allocations that the user holds */
    mapping_t     maps[]; /* [local_size] */
};

static size_t default_bytes(void) {
    size_t bytes = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 2;
    return bytes < BYTES_MIN ? BYTES_MIN : bytes > BYTES_MAX ? BYTES_MAX : bytes;
}

/* Address space may be limited (ulimit -v): takes less before it gives up. */
static hora_status_t map_own(hora_arena_t *arena, size_t bytes, size_t least) {
    mapping_t *map = &arena->maps[arena->local];
    if ((bytes & ~WHOLE) < least)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_ARENA_SIZE=%zu is too small: %d ranks need "
                         "%zu bytes at least", bytes, arena->local_size, (least + WHOLE) & ~WHOLE);
    for (bytes &= ~WHOLE; bytes >= least; bytes = bytes / 2 & ~WHOLE) {
        if (ftruncate(arena->fd, (off_t)bytes) != 0)
            continue;
        map->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena->fd,
                         0);
        map->bytes = bytes;
        if (map->base != MAP_FAILED)
            return HORA_OK;
        map->base = NULL;
    }
    return hora_fail_errno(HORA_ERR_NO_MEMORY, errno, "shared-memory arena of %zu bytes (set "
                           "HORA_ARENA_SIZE lower or raise ulimit -v)", least);
}

static void write_head(hora_arena_t *arena) {
    hora_arena_head_t *head = (hora_arena_head_t *)arena->maps[arena->local].base;
    head->bytes = arena->maps[arena->local].bytes;
    head->version = VERSION;
    head->local = arena->local;
    head->local_size = arena->local_size;
    head->magic = MAGIC;
}

hora_status_t hora_arena_create(hora_world_t *world, int local, int local_size, size_t bytes,
                                hora_arena_t **arena_p, int *fd_p) {
    hora_arena_t *arena = calloc(1, sizeof(*arena) + (size_t)local_size * sizeof(mapping_t));
    hora_status_t st;
    if (arena == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "shared-memory arena");
    arena->world = world;
    arena->local = local;
    arena->local_size = local_size;
    arena->heap_begin = HEAD_BYTES + (size_t)local_size * MAILBOX_BYTES;
    arena->fd = memfd_create("hora-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (arena->fd < 0) {
        st = hora_fail_errno(HORA_ERR_SYSTEM, errno, "memfd_create for the shared-memory arena");
        goto err_free;
    }
    st = map_own(arena, bytes ? bytes : default_bytes(), arena->heap_begin + (1u << 20));
    if (st != HORA_OK)
        goto err_close;
    if (fcntl(arena->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        st = hora_fail_errno(HORA_ERR_SYSTEM, errno, "sealing the shared-memory arena");
        goto err_unmap;
    }
    st = hora_heap_create(arena->fd, arena->maps[local].base, arena->heap_begin,
                          arena->maps[local].bytes, &arena->heap);
    if (st != HORA_OK)
        goto err_unmap;
    write_head(arena);
    *fd_p = arena->fd;
    *arena_p = arena;
    return HORA_OK;
err_unmap:
    munmap(arena->maps[local].base, arena->maps[local].bytes);
err_close:
    close(arena->fd);
err_free:
    free(arena);
    return st;
}

static hora_status_t check_head(const hora_arena_t *arena, int local, const mapping_t *map) {
    const hora_arena_head_t *head = (const hora_arena_head_t *)map->base;
    if (head->magic == MAGIC && head->version == VERSION && head->bytes == map->bytes &&
        head->local == local && head->local_size == arena->local_size)
        return HORA_OK;
    return hora_fail(HORA_ERR_PROTOCOL, "the arena of local rank %d has a malformed head", local);
}

hora_status_t hora_arena_map(hora_arena_t *arena, int local, int fd) {
    struct stat   info;
    mapping_t     map = {NULL, 0};
    hora_status_t st = HORA_OK;
    if (local < 0 || local >= arena->local_size || arena->maps[local].base != NULL)
        st = hora_fail(HORA_ERR_PROTOCOL, "arena of local rank %d was not expected", local);
    else if (fstat(fd, &info) != 0 || (size_t)info.st_size < arena->heap_begin ||
             (fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) == 0)
        st = hora_fail(HORA_ERR_PROTOCOL, "the arena of local rank %d is too small or not sealed",
                       local);
    if (st != HORA_OK)
        goto out_close;
    map.bytes = (size_t)info.st_size;
    map.base = mmap(NULL, map.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map.base == MAP_FAILED) {
        st = hora_fail_errno(HORA_ERR_NO_MEMORY, errno, "mapping the arena of local rank %d", local);
        goto out_close;
    }
    st = check_head(arena, local, &map);
    if (st != HORA_OK)
        munmap(map.base, map.bytes);
    else
        arena->maps[local] = map;
out_close:
    close(fd);
    return st;
}

void hora_arena_destroy(hora_arena_t *arena) {
    if (arena == NULL)
        return;
    for (int i = 0; i < arena->local_size; i++)
        if (arena->maps[i].base != NULL && (i != arena->local || atomic_load(&arena->lent) == 0))
            munmap(arena->maps[i].base, arena->maps[i].bytes);
    hora_heap_destroy(arena->heap);
    close(arena->fd);
    free(arena);
}

hora_bell_t *hora_arena_bell(hora_arena_t *arena, int local) {
    return &((hora_arena_head_t *)arena->maps[local].base)->bell;
}

void *hora_arena_mailbox(hora_arena_t *arena, int from, int to, size_t *bytes_p) {
    *bytes_p = MAILBOX_BYTES;
    return arena->maps[from].base + HEAD_BYTES + (size_t)to * MAILBOX_BYTES;
}

hora_status_t hora_arena_alloc(hora_arena_t *arena, size_t bytes, void **ptr_p) {
    return hora_heap_alloc(arena->heap, bytes, ptr_p);
}

hora_status_t hora_arena_free(hora_arena_t *arena, void *ptr) {
    return hora_heap_free(arena->heap, ptr);
}

hora_status_t hora_arena_lend(hora_arena_t *arena, size_t bytes, void **ptr_p) {
    hora_status_t st = hora_arena_alloc(arena, bytes, ptr_p);
    if (st == HORA_OK)
        atomic_fetch_add(&arena->lent, 1);
    return st;
}

hora_status_t hora_arena_take_back(hora_arena_t *arena, void *ptr) {
    hora_status_t st = hora_arena_free(arena, ptr);
    if (st == HORA_OK)
        atomic_fetch_sub(&arena->lent, 1);
    return st;
}

bool hora_arena_offset(const hora_arena_t *arena, const void *ptr, size_t bytes,
                       uint64_t *offset_p) {
    const mapping_t *map = &arena->maps[arena->local];
    size_t           off = (size_t)((const uint8_t *)ptr - map->base);
    if ((const uint8_t *)ptr < map->base || off < arena->heap_begin || off > map->bytes ||
        bytes > map->bytes - off)
        return false;
    *offset_p = off;
    return true;
}

void *hora_arena_at(const hora_arena_t *arena, int local, uint64_t offset, size_t bytes) {
    const mapping_t *map = &arena->maps[local];
    if (offset < arena->heap_begin || offset > map->bytes || bytes > map->bytes - offset)
        return NULL;
    return map->base + offset;
}
