/*
 * Moving pieces on a GPU (gpu.h). The list of pieces is written into pinned memory, copied to the GPU,
 * and read there by the kernel: a list can be written again when its event has come. There are several,
 * so that batches can be queued while earlier ones are still to run. The driving thread.
 *
 * Cost of n pieces of B bytes: one copy of 32 n bytes, one launch, 2 B bytes of device memory moved.
 */
#include "fusion/gpu.h"

#include "transport/event.h"

#include <stdlib.h>
#include <string.h>

#define LISTS    8
#define ROOM_MIN 256 /* pieces of a list */

typedef struct list {
    hora_cuda_piece_t *pieces; /* pinned */
    uint64_t           device; /* their copy */
    size_t             room;   /* pieces */
    hora_cuda_event_t  read;   /* the kernel has read the copy */
    bool               used;   /* `read` was recorded */
} list_t;

/* Memory that is given back at the end. */
typedef struct kept {
    struct kept *next;
    uint64_t     device; /* or 0 */
    void        *pinned; /* or NULL */
} kept_t;

struct hora_fusion_gpu {
    hora_comm_t     *comm;
    hora_gpu_place_t place;
    list_t           lists[LISTS];
    unsigned         turn;
    list_t          *open;
    size_t           n;
    uint64_t         all; /* of the open list: addresses and lengths, or'ed */
    kept_t          *kept;
};

static hora_status_t check(const hora_fusion_gpu_t *gpu, hora_cuda_result_t result) {
    return hora_gpu_check(gpu->place.gpu, result, "packing tensors");
}

/* ---- Memory --------------------------------------------------------------------------------- */

static hora_status_t keep(hora_fusion_gpu_t *gpu, kept_t **kept_p) {
    kept_t *kept = calloc(1, sizeof(*kept));
    if (kept == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "packing tensors");
    kept->next = gpu->kept;
    gpu->kept = kept;
    *kept_p = kept;
    return HORA_OK;
}

hora_status_t hora_fusion_gpu_alloc(hora_fusion_gpu_t *gpu, size_t bytes, void **at_p) {
    kept_t       *kept = NULL;
    hora_status_t st = keep(gpu, &kept);
    if (st == HORA_OK)
        st = hora_gpu_check(gpu->place.gpu, gpu->place.gpu->cuda->alloc(&kept->device,
                                                                   hora_gpu_whole_blocks(bytes)),
                            "allocating a fusion buffer");
    if (st == HORA_OK)
        *at_p = (void *)(uintptr_t)kept->device;
    return st;
}

static hora_status_t alloc_pinned(hora_fusion_gpu_t *gpu, size_t bytes, void **at_p) {
    kept_t       *kept = NULL;
    hora_status_t st = keep(gpu, &kept);
    if (st == HORA_OK)
        st = hora_gpu_check(gpu->place.gpu, gpu->place.gpu->cuda->host_alloc(&kept->pinned, bytes, 0),
                            "allocating pinned host memory");
    if (st == HORA_OK)
        *at_p = kept->pinned;
    return st;
}

hora_status_t hora_fusion_gpu_create(hora_comm_t *comm, const hora_gpu_place_t *place,
                                     hora_fusion_gpu_t **gpu_p) {
    hora_fusion_gpu_t *gpu = calloc(1, sizeof(*gpu));
    if (gpu == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "packing tensors on a GPU");
    gpu->comm = comm;
    gpu->place = *place;
    *gpu_p = gpu;
    return HORA_OK;
}

void hora_fusion_gpu_destroy(hora_fusion_gpu_t *gpu) {
    if (gpu == NULL)
        return;
    for (int i = 0; i < LISTS; i++)
        if (gpu->lists[i].read != NULL)
            gpu->place.gpu->cuda->event_destroy(gpu->lists[i].read);
    for (kept_t *kept = gpu->kept, *next; kept != NULL; kept = next) {
        next = kept->next;
        if (kept->device != 0)
            gpu->place.gpu->cuda->free(kept->device);
        if (kept->pinned != NULL)
            gpu->place.gpu->cuda->host_free(kept->pinned);
        free(kept);
    }
    free(gpu);
}

/* ---- Lists ---------------------------------------------------------------------------------- */

/* The list is not in use. */
static hora_status_t reserve(hora_fusion_gpu_t *gpu, list_t *list, size_t room) {
    size_t        n = list->room > 0 ? list->room : ROOM_MIN;
    void         *pieces, *device;
    hora_status_t st = HORA_OK;
    if (list->read == NULL)
        st = check(gpu, gpu->place.gpu->cuda->event_create(&list->read, HORA_CUDA_EVENT_NO_TIMING));
    if (st != HORA_OK || room <= list->room)
        return st;
    while (n < room)
        n *= 2;
    st = alloc_pinned(gpu, n * sizeof(*list->pieces), &pieces);
    if (st == HORA_OK)
        st = hora_fusion_gpu_alloc(gpu, n * sizeof(*list->pieces), &device);
    if (st != HORA_OK)
        return st;
    list->pieces = pieces;
    list->device = (uint64_t)(uintptr_t)device;
    list->room = n;
    return HORA_OK;
}

