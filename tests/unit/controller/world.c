/*
 * Simulated ranks (world.h): a second, simple telling of what a rank does with its tensors.
 */
#include "world.h"

#include "controller/fuse.h"
#include "util/names.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *host(const void *arg, int rank) {
    (void)arg;
    return rank % 2 ? "odd" : "even";
}

int  world_divisor = -1;
bool world_freezes;
uint64_t world_join_limit;

world_t *world_new(int size, size_t threshold, size_t capacity) {
    return world_new_active(size, threshold, capacity, false);
}

world_t *world_new_active(int size, size_t threshold, size_t capacity, bool average_active) {
    world_t                   *w = calloc(1, sizeof(*w));
    hora_coordinator_options_t options = {.size = size,
                                          .fusion_threshold = threshold,
                                          .cache_capacity = capacity,
                                          .stall_check_ns = 1000000000,
                                          .stall_limit_ns = 5000000000,
                                          .join_limit_ns = world_join_limit,
                                          .freeze = world_freezes,
                                          .average_active = average_active,
                                          .host = host};
    assert_int_equal(hora_coordinator_create(&options, &w->coordinator), HORA_OK);
    w->size = size;
    w->now = 1000000000;
    w->ranks = calloc((size_t)size, sizeof(*w->ranks));
    for (int r = 0; r < size; r++) {
        w->ranks[r].to.tail = &w->ranks[r].to.first;
        w->ranks[r].from.tail = &w->ranks[r].from.first;
    }
    return w;
}

static void channel_free(channel_t *ch) {
    for (frame_t *f = ch->first, *next; f != NULL; f = next) {
        next = f->next;
        free(f);
    }
}

void world_free(world_t *w) {
    hora_coordinator_destroy(w->coordinator);
    for (int r = 0; r < w->size; r++) {
        channel_free(&w->ranks[r].to);
        channel_free(&w->ranks[r].from);
        free(w->ranks[r].order);
    }
    free(w->ranks);
    free(w);
}

hora_signature_t allreduce_of(int64_t count) {
    hora_signature_t sig = {.kind = HORA_TASK_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                            .ndim = 1, .prescale = 1, .postscale = 1, .group_size = 1,
                            .shape = {count}};
    return sig;
}

/* ---- Frames -------------------------------------------------------------------------------- */

static void push(channel_t *ch, const uint8_t *buf, size_t len) {
    frame_t *f = malloc(sizeof(*f) + len);
    f->next = NULL;
    f->len = len;
    memcpy(f->buf, buf, len);
    *ch->tail = f;
    ch->tail = &f->next;
}

static frame_t *pop(channel_t *ch) {
    frame_t *f = ch->first;
    if (f == NULL)
        return NULL;
    ch->first = f->next;
    if (ch->first == NULL)
        ch->tail = &ch->first;
    return f;
}

static void note_failure(tensor_t *t, hora_status_t status, const char *text, size_t len) {
    t->status = status;
    snprintf(t->text, sizeof(t->text), "%.*s", (int)len, text);
    t->failed++;
}

void rank_enqueue(world_t *w, int rank, int tensor, const hora_signature_t *sig) {
    rank_t   *r = &w->ranks[rank];
    tensor_t *t = &r->tensors[tensor];
    assert_false(t->queued || t->sent);
    t->sig = *sig;
    if (t->late) { /* status and text are those that came before */
        t->late = false;
        t->failed++;
        return;
    }
    t->queued = true;
    r->queue[r->nqueue++] = tensor;
}

void rank_join(world_t *w, int rank) {
    rank_t *r = &w->ranks[rank];
    assert_false(r->joined);
    for (int i = 0; i < TENSORS; i++)
        r->tensors[i].late = false;
    r->queue[r->nqueue++] = JOIN;
    r->joined = true;
}

static bool put(hora_frame_writer_t *fw, tensor_t *t, int tensor) {
    char name[16];
    int  len = snprintf(name, sizeof(name), "t%d", tensor);
    if (t->sent_id != 0)
        return hora_frame_put_cached(fw, t->sent_id);
    return hora_frame_put_full(fw, name, (size_t)len, &t->sig);
}

