/*
 * The timeline's buffer, and the thread that empties it (timeline.h).
 *
 * A push appends one record to the buffer. The writer thread takes the whole buffer away, puts an
 * empty one there, and works on what it has without a lock. It sleeps while nothing happens; after
 * the first event it lets a moment pass, so that it writes seldom and much. A process that is killed
 * loses the events of that moment.
 */
#include "util/timeline.h"

#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"
#include "util/trace_file.h"
#include "util/trace_writer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER_BYTES ((size_t)4 << 20)
#define MOMENT_NS    10000000
#define STACK_BYTES  (256u << 10)

/* In the buffer; its shape, label, name and text follow it, and the pointers point to them once it
 * has been taken out. */
typedef struct record {
    uint64_t              ns;
    size_t                bytes; /* of all of it; a multiple of 8 */
    size_t                label_len, text_len;
    hora_timeline_event_t event;
} record_t;

struct hora_recorder {
    hora_timeline_t     *timeline;
    hora_trace_writer_t *writer;
    char                *path;
    pthread_t            thread;
    unsigned char       *spare; /* the buffer that is not timeline->buffer; the writer's */
    hora_status_t        failed; /* the writer's until it has ended */
    char                 text[1024];
    hora_recorder_t     *next; /* in `recorders` */
};

/* All that record in this process: no file must be written twice at a time. */
static hora_recorder_t *recorders;
static pthread_mutex_t  recorders_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- Pushing -------------------------------------------------------------------------------- */

static unsigned char *append(unsigned char *at, const void *bytes, size_t len) {
    if (len > 0)
        memcpy(at, bytes, len);
    return at + len;
}

/* Into the buffer, which has room. */
static void store(unsigned char *at, const record_t *record) {
    const hora_timeline_event_t *e = &record->event;
    at = append(at, record, sizeof(*record));
    at = append(at, e->shape, (size_t)e->ndim * sizeof(e->shape[0]));
    at = append(at, e->label, record->label_len);
    at = append(at, e->name, e->name_len);
    append(at, e->text, record->text_len);
}

void hora_timeline_push(hora_timeline_t *timeline, const hora_timeline_event_t *event) {
    record_t record = {.event = *event};
    bool     wake = false;
    record.label_len = event->label != NULL ? strlen(event->label) + 1 : 0;
    record.text_len = event->text != NULL ? strlen(event->text) + 1 : 0;
    record.bytes = sizeof(record) + (size_t)event->ndim * sizeof(event->shape[0]) +
                   record.label_len + record.text_len + event->name_len;
    record.bytes = (record.bytes + 7) & ~(size_t)7;
    pthread_mutex_lock(&timeline->lock);
    record.ns = hora_clock_ns(); /* here, so that the order in the buffer is that of time */
    if (timeline->buffer == NULL) {
        /* It has just ended. */
    } else if (record.bytes > BUFFER_BYTES - timeline->used) {
        timeline->dropped++;
    } else {
        size_t before = timeline->used;
        store(timeline->buffer + before, &record);
        timeline->used += record.bytes;
        wake = before == 0 || (before < BUFFER_BYTES / 2 && timeline->used >= BUFFER_BYTES / 2);
    }
    pthread_mutex_unlock(&timeline->lock);
    if (event->type == HORA_TIMELINE_CLOCK)
        atomic_fetch_add(&timeline->clocks, 1);
    if (wake)
        pthread_cond_signal(&timeline->wake);
}

/* ---- The writer thread ---------------------------------------------------------------------- */

static void fail(hora_recorder_t *r, hora_status_t status) {
    r->failed = status;
    snprintf(r->text, sizeof(r->text), "%s", hora_last_error());
    hora_log(HORA_LOG_WARNING, "%s; nothing more is recorded", r->text);
    atomic_store(&r->timeline->active, false);
}

