/*
 * The stand-in's streams and events (standin.h). A stream is a thread with a queue. An event counts its
 * records; whoever waits remembers the number of the last one and waits until that one is done. The
 * counts of an interprocess event lie in an unnamed file that other processes map. Any thread; each
 * stream has a lock, and `lock` guards the list of them.
 */
#include "standin.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STREAM_MAGIC 0x53747265616d3031u
#define EVENT_MAGIC  0x4576656e74303031u
#define RECORDS      1008 /* of one event that may be unfinished at a time; 8 KB with the counts */
#define STUCK_S      20

typedef struct work {
    struct work    *next;
    standin_work_fn run;
    void           *args; /* freed after it */
} work_t;

typedef struct stream {
    uint64_t        magic;
    struct stream  *next; /* of all */
    int             gpu;
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    work_t         *first, **last;
    bool            busy, closing;
} stream_t;

/* done[k % RECORDS] is k when record number k is done; they count from 1. */
typedef struct counts {
    _Atomic uint64_t recorded;
    _Atomic uint32_t wake; /* changes with each that is done */
    _Atomic uint32_t gone; /* destroyed by the process that made it */
    _Atomic uint64_t done[RECORDS];
} counts_t;

typedef struct event {
    uint64_t      magic;
    int           gpu, fd; /* -1: of this process alone */
    bool          opened;  /* another process's */
    counts_t     *counts;
    _Atomic int   uses; /* the handle, and queued work */
} event_t;

typedef struct event_handle {
    uint64_t magic;
    int32_t  pid, fd;
} event_handle_t;

typedef struct event_work {
    event_t *event;
    uint64_t record;
} event_work_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static stream_t       *streams, *defaults[STANDIN_GPUS_MAX];
static long            delay_us = -1;

/* ---- Streams --------------------------------------------------------------------------------- */

static void delay(uint64_t *seed) {
    long            us;
    struct timespec time = {0};
    if (delay_us <= 0)
        return;
    *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
    us = (long)(*seed % (uint64_t)delay_us) * (*seed >> 40 & 1); /* every second piece of work */
    time.tv_sec = us / 1000000, time.tv_nsec = us % 1000000 * 1000;
    nanosleep(&time, NULL);
}

static work_t *next_work(stream_t *s) {
    work_t *work;
    pthread_mutex_lock(&s->lock);
    s->busy = false;
    pthread_cond_broadcast(&s->changed);
    while (s->first == NULL && !s->closing)
        pthread_cond_wait(&s->changed, &s->lock);
    work = s->first;
    if (work != NULL) {
        s->first = work->next;
        s->last = s->first != NULL ? s->last : &s->first;
        s->busy = true;
    }
    pthread_mutex_unlock(&s->lock);
    return work;
}

static void *run_stream(void *arg) {
    stream_t *s = arg;
    work_t   *work;
    uint64_t  seed = (uint64_t)getpid() * 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)s;
    while ((work = next_work(s)) != NULL) {
        while (cuda_standin.held == s)
            usleep(100);
        delay(&seed);
        work->run(work->args);
        free(work->args);
        free(work);
    }
    pthread_mutex_lock(&lock);
    for (stream_t **at = &streams; *at != NULL; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    s->magic = 0;
    free(s);
    return NULL;
}

/* The caller holds the lock. */
static stream_t *new_stream(int gpu) {
    stream_t *s = calloc(1, sizeof(*s));
    pthread_t thread;
    if (s == NULL)
        return NULL;
    if (delay_us < 0)
        delay_us = getenv("HORA_STANDIN_DELAY_US") != NULL ? atol(getenv("HORA_STANDIN_DELAY_US")) : 0;
    *s = (stream_t){.magic = STREAM_MAGIC, .gpu = gpu, .busy = true};
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&thread, NULL, run_stream, s) != 0)
        abort();
    pthread_detach(thread);
    s->next = streams;
    streams = s;
    return s;
}

/* NULL, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD are the GPU's default one. */
static stream_t *stream_of(int gpu, hora_cuda_stream_t handle) {
    stream_t *s = handle;
    if ((uintptr_t)handle > 2)
        return s->magic == STREAM_MAGIC && s->gpu == gpu ? s : NULL;
    pthread_mutex_lock(&lock);
    if (defaults[gpu] == NULL)
        defaults[gpu] = new_stream(gpu);
    s = defaults[gpu];
    pthread_mutex_unlock(&lock);
    return s;
}

int standin_queue(int gpu, hora_cuda_stream_t stream, standin_work_fn run, const void *args,
                  size_t bytes) {
    stream_t *s = stream_of(gpu, stream);
    work_t   *work = calloc(1, sizeof(*work));
    if (s == NULL || work == NULL || (work->args = malloc(bytes)) == NULL) {
        free(work);
        return s == NULL ? STANDIN_HANDLE : HORA_CUDA_OUT_OF_MEMORY;
    }
    memcpy(work->args, args, bytes);
    work->run = run;
    pthread_mutex_lock(&s->lock);
    *s->last = work;
    s->last = &work->next;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return HORA_CUDA_SUCCESS;
}

