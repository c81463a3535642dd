/*
 * Device memory for results (blocks.h).
 */
#include "background/blocks.h"

#include "background/background.h"
#include "transport/event.h"

#include <stdlib.h>

#define READERS    4
#define KEPT_MAX   ((size_t)512 << 20) /* bytes that are kept before more is allocated */
#define PER_THREAD ((hora_cuda_stream_t)2) /* CU_STREAM_PER_THREAD: each thread's own */

typedef struct reader {
    hora_cuda_stream_t stream;
    bool               marked; /* since the block was freed */
} reader_t;

typedef struct block {
    struct block            *next;
    const hora_engine_gpu_t *owner;    /* whose lane writes it; NULL: has ended */
    const hora_lane_t       *lane;     /* that one alone: so it is written in order */
    uint64_t                 at;
    size_t                   bytes;
    bool                     is_free;
    uint64_t                 freed_at; /* owner->marks then */
    reader_t                 readers[READERS]; /* that the owner's stream is not known to be behind */
    int                      nreaders;
    bool                     unknown;  /* others read it: it is not given again */
} block_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block_t        *blocks;

/* ---- The list; the caller holds the lock ------------------------------------------------------ */

/* A result that is in use. */
static block_t **find(const void *at) {
    block_t **b = &blocks;
    while (*b != NULL && ((*b)->is_free || (*b)->at != (uint64_t)(uintptr_t)at))
        b = &(*b)->next;
    return b;
}

static block_t *unlink_block(block_t **b) {
    block_t *block = *b;
    *b = block->next;
    return block;
}

static void add_reader(block_t *block, const hora_gpu_place_t *reader) {
    bool other = reader->gpu != block->owner->place.gpu || reader->stream == PER_THREAD;
    for (int i = 0; i < block->nreaders && !other; i++)
        if (block->readers[i].stream == reader->stream)
            return;
    if (block->nreaders == READERS || other)
        block->unknown = true;
    else
        block->readers[block->nreaders++] = (reader_t){reader->stream, false};
}

static void set_free(block_t *block) {
    block->is_free = true;
    block->freed_at = atomic_load(&block->owner->marks);
}

static size_t bytes_kept(const hora_engine_gpu_t *gpu) {
    size_t bytes = 0;
    for (const block_t *b = blocks; b != NULL; b = b->next)
        bytes += b->owner == gpu && b->is_free ? b->bytes : 0;
    return bytes;
}

/* ---- Giving ----------------------------------------------------------------------------------- */

/* One that is not much too large. */
static block_t *take(const hora_engine_gpu_t *gpu, size_t bytes, size_t *kept_p) {
    block_t *block;
    pthread_mutex_lock(&lock);
    for (block = blocks; block != NULL; block = block->next)
        if (block->owner == gpu && block->lane == gpu->lane && block->is_free &&
            block->nreaders == 0 && !block->unknown && block->bytes >= bytes && block->bytes / 2 <= bytes)
            break;
    if (block != NULL)
        block->is_free = false;
    *kept_p = bytes_kept(gpu);
    pthread_mutex_unlock(&lock);
    return block;
}

/* What hora has queued may wait for other ranks: that is waited for first, with a deadline. */
static hora_status_t make_room(hora_comm_t *comm, const hora_engine_gpu_t *gpu) {
    hora_status_t st = HORA_OK;
    for (int i = 0; i < gpu->nlanes && st == HORA_OK; i++)
        st = hora_event_wait_stream(comm, gpu->place.gpu, gpu->lanes[i].stream, 0, "giving memory back");
    if (st == HORA_OK)
        hora_blocks_give_back(gpu);
    return st;
}

static hora_status_t make(hora_comm_t *comm, const hora_engine_gpu_t *gpu, size_t bytes, size_t kept,
                          block_t *block) {
    const hora_cuda_t *cuda = gpu->place.gpu->cuda;
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    hora_status_t      st = kept > KEPT_MAX ? make_room(comm, gpu) : HORA_OK;
    bytes = hora_gpu_whole_blocks(bytes);
    if (st == HORA_OK)
        result = cuda->alloc(&block->at, bytes);
    if (result == HORA_CUDA_OUT_OF_MEMORY && kept > 0) {
        st = make_room(comm, gpu);
        if (st == HORA_OK)
            result = cuda->alloc(&block->at, bytes);
    }
    if (st != HORA_OK || result != HORA_CUDA_SUCCESS)
        return st != HORA_OK ? st : hora_gpu_check(gpu->place.gpu, result, "allocating a result");
    block->owner = gpu;
    block->lane = gpu->lane;
    block->bytes = bytes;
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    return HORA_OK;
}

