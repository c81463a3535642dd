/*
 * The stand-in's memory (standin.h). An allocation is an unnamed file that is mapped twice: without
 * any access at the address that is handed out, so that the host faults there, and with all access
 * for the stand-in alone. Another process opens it through /proc. Any thread; `lock` guards the list.
 */
#include "standin.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x6d656d6f72793031u
#define PAGE  4096u
#define SHARE ((size_t)2 << 20) /* small allocations share such blocks, larger ones have theirs */

typedef enum kind { KIND_DEVICE, KIND_OPENED, KIND_PINNED, KIND_REGISTERED } kind_t;

typedef struct block {
    struct block *next;
    uint64_t      at, id; /* the same address may be another allocation's later, the id is not */
    size_t        bytes;  /* asked for */
    size_t        mapped; /* whole pages */
    uint8_t      *real;   /* where the stand-in reads and writes */
    kind_t        kind;
    int           gpu, fd;
    int           pid, opens; /* of an opened one: whose, and how often */
    uint64_t      there, there_id; /* and where it lies in that process, and its number */
} block_t;

/* The content of a CUipcMemHandle. */
typedef struct memory_handle {
    uint64_t magic, bytes, at, id;
    int32_t  pid, fd, physical;
} memory_handle_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block_t        *blocks;
static size_t          used[STANDIN_GPUS_MAX];

/* The caller holds the lock. bytes 0: the address alone. */
static block_t **find(uint64_t at, size_t bytes) {
    for (block_t **b = &blocks; *b != NULL; b = &(*b)->next)
        if (at >= (*b)->at && at - (*b)->at < (*b)->bytes && bytes <= (*b)->bytes - (at - (*b)->at))
            return b;
    return NULL;
}

void *standin_memory(uint64_t at, size_t bytes, int gpu) {
    void     *real = NULL;
    block_t **b;
    pthread_mutex_lock(&lock);
    b = find(at, bytes);
    if (b != NULL && ((*b)->kind != KIND_DEVICE || gpu < 0 || (*b)->gpu == gpu))
        real = (*b)->real + (at - (*b)->at);
    pthread_mutex_unlock(&lock);
    return real;
}

bool standin_pinned(const void *at, size_t bytes) {
    block_t **b;
    bool      is;
    pthread_mutex_lock(&lock);
    b = find((uint64_t)(uintptr_t)at, bytes);
    is = b != NULL && (*b)->kind >= KIND_PINNED;
    pthread_mutex_unlock(&lock);
    return is;
}

static void add(block_t *block) {
    static uint64_t last;
    pthread_mutex_lock(&lock);
    block->id = ++last;
    block->next = blocks;
    blocks = block;
    cuda_standin.live++;
    pthread_mutex_unlock(&lock);
}

/* Takes the block that begins at `at` out of the list. */
static block_t *take(uint64_t at, kind_t kind) {
    block_t  *block = NULL;
    block_t **b;
    pthread_mutex_lock(&lock);
    b = find(at, 0);
    if (b != NULL && (*b)->at == at && (*b)->kind == kind) {
        block = *b;
        *b = block->next;
        cuda_standin.live--;
        if (kind == KIND_DEVICE)
            used[block->gpu] -= block->bytes;
    }
    pthread_mutex_unlock(&lock);
    return block;
}

/* Addresses, aligned to `unit`. */
static void *reserve_addresses(size_t bytes, size_t unit) {
    size_t    all = bytes + unit - PAGE;
    uintptr_t at, end;
    void     *base = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    at = ((uintptr_t)base + unit - 1) / unit * unit;
    end = (uintptr_t)base + all;
    if (at > (uintptr_t)base)
        munmap(base, at - (uintptr_t)base);
    if (end > at + bytes)
        munmap((void *)(at + bytes), end - at - bytes);
    return (void *)at;
}

/* Maps the file twice; false where the machine has no room. */
static bool map(block_t *block) {
    size_t unit = block->bytes < SHARE ? PAGE : SHARE;
    void  *at;
    block->mapped = (block->bytes + unit - 1) / unit * unit;
    at = reserve_addresses(block->mapped, unit);
    if (at == NULL)
        return false;
    block->at = (uint64_t)(uintptr_t)at;
    block->real = mmap(NULL, block->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, block->fd, 0);
    if (block->real != MAP_FAILED)
        return true;
    munmap(at, block->mapped);
    return false;
}

static void drop(block_t *block) {
    munmap((void *)(uintptr_t)block->at, block->mapped);
    munmap(block->real, block->mapped);
    close(block->fd);
    free(block);
}

static bool reserve(int gpu, size_t bytes) {
    bool fits;
    pthread_mutex_lock(&lock);
    fits = bytes <= STANDIN_MEMORY - used[gpu];
    used[gpu] += fits ? bytes : 0;
    pthread_mutex_unlock(&lock);
    return fits;
}

