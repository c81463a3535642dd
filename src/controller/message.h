/*
 * Control messages: how requests and responses are laid out as bytes. Pure code over (buf, len).
 *
 * A frame is at most HORA_FRAME_MAX bytes, little-endian and self-contained: a head, then items.
 * Requests go from each rank to the coordinator, responses from the coordinator to all ranks.
 * Nothing that is read is believed: every length is checked against what is left of the frame, and
 * every value against its range. Texts in a decoded item point into the frame.
 */
#ifndef HORA_CONTROLLER_MESSAGE_H
#define HORA_CONTROLLER_MESSAGE_H

#include "controller/signature.h"
#include "controller/tuning.h"

#include <stddef.h>
#include <stdint.h>

#define HORA_FRAME_MAX     65536
#define HORA_FRAME_HEAD    20
#define HORA_FRAME_VERSION 1
#define HORA_NAME_MAX      1024 /* bytes of a tensor's name */
#define HORA_TEXT_MAX      1024 /* bytes of an error text in a message */
/* What a join is called, whatever its task's name. The final '\0' is a part of it, so that no
 * task's name equals it; FULL and EXECUTE do not carry it. */
#define HORA_JOIN_NAME     "of all ranks"
#define HORA_JOIN_NAME_LEN sizeof(HORA_JOIN_NAME)

typedef enum hora_frame_type {
    HORA_FRAME_REQUESTS = 1,
    HORA_FRAME_RESPONSES = 2
} hora_frame_type_t;

typedef enum hora_item_type {
    /* Requests. */
    HORA_ITEM_FULL = 1,   /* a task is ready here; name and signature */
    HORA_ITEM_CACHED = 2, /* tasks are ready here, with the signatures that these ids stand for */
    HORA_ITEM_WAITED = 3, /* name has waited for `waited_ms` here; what about it? */
    HORA_ITEM_LEFT = 4,   /* this rank has freed its engine */
    HORA_ITEM_JOIN = 5,   /* this rank has joined; it has processed `count` RESEND items */
    HORA_ITEM_PROGRESS = 6, /* everything is ready here up to position `upto` of the frozen schedule
                               number `epoch`; the first one answers FREEZE */
    /* Responses. */
    HORA_ITEM_EXECUTE = 16, /* execute these tasks now, as one */
    HORA_ITEM_ERROR = 17,   /* the task of that name has failed on every rank */
    HORA_ITEM_STALL = 18,   /* whoever has that task waiting logs the text */
    HORA_ITEM_RESEND = 19,  /* rank: `id` is no longer known; send the full request */
    HORA_ITEM_SHUT_DOWN = 20, /* the coordinator has freed its engine */
    HORA_ITEM_EXECUTE_SOME = 21, /* the same as EXECUTE where ranks that have joined bring nothing:
                                    averages are divided by `divisor`; references by name have a
                                    signature */
    HORA_ITEM_JOINED = 22,       /* every rank has joined, `rank` as the last */
    HORA_ITEM_TUNE = 23,         /* from here on, execute with these values */
    HORA_ITEM_FREEZE = 24,  /* from now on these ids are executed again and again, in this order */
    HORA_ITEM_ADVANCE = 25, /* execute the frozen tasks at positions from `from` to `upto` */
    HORA_ITEM_THAW = 26     /* no longer */
} hora_item_type_t;

#define HORA_FREEZE_DECLINED UINT64_MAX /* PROGRESS: this rank goes on reporting one by one */

/* ---- Writing -------------------------------------------------------------------------------- */

typedef struct hora_frame_writer {
    uint8_t *buf; /* HORA_FRAME_MAX bytes of the caller */
    size_t   len;
    uint32_t items;
    size_t   open; /* offset of a CACHED or EXECUTE item that still grows; 0: none */
} hora_frame_writer_t;

/* acked: number of ERROR items that this rank has processed so far (requests; else 0). */
void hora_frame_begin(hora_frame_writer_t *w, uint8_t *buf, hora_frame_type_t type, uint32_t acked);
/* Fills in the head; returns the frame's length. */
size_t hora_frame_end(hora_frame_writer_t *w);

/* Each returns false, and writes nothing, when the item does not fit into the frame. */
bool hora_frame_put_full(hora_frame_writer_t *w, const char *name, size_t name_len,
                         const hora_signature_t *sig);