static hora_status_t write_record(hora_recorder_t *r, const unsigned char *at, size_t *bytes_p) {
    record_t              record;
    hora_timeline_event_t e;
    memcpy(&record, at, sizeof(record));
    *bytes_p = record.bytes;
    e = record.event;
    at += sizeof(record);
    e.shape = (const int64_t *)(const void *)at;
    at += (size_t)e.ndim * sizeof(e.shape[0]);
    e.label = record.label_len > 0 ? (const char *)at : NULL;
    at += record.label_len;
    e.name = (const char *)at;
    at += e.name_len;
    e.text = record.text_len > 0 ? (const char *)at : NULL;
    return hora_trace_writer_add(r->writer, record.ns, &e);
}

static void write_batch(hora_recorder_t *r, const unsigned char *bytes, size_t used,
                        uint64_t dropped) {
    hora_status_t st = HORA_OK;
    for (size_t at = 0, n = 0; at < used && st == HORA_OK; at += n)
        st = write_record(r, bytes + at, &n);
    if (st == HORA_OK && dropped > 0)
        st = hora_trace_writer_lost(r->writer, hora_clock_ns(), dropped);
    if (st == HORA_OK)
        st = hora_trace_writer_flush(r->writer);
    if (st != HORA_OK)
        fail(r, st);
}

static void wait_locked(hora_timeline_t *timeline) {
    struct timespec until;
    int             err = 0;
    while (timeline->used == 0 && !timeline->ending)
        pthread_cond_wait(&timeline->wake, &timeline->lock);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += MOMENT_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    while (timeline->used < BUFFER_BYTES / 2 && !timeline->ending && err != ETIMEDOUT)
        err = pthread_cond_timedwait(&timeline->wake, &timeline->lock, &until);
}

static void *writer_main(void *arg) {
    hora_recorder_t *r = arg;
    hora_timeline_t *timeline = r->timeline;
    bool             ending = false;
    pthread_mutex_lock(&timeline->lock);
    while (!ending) {
        wait_locked(timeline);
        unsigned char *full = timeline->buffer;
        size_t         used = timeline->used;
        uint64_t       dropped = timeline->dropped;
        ending = timeline->ending;
        timeline->buffer = ending ? NULL : r->spare;
        timeline->used = 0;
        timeline->dropped = 0;
        pthread_mutex_unlock(&timeline->lock);
        if (r->failed == HORA_OK)
            write_batch(r, full, used, dropped);
        if (ending)
            free(r->spare);
        r->spare = full;
        pthread_mutex_lock(&timeline->lock);
    }
    pthread_mutex_unlock(&timeline->lock);
    return NULL;
}

/* ---- Begin and end -------------------------------------------------------------------------- */

static bool enlist(hora_recorder_t *r) {
    bool free_path = true;
    pthread_mutex_lock(&recorders_lock);
    for (hora_recorder_t *other = recorders; other != NULL; other = other->next)
        free_path &= strcmp(other->path, r->path) != 0;
    if (free_path) {
        r->next = recorders;
        recorders = r;
    }
    pthread_mutex_unlock(&recorders_lock);
    return free_path;
}

static void delist(hora_recorder_t *r) {
    pthread_mutex_lock(&recorders_lock);
    hora_recorder_t **at = &recorders;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    pthread_mutex_unlock(&recorders_lock);
}

static void turn_on(hora_timeline_t *timeline, hora_recorder_t *r, unsigned char *buffer,
                    bool mark_cycles) {
    timeline->recorder = r;
    pthread_mutex_lock(&timeline->lock);
    timeline->buffer = buffer;
    timeline->used = 0;
    timeline->dropped = 0;
    timeline->ending = false;
    pthread_mutex_unlock(&timeline->lock);
    atomic_store(&timeline->clocks, 0);
    atomic_store(&timeline->mark_cycles, mark_cycles);
    atomic_store(&timeline->active, true);
}