/* ---- The frozen schedule ------------------------------------------------------------------- */

static int by_id(const rank_t *r, uint32_t id) {
    for (int i = 0; i < TENSORS; i++)
        if (r->tensors[i].id == id)
            return i;
    fail_msg("an id that the rank does not know");
    return -1;
}

static int at_position(const rank_t *r, uint64_t p) {
    return by_id(r, r->frozen.ids[p % (uint64_t)r->frozen.n]);
}

static void send_progress(rank_t *r) {
    static uint8_t      buf[HORA_FRAME_MAX];
    hora_frame_writer_t fw;
    hora_frame_begin(&fw, buf, HORA_FRAME_REQUESTS, r->errors_seen);
    assert_true(hora_frame_put_progress(&fw, r->frozen.epoch, r->frozen.reported));
    r->bytes_sent += hora_frame_end(&fw);
    push(&r->from, buf, fw.len);
}

/* Is what is queued just what comes next, in any order? */
static bool sends_by_position(rank_t *r) {
    int n = 0;
    for (int i = 0; i < r->nqueue; i++) {
        if (r->queue[i] == JOIN)
            return false;
        n += r->tensors[r->queue[i]].queued;
    }
    if (n > r->frozen.n)
        return false;
    for (int i = 0; i < n; i++) {
        tensor_t *t = &r->tensors[at_position(r, r->frozen.reported + (uint64_t)i)];
        if (!t->queued || !hora_signature_equal(&t->id_sig, &t->sig))
            return false;
    }
    for (int i = 0; i < n; i++) {
        tensor_t *t = &r->tensors[at_position(r, r->frozen.reported++)];
        t->queued = false;
        t->sent = true;
        t->sent_id = t->id;
    }
    r->nqueue = 0;
    return true;
}

static void begin_frozen(rank_t *r, const hora_item_t *item) {
    frozen_t *f = &r->frozen;
    uint32_t  sent = 0;
    f->n = (int)item->count;
    f->epoch = item->epoch;
    f->threshold = item->threshold;
    f->freezes++;
    for (int i = 0; i < f->n; i++) {
        f->ids[i] = hora_item_id(item, (uint32_t)i);
        sent += r->tensors[by_id(r, f->ids[i])].sent;
    }
    f->reported = item->from;
    while (f->reported < item->from + item->count) {
        tensor_t *t = &r->tensors[at_position(r, f->reported)];
        if (!t->sent || !hora_signature_equal(&t->id_sig, &t->sig))
            break;
        f->reported++;
    }
    f->reports = f->reported == item->from + sent && !r->joined;
    if (!f->reports) {
        f->reported = HORA_FREEZE_DECLINED;
        f->declines++;
    }
    send_progress(r);
}

static void note_order(rank_t *r, int tensor);

/* Batches by the same rule as the coordinator's. */
static void advance(rank_t *r, const hora_item_t *item, int size) {
    int          batch_of[TENSORS], nbatches = 0, n = (int)(item->upto - item->from);
    hora_fuser_t fuser;
    assert_int_equal(item->epoch, r->frozen.epoch);
    assert_true(n <= r->frozen.n);
    hora_fuser_init(&fuser, r->frozen.threshold);
    for (int i = 0; i < n; i++) {
        tensor_t          *t = &r->tensors[at_position(r, item->from + (uint64_t)i)];
        hora_fuse_batch_t *batch;
        bool               is_new;
        assert_true(t->sent);
        batch = hora_fuser_add(&fuser, &t->sig, (size_t)t->sig.shape[0] *
                               hora_dtype_size((hora_dtype_t)t->sig.dtype), 6, (uint32_t)size,
                               &is_new);
        batch_of[i] = is_new ? nbatches++ : (int)batch->number;
        if (batch != NULL)
            batch->number = (uint32_t)batch_of[i];
    }
    for (int b = 0; b < nbatches; b++) {
        for (int i = 0; i < n; i++) {
            int t = at_position(r, item->from + (uint64_t)i);
            if (batch_of[i] != b)
                continue;
            r->tensors[t].sent = false;
            r->tensors[t].executed++;
            note_order(r, t);
        }
        note_order(r, -1);
    }
    r->frozen.advances++;
}