hora_status_t hora_fusion_gpu_begin(hora_fusion_gpu_t *gpu, size_t room) {
    list_t       *list = &gpu->lists[gpu->turn++ % LISTS];
    hora_status_t st = HORA_OK;
    if (list->used)
        st = hora_event_wait(gpu->comm, gpu->place.gpu, list->read, 0, "packing tensors");
    if (st == HORA_OK)
        st = reserve(gpu, list, room);
    gpu->open = list;
    gpu->n = 0;
    gpu->all = 0;
    return st;
}

void hora_fusion_gpu_add(hora_fusion_gpu_t *gpu, void *to, const void *from, size_t bytes) {
    hora_cuda_piece_t *piece = &gpu->open->pieces[gpu->n];
    if (bytes == 0)
        return;
    *piece = (hora_cuda_piece_t){(uint64_t)(uintptr_t)from, (uint64_t)(uintptr_t)to, bytes, 0};
    gpu->all |= piece->src | piece->dst | bytes;
    gpu->n++;
}

/* The largest word that every address and length is a multiple of. */
static hora_dtype_t word_of(uint64_t all) {
    return all % 8 == 0   ? HORA_UINT64
           : all % 4 == 0 ? HORA_UINT32
           : all % 2 == 0 ? HORA_UINT16
                          : HORA_UINT8;
}

static hora_status_t launch(hora_fusion_gpu_t *gpu) {
    const hora_cuda_t *cuda = gpu->place.gpu->cuda;
    list_t            *list = gpu->open;
    hora_dtype_t       word = word_of(gpu->all);
    hora_cuda_pack_t   args;
    unsigned           blocks;
    const char        *kernel;
    hora_status_t      st;
    for (size_t i = 0; i < gpu->n; i++)
        list->pieces[i].count /= hora_dtype_size(word);
    kernel = hora_cuda_pack_plan(word, word, 1.0, list->pieces, (uint32_t)gpu->n,
                                 gpu->place.gpu->processors, &args, &blocks);
    args.pieces = list->device;
    st = check(gpu, cuda->copy_in(list->device, list->pieces, gpu->n * sizeof(*list->pieces),
                                  gpu->place.stream));
    if (st == HORA_OK)
        st = hora_gpu_launch(gpu->place.gpu, kernel, blocks, &args, gpu->place.stream);
    if (st == HORA_OK)
        st = check(gpu, cuda->event_record(list->read, gpu->place.stream));
    list->used = true;
    return st;
}

hora_status_t hora_fusion_gpu_queue(hora_fusion_gpu_t *gpu) {
    const hora_cuda_piece_t *piece = gpu->open->pieces;
    if (gpu->n == 0)
        return HORA_OK;
    if (gpu->n > 1)
        return launch(gpu);
    return check(gpu, gpu->place.gpu->cuda->copy(piece->dst, piece->src, piece->count,
                                                 gpu->place.stream));
}

/* ---- Patterns ------------------------------------------------------------------------------- */

/* What lies there already is copied behind itself, twice as much each time. */
static hora_status_t spread(hora_fusion_gpu_t *gpu, uint64_t to, size_t done, size_t bytes) {
    hora_status_t st = HORA_OK;
    while (st == HORA_OK && done < bytes) {
        size_t more = done < bytes - done ? done : bytes - done;
        st = check(gpu, gpu->place.gpu->cuda->copy(to + done, to, more, gpu->place.stream));
        done += more;
    }
    return st;
}

hora_status_t hora_fusion_gpu_fill(hora_fusion_gpu_t *gpu, void *to, const void *pattern, size_t period,
                                   size_t bytes) {
    const hora_cuda_t *cuda = gpu->place.gpu->cuda;
    uint64_t           at = (uint64_t)(uintptr_t)to;
    size_t             first = period < bytes ? period : bytes;
    list_t            *list;
    hora_status_t      st;
    if (bytes == 0)
        return HORA_OK;
    st = hora_fusion_gpu_begin(gpu, HORA_FUSION_PATTERN / sizeof(list->pieces[0]));
    if (st != HORA_OK)
        return st;
    list = gpu->open;
    memcpy(list->pieces, pattern, first);
    st = check(gpu, cuda->copy_in(at, list->pieces, first, gpu->place.stream));
    if (st == HORA_OK)
        st = check(gpu, cuda->event_record(list->read, gpu->place.stream));
    list->used = true;
    return st == HORA_OK ? spread(gpu, at, first, bytes) : st;
}