static bool idle(stream_t *s) {
    bool is;
    pthread_mutex_lock(&s->lock);
    is = s->first == NULL && !s->busy;
    pthread_mutex_unlock(&s->lock);
    return is;
}

int standin_wait(int gpu, hora_cuda_stream_t stream) {
    stream_t *s = stream_of(gpu, stream);
    if (s == NULL)
        return STANDIN_HANDLE;
    pthread_mutex_lock(&s->lock);
    while (s->first != NULL || s->busy)
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return HORA_CUDA_SUCCESS;
}

static bool all_idle(void) {
    bool are = true;
    pthread_mutex_lock(&lock);
    for (stream_t *s = streams; s != NULL; s = s->next)
        are = are && idle(s);
    pthread_mutex_unlock(&lock);
    return are;
}

void standin_wait_all(const char *symbol) {
    time_t end = time(NULL) + STUCK_S;
    while (!all_idle()) {
        if (time(NULL) > end) {
            fprintf(stderr, "cuda stand-in: %s waits for queued work, which has not ended in %d s\n",
                    symbol, STUCK_S);
            abort();
        }
        usleep(50);
    }
}

EXPORT int cuStreamCreateWithPriority(hora_cuda_stream_t *stream_p, unsigned flags, int priority);
int cuStreamCreateWithPriority(hora_cuda_stream_t *stream_p, unsigned flags, int priority) {
    int       gpu, result = standin_enter_gpu("cuStreamCreateWithPriority", &gpu);
    stream_t *s;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    s = new_stream(gpu);
    pthread_mutex_unlock(&lock);
    if (s == NULL)
        return HORA_CUDA_OUT_OF_MEMORY;
    *stream_p = s;
    return result;
}

/* At once; the thread ends when its work is done. */
EXPORT int cuStreamDestroy_v2(hora_cuda_stream_t stream);
int cuStreamDestroy_v2(hora_cuda_stream_t stream) {
    int       gpu, result = standin_enter_gpu("cuStreamDestroy_v2", &gpu);
    stream_t *s = stream;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if ((uintptr_t)stream <= 2 || s->magic != STREAM_MAGIC)
        return STANDIN_HANDLE;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return result;
}

EXPORT int cuStreamQuery(hora_cuda_stream_t stream);
int cuStreamQuery(hora_cuda_stream_t stream) {
    int       gpu, result = standin_enter_gpu("cuStreamQuery", &gpu);
    stream_t *s;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    s = stream_of(gpu, stream);
    if (s == NULL)
        return STANDIN_HANDLE;
    return idle(s) ? HORA_CUDA_SUCCESS : HORA_CUDA_NOT_READY;
}

/* ---- Events ---------------------------------------------------------------------------------- */

static void futex(_Atomic uint32_t *at, int what, uint32_t value) {
    struct timespec time = {.tv_nsec = 100000000};
    syscall(SYS_futex, at, what, value, what == FUTEX_WAIT ? &time : NULL, NULL, 0);
}

static void release(event_t *e) {
    if (atomic_fetch_sub(&e->uses, 1) != 1)
        return;
    munmap(e->counts, sizeof(counts_t));
    if (e->fd >= 0)
        close(e->fd);
    free(e);
}

static void run_record(void *args) {
    const event_work_t *work = args;
    counts_t           *c = work->event->counts;
    _Atomic uint64_t   *done = &c->done[work->record % RECORDS];
    if (atomic_load(done) < work->record)
        atomic_store(done, work->record);
    atomic_fetch_add(&c->wake, 1);
    futex(&c->wake, FUTEX_WAKE, 1u << 30);
    release(work->event);
}

static bool is_done(counts_t *c, uint64_t record) {
    return record == 0 || atomic_load(&c->done[record % RECORDS]) >= record;
}

/* A record whose process has gone is never done, and the stream waits for ever. */
static void run_wait(void *args) {
    const event_work_t *work = args;
    counts_t           *c = work->event->counts;
    uint32_t            seen = atomic_load(&c->wake);
    while (!is_done(c, work->record)) {
        futex(&c->wake, FUTEX_WAIT, seen);
        seen = atomic_load(&c->wake);
    }
    release(work->event);
}

static event_t *event_of(hora_cuda_event_t handle) {
    event_t *e = handle;
    return e != NULL && e->magic == EVENT_MAGIC ? e : NULL;
}

/* fd -1: none of its own. */
static event_t *new_event(int gpu, int fd) {
    event_t *e = calloc(1, sizeof(*e));
    int      flags = fd >= 0 ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS;
    void    *at = mmap(NULL, sizeof(counts_t), PROT_READ | PROT_WRITE, flags, fd, 0);
    if (e == NULL || at == MAP_FAILED)
        abort();
    *e = (event_t){.magic = EVENT_MAGIC, .gpu = gpu, .fd = fd, .counts = at, .uses = 1};
    return e;
}