EXPORT int cuMemAlloc_v2(uint64_t *pointer_p, size_t bytes);
int cuMemAlloc_v2(uint64_t *pointer_p, size_t bytes) {
    int      gpu, result = standin_enter_gpu("cuMemAlloc_v2", &gpu);
    block_t *block;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (bytes == 0)
        return STANDIN_INVALID;
    if (!reserve(gpu, bytes) || (block = calloc(1, sizeof(*block))) == NULL)
        return HORA_CUDA_OUT_OF_MEMORY;
    *block = (block_t){.bytes = bytes, .gpu = gpu, .fd = memfd_create("stand-in GPU", MFD_CLOEXEC)};
    if (block->fd < 0 || ftruncate(block->fd, (off_t)bytes) != 0 || !map(block)) {
        perror("cuda stand-in: cuMemAlloc"); /* the machine's fault, not the test's */
        abort();
    }
    memset(block->real, 0xa5, bytes < PAGE ? bytes : PAGE); /* nothing may count on zeros */
    add(block);
    *pointer_p = block->at;
    return result;
}

EXPORT int cuMemFree_v2(uint64_t pointer);
int cuMemFree_v2(uint64_t pointer) {
    int      gpu, result = standin_enter_gpu("cuMemFree_v2", &gpu);
    block_t *block;
    if (result != HORA_CUDA_SUCCESS || pointer == 0)
        return result;
    standin_wait_all("cuMemFree");
    block = take(pointer, KIND_DEVICE);
    if (block == NULL)
        return STANDIN_INVALID;
    drop(block);
    return result;
}

/* ---- The host's memory ----------------------------------------------------------------------- */

static int pin(void *at, size_t bytes, kind_t kind) {
    block_t *block = calloc(1, sizeof(*block));
    if (block == NULL)
        return HORA_CUDA_OUT_OF_MEMORY;
    *block = (block_t){.at = (uint64_t)(uintptr_t)at, .bytes = bytes, .real = at, .kind = kind, .fd = -1};
    add(block);
    return HORA_CUDA_SUCCESS;
}

EXPORT int cuMemHostAlloc(void **pointer_p, size_t bytes, unsigned flags);
int cuMemHostAlloc(void **pointer_p, size_t bytes, unsigned flags) {
    int   gpu, result = standin_enter_gpu("cuMemHostAlloc", &gpu);
    void *at;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (bytes == 0 || posix_memalign(&at, PAGE, bytes) != 0)
        return bytes == 0 ? STANDIN_INVALID : HORA_CUDA_OUT_OF_MEMORY;
    *pointer_p = at;
    return pin(at, bytes, KIND_PINNED);
}

static int unpin(const char *symbol, void *pointer, kind_t kind, int otherwise) {
    int      gpu, result = standin_enter_gpu(symbol, &gpu);
    block_t *block;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    standin_wait_all(symbol);
    block = take((uint64_t)(uintptr_t)pointer, kind);
    if (block == NULL)
        return otherwise;
    if (kind == KIND_PINNED)
        free(pointer);
    free(block);
    return result;
}

EXPORT int cuMemFreeHost(void *pointer);
int cuMemFreeHost(void *pointer) {
    return unpin("cuMemFreeHost", pointer, KIND_PINNED, STANDIN_INVALID);
}

EXPORT int cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags);
int cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags) {
    int gpu, result = standin_enter_gpu("cuMemHostRegister_v2", &gpu);
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (bytes == 0 || pointer == NULL)
        return STANDIN_INVALID;
    if (standin_pinned(pointer, 0) || standin_pinned((char *)pointer + bytes - 1, 0))
        return STANDIN_REGISTERED;
    return pin(pointer, bytes, KIND_REGISTERED);
}

EXPORT int cuMemHostUnregister(void *pointer);
int cuMemHostUnregister(void *pointer) {
    return unpin("cuMemHostUnregister", pointer, KIND_REGISTERED, STANDIN_UNKNOWN);
}

static bool can_be_opened(const block_t *block) {
    const char *most = getenv("HORA_STANDIN_IPC_MOST");
    return block->kind == KIND_DEVICE && (most == NULL || block->bytes <= (size_t)atoll(most));
}

EXPORT int cuPointerGetAttribute(void *value_p, int attribute, uint64_t pointer);
int cuPointerGetAttribute(void *value_p, int attribute, uint64_t pointer) {
    int       result = standin_enter("cuPointerGetAttribute");
    block_t   block;
    block_t **b;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    b = find(pointer, 0);
    block = b != NULL ? **b : (block_t){0};
    pthread_mutex_unlock(&lock);
    if (b == NULL)
        return STANDIN_INVALID;
    switch (attribute) {
    case HORA_CUDA_POINTER_MEMORY_TYPE: *(unsigned *)value_p = block.kind >= KIND_PINNED ? 1 : 2; break;
    case HORA_CUDA_POINTER_ORDINAL: *(int *)value_p = block.gpu; break;
    case HORA_CUDA_POINTER_ID: *(uint64_t *)value_p = block.id; break;
    case HORA_CUDA_POINTER_START: *(uint64_t *)value_p = block.at; break;
    case HORA_CUDA_POINTER_BYTES: *(size_t *)value_p = block.bytes; break;
    case HORA_CUDA_POINTER_IPC_CAPABLE: 
        *(unsigned *)value_p = can_be_opened(&block);
        break;
    default: return STANDIN_INVALID;
    }
    return result;
}

