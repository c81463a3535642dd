/*
 * The timeline's events as Chrome trace events (trace_writer.h). One thread at a time.
 *
 * A tensor is a process of the trace, so that each has a track with its name. Its states:
 *
 *     none --ENQUEUED, READY--> NEGOTIATING --STARTED--> OPERATION --ENDED--> none
 *                    (QUEUE inside, until REPORTED)    (one activity at a time inside)
 *
 * Recording may begin in the midst of an operation, and events may be lost: whatever comes, what is
 * written stays properly nested. A state that does not fit an event is closed first, and the end of
 * what never began is left out.
 */
#include "util/trace_writer.h"

#include "util/names.h"
#include "util/trace_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define TENSORS_MAX (1u << 18) /* so many names get tracks of their own */
#define NAME_MAX_BYTES 3000    /* of a name with its escapes, in the file */

enum { NONE, NEGOTIATING, OPERATION };

typedef struct tensor {
    hora_name_t name; /* the key, with the scope in front */
    unsigned    pid;
    int         state;
    bool        queued;   /* QUEUE is open */
    bool        activity; /* one is open */
} tensor_t;

struct hora_trace_writer {
    hora_trace_file_t *file;
    hora_names_t       tensors;
    uint64_t           start; /* ns of hora_clock_ns() at time 0 of the trace */
    uint64_t           lost;
    char               key[sizeof(uint32_t) + 2048];
    size_t             len; /* of text */
    char               text[HORA_TRACE_ELEMENT_MAX + 64];
};

/* ---- Text ----------------------------------------------------------------------------------- */

static void put(hora_trace_writer_t *w, const char *text) {
    size_t n = strlen(text);
    if (n <= HORA_TRACE_ELEMENT_MAX - w->len) {
        memcpy(w->text + w->len, text, n);
        w->len += n;
    }
}

static void put_number(hora_trace_writer_t *w, uint64_t n) {
    char  digits[24], *at = digits + sizeof(digits) - 1;
    *at = '\0';
    do
        *--at = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    put(w, at);
}

static void put_signed(hora_trace_writer_t *w, int64_t n) {
    if (n < 0)
        put(w, "-");
    put_number(w, n < 0 ? -(uint64_t)n : (uint64_t)n);
}

/* Nanoseconds as microseconds. */
static void put_micros(hora_trace_writer_t *w, int64_t ns) {
    uint64_t size = ns < 0 ? -(uint64_t)ns : (uint64_t)ns;
    char     part[5] = {'.', (char)('0' + size / 100 % 10), (char)('0' + size / 10 % 10),
                        (char)('0' + size % 10), '\0'};
    if (ns < 0)
        put(w, "-");
    put_number(w, size / 1000);
    put(w, part);
}