/* The file is there already; from here on events are taken. */
static hora_status_t record(hora_timeline_t *timeline, hora_recorder_t *r, bool mark_cycles) {
    unsigned char *buffer = malloc(BUFFER_BYTES);
    hora_status_t  st;
    r->spare = malloc(BUFFER_BYTES);
    if (buffer == NULL || r->spare == NULL) {
        st = hora_fail(HORA_ERR_NO_MEMORY, "the timeline's buffers");
    } else {
        turn_on(timeline, r, buffer, mark_cycles);
        st = hora_thread_spawn("hora-timeline", STACK_BYTES, writer_main, r,
                               "the timeline's thread", &r->thread);
    }
    if (st == HORA_OK)
        return HORA_OK;
    atomic_store(&timeline->active, false);
    pthread_mutex_lock(&timeline->lock);
    timeline->buffer = NULL;
    pthread_mutex_unlock(&timeline->lock);
    timeline->recorder = NULL;
    free(buffer);
    free(r->spare);
    return st;
}

static hora_status_t close_file(hora_recorder_t *r) {
    uint64_t      losses = hora_trace_writer_losses(r->writer);
    hora_status_t st = hora_trace_writer_close(r->writer, hora_clock_ns());
    if (losses > 0)
        hora_log(HORA_LOG_WARNING, "timeline %s: %llu events were lost: they came faster than they "
                 "could be written, or there were too many names", r->path,
                 (unsigned long long)losses);
    if (r->failed != HORA_OK)
        return hora_fail_again(r->failed, r->text);
    return st;
}

static hora_status_t end_locked(hora_timeline_t *timeline) {
    hora_recorder_t *r = timeline->recorder;
    hora_status_t    st;
    if (r == NULL)
        return HORA_OK;
    atomic_store(&timeline->active, false);
    pthread_mutex_lock(&timeline->lock);
    timeline->ending = true;
    pthread_mutex_unlock(&timeline->lock);
    pthread_cond_signal(&timeline->wake);
    pthread_join(r->thread, NULL);
    timeline->recorder = NULL;
    st = close_file(r);
    delist(r);
    free(r->spare);
    free(r->path);
    free(r);
    return st;
}

static hora_status_t begin_locked(hora_timeline_t *timeline, hora_timeline_options_t options) {
    hora_recorder_t *r;
    hora_status_t    st;
    if (timeline->recorder != NULL && !atomic_load(&timeline->active))
        end_locked(timeline); /* it could not write, and has said so: this is another try */
    if (timeline->recorder != NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "timeline_start: the timeline is being written "
                         "to %s already", timeline->recorder->path);
    r = calloc(1, sizeof(*r));
    if (r == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "timeline %s", options.path);
    r->timeline = timeline;
    st = hora_trace_file_resolve(options.path, &r->path);
    if (st != HORA_OK)
        goto err_free;
    if (!enlist(r)) {
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "timeline_start: %s is being written already, by "
                       "another communicator's timeline", r->path);
        goto err_free;
    }
    options.path = r->path;
    st = hora_trace_writer_create(&options, hora_clock_ns(), &r->writer);
    if (st != HORA_OK)
        goto err_delist;
    st = record(timeline, r, options.mark_cycles);
    if (st != HORA_OK)
        goto err_close;
    return HORA_OK;
err_close:
    hora_trace_writer_close(r->writer, hora_clock_ns());
err_delist:
    delist(r);
err_free:
    free(r->path);
    free(r);
    return st;
}

hora_status_t hora_timeline_begin(hora_timeline_t *timeline,
                                  const hora_timeline_options_t *options) {
    pthread_mutex_lock(&timeline->control);
    hora_status_t st = begin_locked(timeline, *options);
    pthread_mutex_unlock(&timeline->control);
    return st;
}

hora_status_t hora_timeline_end(hora_timeline_t *timeline) {
    pthread_mutex_lock(&timeline->control);
    hora_status_t st = end_locked(timeline);
    pthread_mutex_unlock(&timeline->control);
    return st;
}

void hora_timeline_init(hora_timeline_t *timeline) {
    pthread_condattr_t monotonic;
    memset(timeline, 0, sizeof(*timeline));
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&timeline->control, NULL);
    pthread_mutex_init(&timeline->lock, NULL);
    pthread_cond_init(&timeline->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void hora_timeline_destroy(hora_timeline_t *timeline) {
    hora_timeline_end(timeline);
    pthread_mutex_destroy(&timeline->control);
    pthread_mutex_destroy(&timeline->lock);
    pthread_cond_destroy(&timeline->wake);
}