void rank_send(world_t *w, int rank, int most) {
    static uint8_t buf[HORA_FRAME_MAX];
    rank_t        *r = &w->ranks[rank];
    if (r->nqueue > 0 && r->frozen.reports && sends_by_position(r))
        send_progress(r);
    else if (r->nqueue > 0)
        r->frozen.reports = false;
    for (int i = 0; i < r->nqueue;) {
        hora_frame_writer_t fw;
        int                 n = 0;
        hora_frame_begin(&fw, buf, HORA_FRAME_REQUESTS, r->errors_seen);
        for (; i < r->nqueue && (most == 0 || n < most); i++, n++) {
            tensor_t *t;
            if (r->queue[i] == JOIN) {
                if (!hora_frame_put_join(&fw, r->resends_seen))
                    break;
                continue;
            }
            t = &r->tensors[r->queue[i]];
            if (!t->queued)
                continue; /* it has failed in the queue */
            t->sent_id = t->id != 0 && hora_signature_equal(&t->id_sig, &t->sig) ? t->id : 0;
            if (!put(&fw, t, r->queue[i]))
                break;
            t->queued = false;
            t->sent = true;
        }
        r->bytes_sent += hora_frame_end(&fw);
        push(&r->from, buf, fw.len);
    }
    r->nqueue = 0;
}

bool rank_feed(world_t *w, int rank) {
    frame_t *f = pop(&w->ranks[rank].from);
    if (f == NULL)
        return false;
    if (hora_coordinator_feed(w->coordinator, rank, f->buf, f->len, w->now) != HORA_OK)
        fail_msg("%s", hora_last_error());
    free(f);
    return true;
}

int world_speak(world_t *w) {
    static uint8_t buf[HORA_FRAME_MAX];
    size_t         len;
    int            frames = 0;
    for (; (len = hora_coordinator_next_frame(w->coordinator, buf)) > 0; frames++)
        for (int r = 0; r < w->size; r++)
            push(&w->ranks[r].to, buf, len);
    assert_false(hora_coordinator_has_frame(w->coordinator));
    return frames;
}

/* ---- Responses ----------------------------------------------------------------------------- */

static void note_order(rank_t *r, int tensor) {
    if (r->norder == r->order_room) {
        r->order_room = r->order_room ? 2 * r->order_room : 64;
        r->order = realloc(r->order, r->order_room * sizeof(*r->order));
    }
    r->order[r->norder++] = tensor;
}

static int number_of(const char *name, size_t len) {
    char text[16];
    snprintf(text, sizeof(text), "%.*s", (int)len, name);
    assert_int_equal(text[0], 't');
    return atoi(text + 1);
}

static void learn(rank_t *r, int tensor, uint32_t id, const hora_signature_t *sig) {
    for (int i = 0; id != 0 && i < TENSORS; i++)
        if (r->tensors[i].id != 0 && (r->tensors[i].id & 0xffff) == (id & 0xffff))
            r->tensors[i].id = 0;
    r->tensors[tensor].id = id;
    r->tensors[tensor].id_sig = *sig;
}

static void execute(rank_t *r, hora_item_t *item) {
    hora_item_ref_t ref;
    while (hora_item_next_ref(item, &ref)) {
        int       i = ref.name_len > 0 ? number_of(ref.name, ref.name_len) : by_id(r, ref.id);
        tensor_t *t = &r->tensors[i];
        assert_true(t->sent || (r->joined && item->divisor > 0));
        if (ref.name_len > 0)
            learn(r, i, ref.id, t->sent ? &t->sig : &ref.sig);
        if (t->sent)
            t->executed++;
        else
            t->ghosts++;
        t->sent = false;
        note_order(r, i);
    }
    note_order(r, -1);
}