bool hora_frame_put_cached(hora_frame_writer_t *w, uint32_t id);
bool hora_frame_put_waited(hora_frame_writer_t *w, const char *name, size_t name_len,
                           uint32_t waited_ms);
bool hora_frame_put_left(hora_frame_writer_t *w);
bool hora_frame_put_join(hora_frame_writer_t *w, uint32_t resends);
/* Opens an item for nrefs references that take `bytes` (hora_frame_ref_bytes) altogether. divisor:
 * 0 where every rank has the tasks, and then no reference has a signature. */
bool hora_frame_put_execute(hora_frame_writer_t *w, uint32_t nrefs, size_t bytes, uint32_t divisor);
/* name NULL: the ranks know the id. With a name: from now on id stands for it, and for sig where
 * some ranks have no such task (else NULL); id 0: no id. */
void hora_frame_put_ref(hora_frame_writer_t *w, uint32_t id, const char *name, size_t name_len,
                        const hora_signature_t *sig);
size_t hora_frame_ref_bytes(size_t name_len, const hora_signature_t *sig);
bool hora_frame_put_progress(hora_frame_writer_t *w, uint32_t epoch, uint64_t upto);
bool hora_frame_put_freeze(hora_frame_writer_t *w, uint32_t epoch, uint64_t threshold,
                           uint32_t start, const uint32_t *ids, uint32_t n);
bool hora_frame_put_advance(hora_frame_writer_t *w, uint32_t epoch, uint64_t from, uint64_t upto);
bool hora_frame_put_thaw(hora_frame_writer_t *w, uint32_t epoch);
bool hora_frame_put_joined(hora_frame_writer_t *w, uint32_t last);
bool hora_frame_put_error(hora_frame_writer_t *w, const char *name, size_t name_len,
                          hora_status_t status, const char *text);
bool hora_frame_put_stall(hora_frame_writer_t *w, const char *name, size_t name_len,
                          const char *text);
bool hora_frame_put_resend(hora_frame_writer_t *w, uint32_t rank, uint32_t id);
bool hora_frame_put_tune(hora_frame_writer_t *w, const hora_tuning_t *tuning);
bool hora_frame_put_shut_down(hora_frame_writer_t *w, const char *text);

/* ---- Reading -------------------------------------------------------------------------------- */

typedef struct hora_frame_reader {
    const uint8_t *buf;
    size_t         off, limit;
    uint32_t       items; /* still to come */
    uint32_t       acked;
    hora_frame_type_t type;
} hora_frame_reader_t;

typedef struct hora_item {
    hora_item_type_t type;
    const char      *name; /* not ended by '\0' */
    size_t           name_len;
    const char      *text; /* likewise */
    size_t           text_len;
    hora_signature_t sig;
    hora_status_t    status;
    uint32_t         waited_ms, rank, id;
    uint32_t         epoch;
    uint64_t         from, upto, threshold; /* FREEZE: from is the position that comes next */
    const uint8_t   *refs; /* CACHED, FREEZE: count ids. EXECUTE: count references, checked */
    uint32_t         count;
    hora_tuning_t    tuning;
    uint32_t         divisor; /* EXECUTE_SOME: what an average is divided by; EXECUTE: 0 */
} hora_item_t;

/* false: not a frame of this type and version, or not of this length. */
bool hora_frame_open(hora_frame_reader_t *r, const void *buf, size_t len, hora_frame_type_t type);
/* Reads the next item. HORA_OK; HORA_IN_PROGRESS: there are no more and the frame ends properly;
 * HORA_ERR_PROTOCOL, without a text. size: ranks, for the ranges. */
hora_status_t hora_frame_next(hora_frame_reader_t *r, int size, hora_item_t *item_p);
/* Id number i of a CACHED or FREEZE item. */
uint32_t hora_item_id(const hora_item_t *item, uint32_t i);
/* A reference of an EXECUTE or EXECUTE_SOME item. */
typedef struct hora_item_ref {
    uint32_t    id;
    const char *name;     /* not ended by '\0' */
    size_t      name_len; /* 0: known by its id */
    hora_signature_t sig; /* EXECUTE_SOME, with a name */
} hora_item_ref_t;
/* Takes the next one; false: no more. */
bool hora_item_next_ref(hora_item_t *item, hora_item_ref_t *ref_p);

#endif