/* ---- Between processes ----------------------------------------------------------------------- */

int standin_take(int pid, int fd) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* Names the allocation that begins at the pointer. */
EXPORT int cuIpcGetMemHandle(hora_cuda_bytes64_t *handle_p, uint64_t pointer);
int cuIpcGetMemHandle(hora_cuda_bytes64_t *handle_p, uint64_t pointer) {
    int             gpu, result = standin_enter_gpu("cuIpcGetMemHandle", &gpu);
    memory_handle_t handle = {.magic = MAGIC, .pid = getpid(), .fd = -1};
    block_t       **b;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    b = find(pointer, 0);
    if (b != NULL && (*b)->at == pointer && can_be_opened(*b)) {
        handle.fd = (*b)->fd;
        handle.bytes = (*b)->bytes;
        handle.at = (*b)->at;
        handle.id = (*b)->id;
        handle.physical = standin_physical((*b)->gpu);
    }
    pthread_mutex_unlock(&lock);
    if (handle.fd < 0)
        return STANDIN_INVALID;
    memset(handle_p, 0, sizeof(*handle_p));
    memcpy(handle_p, &handle, sizeof(handle));
    return result;
}

static uint64_t block_of(uint64_t at) {
    return at / SHARE;
}

/* What is open here of the same process, and lay there in the same blocks: the same allocation,
 * which is opened once more, or another one, with which this one cannot be. The caller holds the
 * lock. */
static block_t *find_open(const memory_handle_t *from, int gpu) {
    block_t *b = blocks;
    while (b != NULL && (b->kind != KIND_OPENED || b->gpu != gpu || b->pid != from->pid ||
                         block_of(b->there + b->bytes - 1) < block_of(from->at) ||
                         block_of(from->at + from->bytes - 1) < block_of(b->there)))
        b = b->next;
    return b;
}

static int open_again(const memory_handle_t *from, int gpu, uint64_t *pointer_p) {
    int      result = HORA_CUDA_SUCCESS;
    block_t *other;
    pthread_mutex_lock(&lock);
    other = find_open(from, gpu);
    if (other != NULL && other->there_id == from->id) {
        other->opens++;
        *pointer_p = other->at;
    } else if (other != NULL) {
        result = STANDIN_MAPPED;
    }
    pthread_mutex_unlock(&lock);
    return other == NULL ? HORA_CUDA_NOT_READY : result;
}

/* flags 1: with access to another GPU's memory, without which that is refused. */
EXPORT int cuIpcOpenMemHandle_v2(uint64_t *pointer_p, hora_cuda_bytes64_t handle, unsigned flags);
int cuIpcOpenMemHandle_v2(uint64_t *pointer_p, hora_cuda_bytes64_t handle, unsigned flags) {
    int             gpu, result = standin_enter_gpu("cuIpcOpenMemHandle_v2", &gpu);
    memory_handle_t from;
    struct stat     file;
    block_t        *block;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    memcpy(&from, &handle, sizeof(from));
    if (from.magic != MAGIC || flags != 1)
        return STANDIN_INVALID;
    if (from.pid == getpid())
        return STANDIN_NO_CONTEXT; /* as CUDA: not in the process that it comes from */
    if (from.physical != standin_physical(gpu) && getenv("HORA_STANDIN_NO_PEERS") != NULL)
        return STANDIN_PEER;
    result = open_again(&from, gpu, pointer_p);
    if (result != HORA_CUDA_NOT_READY)
        return result;
    block = calloc(1, sizeof(*block));
    if (block == NULL)
        return HORA_CUDA_OUT_OF_MEMORY;
    *block = (block_t){.bytes = from.bytes, .kind = KIND_OPENED, .gpu = gpu, .pid = from.pid,
                       .opens = 1, .there = from.at, .there_id = from.id,
                       .fd = standin_take(from.pid, from.fd)};
    if (block->fd < 0 || fstat(block->fd, &file) != 0 || (uint64_t)file.st_size != from.bytes ||
        !map(block)) {
        if (block->fd >= 0)
            close(block->fd);
        free(block);
        return STANDIN_HANDLE;
    }
    add(block);
    *pointer_p = block->at;
    return HORA_CUDA_SUCCESS;
}

/* One of several openings; the last one is for take. */
static bool close_once(uint64_t pointer) {
    block_t **b;
    bool      more;
    pthread_mutex_lock(&lock);
    b = find(pointer, 0);
    more = b != NULL && (*b)->kind == KIND_OPENED && (*b)->opens > 1;
    if (more)
        (*b)->opens--;
    pthread_mutex_unlock(&lock);
    return more;
}

EXPORT int cuIpcCloseMemHandle(uint64_t pointer);
int cuIpcCloseMemHandle(uint64_t pointer) {
    int      gpu, result = standin_enter_gpu("cuIpcCloseMemHandle", &gpu);
    block_t *block;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    standin_wait_all("cuIpcCloseMemHandle");
    if (close_once(pointer))
        return result;
    block = take(pointer, KIND_OPENED);
    if (block == NULL)
        return STANDIN_INVALID;
    drop(block);
    return result;
}