/* flags: 1 a wait that blocks, 2 no timing, 4 interprocess, which takes 2. */
EXPORT int cuEventCreate(hora_cuda_event_t *event_p, unsigned flags);
int cuEventCreate(hora_cuda_event_t *event_p, unsigned flags) {
    int gpu, result = standin_enter_gpu("cuEventCreate", &gpu);
    int fd = -1;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if ((flags & 6) == 4 || flags > 7)
        return STANDIN_INVALID;
    if (flags & 4) {
        fd = memfd_create("stand-in event", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, sizeof(counts_t)) != 0)
            abort();
    }
    *event_p = new_event(gpu, fd);
    return result;
}

/* Also when the GPU is lost, so that nothing leaks. */
EXPORT int cuEventDestroy_v2(hora_cuda_event_t event);
int cuEventDestroy_v2(hora_cuda_event_t event) {
    int      gpu, result = standin_enter_gpu("cuEventDestroy_v2", &gpu);
    event_t *e = event_of(event);
    if (result != HORA_CUDA_SUCCESS && !standin_is_lost())
        return result;
    if (e == NULL)
        return STANDIN_HANDLE;
    if (!e->opened)
        atomic_store(&e->counts->gone, 1);
    release(e);
    return result;
}

EXPORT int cuEventRecord(hora_cuda_event_t event, hora_cuda_stream_t stream);
int cuEventRecord(hora_cuda_event_t event, hora_cuda_stream_t stream) {
    int          gpu, result = standin_enter_gpu("cuEventRecord", &gpu);
    event_t     *e = event_of(event);
    event_work_t work = {.event = e};
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (e == NULL || e->gpu != gpu || stream_of(gpu, stream) == NULL)
        return STANDIN_HANDLE;
    work.record = atomic_fetch_add(&e->counts->recorded, 1) + 1;
    atomic_fetch_add(&e->uses, 1);
    return standin_queue(gpu, stream, run_record, &work, sizeof(work));
}

/* For the last record before this call, by whichever process; none: nothing to wait for. */
EXPORT int cuStreamWaitEvent(hora_cuda_stream_t stream, hora_cuda_event_t event, unsigned flags);
int cuStreamWaitEvent(hora_cuda_stream_t stream, hora_cuda_event_t event, unsigned flags) {
    int          gpu, result = standin_enter_gpu("cuStreamWaitEvent", &gpu);
    event_t     *e = event_of(event);
    event_work_t work = {.event = e};
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (e == NULL || flags != 0 || stream_of(gpu, stream) == NULL || atomic_load(&e->counts->gone))
        return STANDIN_HANDLE;
    work.record = atomic_load(&e->counts->recorded);
    atomic_fetch_add(&e->uses, 1);
    return standin_queue(gpu, stream, run_wait, &work, sizeof(work));
}

EXPORT int cuEventQuery(hora_cuda_event_t event);
int cuEventQuery(hora_cuda_event_t event) {
    int      gpu, result = standin_enter_gpu("cuEventQuery", &gpu);
    event_t *e = event_of(event);
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (e == NULL)
        return STANDIN_HANDLE;
    return is_done(e->counts, atomic_load(&e->counts->recorded)) ? HORA_CUDA_SUCCESS
                                                                 : HORA_CUDA_NOT_READY;
}

EXPORT int cuIpcGetEventHandle(hora_cuda_bytes64_t *handle_p, hora_cuda_event_t event);
int cuIpcGetEventHandle(hora_cuda_bytes64_t *handle_p, hora_cuda_event_t event) {
    int            gpu, result = standin_enter_gpu("cuIpcGetEventHandle", &gpu);
    event_t       *e = event_of(event);
    event_handle_t handle = {.magic = EVENT_MAGIC, .pid = getpid()};
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (e == NULL || e->fd < 0)
        return STANDIN_HANDLE;
    handle.fd = e->fd;
    memset(handle_p, 0, sizeof(*handle_p));
    memcpy(handle_p, &handle, sizeof(handle));
    return result;
}

EXPORT int cuIpcOpenEventHandle(hora_cuda_event_t *event_p, hora_cuda_bytes64_t handle);
int cuIpcOpenEventHandle(hora_cuda_event_t *event_p, hora_cuda_bytes64_t handle) {
    int            gpu, result = standin_enter_gpu("cuIpcOpenEventHandle", &gpu);
    event_handle_t from;
    int            fd;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    memcpy(&from, &handle, sizeof(from));
    if (from.magic != EVENT_MAGIC || from.pid == getpid() ||
        (fd = standin_take(from.pid, from.fd)) < 0)
        return STANDIN_HANDLE;
    *event_p = new_event(gpu, fd);
    ((event_t *)*event_p)->opened = true;
    return result;
}