static bool is_of_join(const hora_item_t *item) {
    return item->name_len == HORA_JOIN_NAME_LEN &&
           memcmp(item->name, HORA_JOIN_NAME, item->name_len) == 0;
}

static void take_error(rank_t *r, const hora_item_t *item) {
    tensor_t *t;
    r->errors_seen++;
    if (is_of_join(item)) {
        r->join_failed++;
        r->joined = false;
        return;
    }
    t = &r->tensors[number_of(item->name, item->name_len)];
    t->id = 0;
    note_failure(t, item->status, item->text, item->text_len);
    if (!t->queued && !t->sent) {
        t->failed--; /* counted when it is enqueued */
        t->late = !r->joined;
    }
    t->queued = t->sent = false;
}

static void resend(world_t *w, int rank, uint32_t id) {
    static uint8_t buf[HORA_FRAME_MAX];
    rank_t        *r = &w->ranks[rank];
    hora_frame_writer_t fw;
    r->resends_seen++;
    hora_frame_begin(&fw, buf, HORA_FRAME_REQUESTS, r->errors_seen);
    for (int i = 0; i < TENSORS; i++) {
        if (!r->tensors[i].sent || r->tensors[i].sent_id != id)
            continue;
        r->tensors[i].sent_id = 0;
        put(&fw, &r->tensors[i], i);
        r->resent++;
    }
    if (r->joined && (r->nqueue == 0 || r->queue[r->nqueue - 1] != JOIN))
        hora_frame_put_join(&fw, r->resends_seen);
    push(&r->from, buf, hora_frame_end(&fw));
}

static void end_join(rank_t *r, int last) {
    assert_true(r->joined);
    r->joined = false;
    r->joins++;
    r->last = last;
    note_order(r, -2);
}

bool rank_listen(world_t *w, int rank) {
    rank_t             *r = &w->ranks[rank];
    frame_t            *f = pop(&r->to);
    hora_frame_reader_t reader;
    hora_item_t         item;
    if (f == NULL)
        return false;
    assert_true(hora_frame_open(&reader, f->buf, f->len, HORA_FRAME_RESPONSES));
    while (hora_frame_next(&reader, w->size, &item) == HORA_OK) {
        if (item.type == HORA_ITEM_EXECUTE_SOME)
            world_divisor = (int)item.divisor;
        if (item.type == HORA_ITEM_EXECUTE || item.type == HORA_ITEM_EXECUTE_SOME)
            execute(r, &item);
        else if (item.type == HORA_ITEM_FREEZE)
            begin_frozen(r, &item);
        else if (item.type == HORA_ITEM_ADVANCE)
            advance(r, &item, w->size);
        else if (item.type == HORA_ITEM_THAW)
            r->frozen.n = r->frozen.reports = 0;
        else if (item.type == HORA_ITEM_JOINED)
            end_join(r, (int)item.rank);
        else if (item.type == HORA_ITEM_ERROR)
            take_error(r, &item);
        else if (item.type == HORA_ITEM_STALL)
            r->stalls += is_of_join(&item) ? r->joined
                                           : r->tensors[number_of(item.name, item.name_len)].sent;
        else if (item.type == HORA_ITEM_RESEND && (int)item.rank == rank)
            resend(w, rank, item.id);
    }
    assert_int_equal(reader.off, reader.limit);
    free(f);
    return true;
}

void world_settle(world_t *w) {
    for (bool moved = true; moved;) {
        moved = false;
        for (int r = 0; r < w->size; r++) {
            if (w->ranks[r].nqueue > 0)
                rank_send(w, r, 0);
            while (rank_feed(w, r))
                moved = true;
        }
        moved |= world_speak(w) > 0;
        for (int r = 0; r < w->size; r++)
            while (rank_listen(w, r))
                moved = true;
    }
}

void world_check_order(const world_t *w) {
    for (int r = 1; r < w->size; r++) {
        assert_int_equal(w->ranks[r].norder, w->ranks[0].norder);
        if (w->ranks[0].norder > 0)
            assert_memory_equal(w->ranks[r].order, w->ranks[0].order,
                                w->ranks[0].norder * sizeof(int));
    }
}