/* Bytes of the well-formed UTF-8 sequence at p, or 0 (RFC 3629: no surrogates, none too long). */
static size_t sequence(const unsigned char *p, size_t left) {
    static const struct {
        unsigned char first, last, low, high; /* of the first byte, then of the second */
        size_t        len;
    } forms[] = {{0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                 {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
                 {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
                 {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        if (p[0] < forms[i].first || p[0] > forms[i].last)
            continue;
        if (left < forms[i].len || p[1] < forms[i].low || p[1] > forms[i].high)
            return 0;
        for (size_t k = 2; k < forms[i].len; k++)
            if ((p[k] & 0xc0) != 0x80)
                return 0;
        return forms[i].len;
    }
    return 0;
}

/* The bytes of one character of a JSON string: out has room for 8. Takes *used_p bytes of p. */
static size_t escape(const unsigned char *p, size_t left, char *out, size_t *used_p) {
    size_t n = *p < 0x80 ? 1 : sequence(p, left);
    *used_p = n > 0 ? n : 1;
    if (n == 0) { /* no character: U+FFFD */
        memcpy(out, "\xef\xbf\xbd", 3);
        return 3;
    }
    if (*p == '"' || *p == '\\') {
        out[0] = '\\';
        out[1] = (char)*p;
        return 2;
    }
    if (*p < 0x20 || *p == 0x7f)
        return (size_t)snprintf(out, 8, "\\u%04x", *p);
    memcpy(out, p, n);
    return n;
}

/* As a JSON string, cut to `most` bytes. */
static void put_string(hora_trace_writer_t *w, const char *bytes, size_t len, size_t most) {
    size_t end = w->len + most < HORA_TRACE_ELEMENT_MAX - 96 ? w->len + most
                                                              : HORA_TRACE_ELEMENT_MAX - 96;
    char   one[8];
    put(w, "\"");
    for (size_t i = 0, used; i < len; i += used) {
        size_t n = escape((const unsigned char *)bytes + i, len - i, one, &used);
        if (w->len + n > end) {
            put(w, "...");
            break;
        }
        memcpy(w->text + w->len, one, n);
        w->len += n;
    }
    put(w, "\"");
}

/* ---- Elements ------------------------------------------------------------------------------- */

/* {"ph": "B", "name": "prefixNAME", "ts": 1.000, "pid": 1, "tid": 0 -- and the caller goes on. */
static void begin(hora_trace_writer_t *w, const char *ph, uint64_t ns, unsigned pid) {
    w->len = 0;
    put(w, "{\"ph\": \"");
    put(w, ph);
    put(w, "\", \"ts\": ");
    put_micros(w, ns > w->start ? (int64_t)(ns - w->start) : 0);
    put(w, ", \"pid\": ");
    put_number(w, pid);
    put(w, ", \"tid\": 0");
}

static hora_status_t finish(hora_trace_writer_t *w) {
    put(w, "}");
    return hora_trace_file_put(w->file, w->text, w->len);
}

static hora_status_t open_slice(hora_trace_writer_t *w, uint64_t ns, const tensor_t *t,
                                const char *prefix, const char *name) {
    begin(w, "B", ns, t->pid);
    put(w, ", \"name\": \"");
    put(w, prefix);
    put(w, name);
    put(w, "\"");
    return finish(w);
}

static hora_status_t close_slice(hora_trace_writer_t *w, uint64_t ns, const tensor_t *t) {
    begin(w, "E", ns, t->pid);
    return finish(w);
}

static void put_shape(hora_trace_writer_t *w, const hora_timeline_event_t *e) {
    put(w, "\"shape\": \"[");
    for (int i = 0; i < e->ndim; i++) {
        put(w, i > 0 ? ", " : "");
        put_signed(w, e->shape[i]);
    }
    put(w, "]\"");
}

/* The end of an operation, or of a negotiation that has failed. */
static hora_status_t close_with(hora_trace_writer_t *w, uint64_t ns, const tensor_t *t,
                                const hora_timeline_event_t *e) {
    begin(w, "E", ns, t->pid);
    put(w, ", \"args\": {");
    if (e->dtype != NULL) {
        put(w, "\"dtype\": \"");
        put(w, e->dtype);
        put(w, "\", ");
        put_shape(w, e);
        put(w, ", \"bytes\": ");
        put_number(w, e->bytes);
    }
    if (e->text != NULL) {
        put(w, e->dtype != NULL ? ", \"error\": " : "\"error\": ");
        put_string(w, e->text, strlen(e->text), NAME_MAX_BYTES);
    }
    put(w, "}");
    return finish(w);
}

static hora_status_t instant(hora_trace_writer_t *w, uint64_t ns, const char *name,
                             uint64_t count) {
    begin(w, "i", ns, 0);
    put(w, ", \"name\": \"");
    put(w, name);
    put(w, "\", \"s\": \"g\"");
    if (count > 0) {
        put(w, ", \"args\": {\"count\": ");
        put_number(w, count);
        put(w, "}");
    }
    return finish(w);
}

static hora_status_t sort_index(hora_trace_writer_t *w, unsigned pid) {
    w->len = 0;
    put(w, "{\"ph\": \"M\", \"name\": \"process_sort_index\", \"pid\": ");
    put_number(w, pid);
    put(w, ", \"args\": {\"sort_index\": ");
    put_number(w, pid);
    put(w, "}");
    return finish(w);
}

static hora_status_t put_clock(hora_trace_writer_t *w, uint64_t ns, int64_t offset,
                               uint64_t error) {
    begin(w, "M", ns, 0);
    put(w, ", \"name\": \"clock_offset\", \"args\": {\"clock_offset_in_micros\": ");
    put_micros(w, offset);
    put(w, ", \"clock_error_in_micros\": ");
    put_micros(w, (int64_t)error);
    put(w, "}");
    return finish(w);
}

/* ---- Tensors -------------------------------------------------------------------------------- */

static hora_status_t introduce(hora_trace_writer_t *w, const tensor_t *t) {
    hora_status_t st;
    w->len = 0;
    put(w, "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": ");
    put_number(w, t->pid);
    put(w, ", \"args\": {\"name\": ");
    put_string(w, t->name.text + sizeof(uint32_t), t->name.len - sizeof(uint32_t), NAME_MAX_BYTES);
    put(w, "}");
    st = finish(w);
    return st == HORA_OK ? sort_index(w, t->pid) : st;
}

static tensor_t *add_tensor(hora_trace_writer_t *w, uint64_t hash, size_t len) {
    tensor_t *t;
    char     *text;
    if (w->tensors.count >= TENSORS_MAX || (t = calloc(1, sizeof(*t) + len + 1)) == NULL)
        return NULL;
    text = (char *)(t + 1);
    memcpy(text, w->key, len);
    t->name = (hora_name_t){hash, len, text};
    if (hora_names_add(&w->tensors, &t->name) != HORA_OK) {
        free(t);
        return NULL;
    }
    t->pid = (unsigned)w->tensors.count;
    return t;
}

/* *tensor_p NULL: there is no room for more. */
static hora_status_t find(hora_trace_writer_t *w, const hora_timeline_event_t *e,
                          tensor_t **tensor_p) {
    size_t   len = sizeof(e->scope), room = sizeof(w->key);
    size_t   label = e->label != NULL ? strnlen(e->label, 512) : 0;
    size_t   name = e->name_len < room - len - label ? e->name_len : room - len - label;
    uint64_t hash;
    memcpy(w->key, &e->scope, len);
    if (label > 0)
        memcpy(w->key + len, e->label, label);
    memcpy(w->key + len + label, e->name, name);
    len += label + name;
    hash = hora_name_hash(w->key, len);
    *tensor_p = (tensor_t *)hora_names_find(&w->tensors, hash, w->key, len);
    if (*tensor_p != NULL)
        return HORA_OK;
    *tensor_p = add_tensor(w, hash, len);
    return *tensor_p != NULL ? introduce(w, *tensor_p) : HORA_OK;
}

/* ---- States --------------------------------------------------------------------------------- */

static hora_status_t end_queue(hora_trace_writer_t *w, uint64_t ns, tensor_t *t) {
    if (!t->queued)
        return HORA_OK;
    t->queued = false;
    return close_slice(w, ns, t);
}

static hora_status_t end_activity(hora_trace_writer_t *w, uint64_t ns, tensor_t *t) {
    if (!t->activity)
        return HORA_OK;
    t->activity = false;
    return close_slice(w, ns, t);
}

/* Back to NONE, from wherever. */
static hora_status_t end_all(hora_trace_writer_t *w, uint64_t ns, tensor_t *t) {
    hora_status_t st = end_queue(w, ns, t);
    if (st == HORA_OK)
        st = end_activity(w, ns, t);
    if (st == HORA_OK && t->state != NONE)
        st = close_slice(w, ns, t);
    t->state = NONE;
    return st;
}

static hora_status_t negotiate(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                               const hora_timeline_event_t *e) {
    hora_status_t st = HORA_OK;
    if (t->state == NEGOTIATING)
        return HORA_OK;
    if (t->state == OPERATION)
        st = end_all(w, ns, t);
    t->state = NEGOTIATING;
    return st == HORA_OK ? open_slice(w, ns, t, "NEGOTIATE_", e->op) : st;
}

static hora_status_t operate(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                             const hora_timeline_event_t *e) {
    hora_status_t st = end_all(w, ns, t);
    t->state = OPERATION;
    return st == HORA_OK ? open_slice(w, ns, t, "", e->op) : st;
}

static hora_status_t enqueued(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                              const hora_timeline_event_t *e) {
    hora_status_t st = negotiate(w, ns, t, e);
    if (st == HORA_OK)
        st = end_queue(w, ns, t); /* the end of the one before was lost */
    t->queued = true;
    return st == HORA_OK ? open_slice(w, ns, t, "", "QUEUE") : st;
}

static hora_status_t ready(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                           const hora_timeline_event_t *e) {
    hora_status_t st = negotiate(w, ns, t, e);
    if (st == HORA_OK && e->type == HORA_TIMELINE_REPORTED)
        st = end_queue(w, ns, t);
    if (st != HORA_OK || e->number < 0)
        return st;
    begin(w, "X", ns, t->pid);
    put(w, ", \"dur\": 0, \"name\": \"");
    put_signed(w, e->number);
    put(w, "\"");
    return finish(w);
}

static hora_status_t activity(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                              const hora_timeline_event_t *e) {
    hora_status_t st = end_activity(w, ns, t);
    if (st == HORA_OK && e->activity != NULL && t->state != OPERATION)
        st = operate(w, ns, t, e);
    if (st != HORA_OK || e->activity == NULL)
        return st;
    t->activity = true;
    return open_slice(w, ns, t, "", e->activity);
}

static hora_status_t ended(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                           const hora_timeline_event_t *e) {
    hora_status_t st = end_queue(w, ns, t);
    int           state = t->state;
    if (st == HORA_OK)
        st = end_activity(w, ns, t);
    t->state = NONE;
    return st == HORA_OK && state != NONE ? close_with(w, ns, t, e) : st;
}

static hora_status_t add(hora_trace_writer_t *w, uint64_t ns, tensor_t *t,
                         const hora_timeline_event_t *e) {
    switch (e->type) {
    case HORA_TIMELINE_ENQUEUED: return enqueued(w, ns, t, e);
    case HORA_TIMELINE_REPORTED:
    case HORA_TIMELINE_READY: return ready(w, ns, t, e);
    case HORA_TIMELINE_AGREED: return t->state == NEGOTIATING ? end_all(w, ns, t) : HORA_OK;
    case HORA_TIMELINE_STARTED: return operate(w, ns, t, e);
    case HORA_TIMELINE_ACTIVITY: return activity(w, ns, t, e);
    case HORA_TIMELINE_ENDED: return ended(w, ns, t, e);
    case HORA_TIMELINE_CYCLE:
    case HORA_TIMELINE_CLOCK: break;
    }
    return HORA_OK;
}

/* ---- The door ------------------------------------------------------------------------------- */

/* Process 0: who wrote this, and when time 0 was. */
static void put_head(hora_trace_writer_t *w, const hora_timeline_options_t *o) {
    struct timespec real;
    clock_gettime(CLOCK_REALTIME, &real);
    w->len = 0;
    put(w, "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": 0, \"args\": {");
    put(w, "\"name\": \"hora, rank ");
    put_number(w, (uint64_t)o->rank);
    put(w, "\", \"start_time_since_epoch_in_micros\": ");
    put_number(w, (uint64_t)real.tv_sec * 1000000u + (uint64_t)real.tv_nsec / 1000u);
    put(w, ", \"start_time_monotonic_in_micros\": ");
    put_micros(w, (int64_t)w->start);
    put(w, ", \"rank\": ");
    put_number(w, (uint64_t)o->rank);
    put(w, ", \"size\": ");
    put_number(w, (uint64_t)o->size);
    put(w, ", \"host\": ");
    put_string(w, o->host, strlen(o->host), 256);
    if (o->clock_known)
        put(w, ", \"clock_offset_in_micros\": 0, \"clock_error_in_micros\": 0");
    put(w, "}}");
}

hora_status_t hora_trace_writer_create(const hora_timeline_options_t *options, uint64_t now,
                                       hora_trace_writer_t **writer_p) {
    hora_trace_writer_t *w = calloc(1, sizeof(*w));
    hora_status_t        st;
    if (w == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "timeline %s", options->path);
    hora_names_init(&w->tensors);
    w->start = now;
    put_head(w, options);
    st = hora_trace_file_create(options->path, options->copy, w->text, w->len, &w->file);
    if (st == HORA_OK)
        st = sort_index(w, 0);
    if (st == HORA_OK)
        st = hora_trace_file_flush(w->file);
    if (st != HORA_OK) {
        hora_trace_file_close(w->file);
        free(w);
        return st;
    }
    *writer_p = w;
    return HORA_OK;
}

hora_status_t hora_trace_writer_add(hora_trace_writer_t *w, uint64_t ns,
                                    const hora_timeline_event_t *event) {
    tensor_t     *t;
    hora_status_t st;
    if (event->type == HORA_TIMELINE_CYCLE)
        return instant(w, ns, "CYCLE_START", 0);
    if (event->type == HORA_TIMELINE_CLOCK)
        return put_clock(w, ns, event->number, event->bytes);
    st = find(w, event, &t);
    if (st == HORA_OK && t == NULL)
        w->lost++;
    return st == HORA_OK && t != NULL ? add(w, ns, t, event) : st;
}

hora_status_t hora_trace_writer_lost(hora_trace_writer_t *w, uint64_t ns, uint64_t count) {
    w->lost += count;
    return instant(w, ns, "DROPPED_EVENTS", count);
}

hora_status_t hora_trace_writer_flush(hora_trace_writer_t *w) {
    return hora_trace_file_flush(w->file);
}

uint64_t hora_trace_writer_losses(const hora_trace_writer_t *w) {
    return w->lost;
}

hora_status_t hora_trace_writer_close(hora_trace_writer_t *w, uint64_t ns) {
    hora_status_t st = HORA_OK, closed;
    for (size_t i = 0; i < w->tensors.room; i++) {
        tensor_t *t = (tensor_t *)w->tensors.slots[i];
        if (t != NULL && st == HORA_OK)
            st = end_all(w, ns, t);
        free(t);
    }
    hora_names_destroy(&w->tensors);
    closed = hora_trace_file_close(w->file);
    free(w);
    return st == HORA_OK ? closed : st;
}