hora_status_t hora_block_alloc(hora_comm_t *comm, hora_engine_gpu_t *gpu, size_t bytes,
                               const hora_mark_t *ready, void **at_p) {
    size_t           kept;
    block_t         *block = take(gpu, bytes, &kept);
    hora_gpu_place_t reader = {gpu->place.gpu, ready != NULL ? ready->stream : NULL};
    hora_status_t    st;
    if (block == NULL) {
        block = calloc(1, sizeof(*block));
        if (block == NULL)
            return hora_fail(HORA_ERR_NO_MEMORY, "a result on a GPU");
        st = make(comm, gpu, bytes, kept, block);
        if (st != HORA_OK) {
            free(block);
            return st;
        }
    }
    *at_p = (void *)(uintptr_t)block->at;
    if (ready != NULL)
        hora_block_tell(gpu, *at_p, &reader);
    return HORA_OK;
}

void hora_block_tell(const hora_engine_gpu_t *gpu, const void *at, const hora_gpu_place_t *reader) {
    block_t *block;
    pthread_mutex_lock(&lock);
    block = *find(at);
    if (block != NULL && block->owner == gpu)
        add_reader(block, reader);
    pthread_mutex_unlock(&lock);
}

/* ---- Taking back ------------------------------------------------------------------------------ */

void hora_block_discard(const hora_engine_gpu_t *gpu, const void *at) {
    block_t *block;
    pthread_mutex_lock(&lock);
    block = *find(at);
    if (block != NULL && block->owner == gpu) {
        block->nreaders = 0;
        block->unknown = false;
        set_free(block);
    }
    pthread_mutex_unlock(&lock);
}

/* One that is in no list any more is left to the process's end. */
void hora_background_output_free(int device, void *at) {
    hora_gpu_t *gpu;
    block_t   **b, *orphan = NULL;
    if (hora_gpu_get("", device, &gpu) != HORA_OK)
        return; /* the child of a fork has none */
    pthread_mutex_lock(&lock);
    b = find(at);
    if (*b != NULL && (*b)->owner != NULL)
        set_free(*b);
    else if (*b != NULL)
        orphan = unlink_block(b);
    pthread_mutex_unlock(&lock);
    if (orphan != NULL)
        hora_gpu_free(device, at);
    free(orphan);
}

bool hora_blocks_need_mark(const hora_engine_gpu_t *gpu, hora_cuda_stream_t stream) {
    bool need = false;
    pthread_mutex_lock(&lock);
    for (block_t *block = blocks; block != NULL; block = block->next)
        for (int i = 0; block->owner == gpu && block->is_free && i < block->nreaders; i++)
            if (block->readers[i].stream == stream && !block->readers[i].marked)
                need = block->readers[i].marked = true;
    pthread_mutex_unlock(&lock);
    return need;
}

static void pass(block_t *block, hora_cuda_stream_t stream) {
    for (int i = 0; i < block->nreaders; i++)
        if (block->readers[i].stream == stream)
            block->readers[i--] = block->readers[--block->nreaders];
}

/* A mark has its number before it is made: a higher one than freed_at was made after that. */
void hora_blocks_passed(const hora_engine_gpu_t *gpu, const hora_mark_t *mark) {
    pthread_mutex_lock(&lock);
    for (block_t *block = blocks; block != NULL; block = block->next)
        if (block->owner == gpu && block->is_free && mark->number > block->freed_at)
            pass(block, mark->stream);
    pthread_mutex_unlock(&lock);
}

/* ---- The end ---------------------------------------------------------------------------------- */

void hora_blocks_give_back(const hora_engine_gpu_t *gpu) {
    block_t *kept = NULL, *block;
    pthread_mutex_lock(&lock);
    for (block_t **b = &blocks; *b != NULL;) {
        if ((*b)->owner != gpu || !(*b)->is_free) {
            b = &(*b)->next;
            continue;
        }
        block = unlink_block(b);
        block->next = kept;
        kept = block;
    }
    pthread_mutex_unlock(&lock);
    while ((block = kept) != NULL) {
        kept = block->next;
        gpu->place.gpu->cuda->free(block->at);
        free(block);
    }
}

void hora_blocks_leave(const hora_engine_gpu_t *gpu, bool idle) {
    pthread_mutex_lock(&lock);
    for (block_t **b = &blocks; *b != NULL;) {
        if ((*b)->owner != gpu) {
            b = &(*b)->next;
        } else if (idle) {
            (*b)->owner = NULL;
            b = &(*b)->next;
        } else {
            free(unlink_block(b));
        }
    }
    pthread_mutex_unlock(&lock);
}
