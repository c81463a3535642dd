/*
 * Control messages (message.h). Pure code, any thread.
 *
 *     head      magic u32, version u16, type u16, length u32, items u32, acked u32
 *     FULL      1, kind, dtype, op u8; ndim u8, 0 u8, name_len u16; root i32; group_size u32;
 *               group_key u64; prescale, postscale f64; shape i64[ndim]; name
 *     CACHED    2, 0 u8; count u16; id u32[count]
 *     WAITED    3, 0 u8; name_len u16; waited_ms u32; name
 *     LEFT      4, 0 u8; 0 u16
 *     JOIN      5, 0 u8; 0 u16; resends u32
 *     PROGRESS  6, 0 u8; 0 u16; epoch u32; upto u64
 *     EXECUTE   16, 0 u8; count u16; count times: id u32, name_len u16, name
 *     ERROR     17, 0 u8; name_len u16; status i32; text_len u16; name; text
 *     STALL     18, 0 u8; name_len u16; text_len u16; name; text
 *     RESEND    19, 0 u8; 0 u16; rank u32; id u32
 *     SHUT_DOWN 20, 0 u8; text_len u16; text
 *     EXECUTE_SOME 21, 0 u8; count u16; divisor u32; count times: id u32, name_len u16, and, where
 *               that is not 0, name and signature: kind to shape as in FULL, its name_len 0
 *     JOINED    22, 0 u8; 0 u16; rank u32
 *     TUNE      23, algo u8; 0 u16; threshold u64; pack u64; alone u64; oneshot_limit u64
 *     FREEZE    24, 0 u8; 0 u16; epoch u32; threshold u64; from u32; count u32; id u32[count]
 *     ADVANCE   25, 0 u8; 0 u16; epoch u32; from u64; upto u64
 *     THAW      26, 0 u8; 0 u16; epoch u32
 */
#include "controller/message.h"

#include "util/bytes.h"

#define MAGIC     0x61726f68u /* "hora" */
#define COUNT_MAX 65535u
#define SIG_BYTES 39 /* without the shape */

/* ---- Writing -------------------------------------------------------------------------------- */

static void put_u8(hora_frame_writer_t *w, unsigned v) {
    w->buf[w->len++] = (uint8_t)v;
}

static void put_u16(hora_frame_writer_t *w, size_t v) {
    hora_put_u16(w->buf + w->len, (uint16_t)v);
    w->len += 2;
}

static void put_u32(hora_frame_writer_t *w, uint32_t v) {
    hora_put_u32(w->buf + w->len, v);
    w->len += 4;
}

static void put_u64(hora_frame_writer_t *w, uint64_t v) {
    hora_put_u64(w->buf + w->len, v);
    w->len += 8;
}

static void put_f64(hora_frame_writer_t *w, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof(bits));
    put_u64(w, bits);
}

static void put_bytes(hora_frame_writer_t *w, const char *text, size_t len) {
    memcpy(w->buf + w->len, text, len);
    w->len += len;
}

static bool begin_item(hora_frame_writer_t *w, hora_item_type_t type, size_t bytes) {
    if (bytes > HORA_FRAME_MAX - w->len)
        return false;
    w->items++;
    w->open = 0;
    put_u8(w, type);
    return true;
}

void hora_frame_begin(hora_frame_writer_t *w, uint8_t *buf, hora_frame_type_t type,
                      uint32_t acked) {
    *w = (hora_frame_writer_t){.buf = buf};
    put_u32(w, MAGIC);
    put_u16(w, HORA_FRAME_VERSION);
    put_u16(w, type);
    put_u64(w, 0); /* length and items: hora_frame_end */
    put_u32(w, acked);
}

size_t hora_frame_end(hora_frame_writer_t *w) {
    size_t len = w->len;
    w->len = 8;
    put_u32(w, (uint32_t)len);
    put_u32(w, w->items);
    w->len = len;
    return len;
}

static void put_signature(hora_frame_writer_t *w, const hora_signature_t *sig, size_t name_len) {
    put_u8(w, sig->kind);
    put_u8(w, sig->dtype);
    put_u8(w, sig->op);
    put_u8(w, sig->ndim);
    put_u8(w, sig->device);
    put_u16(w, name_len);
    put_u32(w, (uint32_t)sig->root);
    put_u32(w, sig->group_size);
    put_u64(w, sig->group_key);
    put_f64(w, sig->prescale);
    put_f64(w, sig->postscale);
    for (int i = 0; i < sig->ndim; i++)
        put_u64(w, (uint64_t)sig->shape[i]);
}

bool hora_frame_put_full(hora_frame_writer_t *w, const char *name, size_t name_len,
                         const hora_signature_t *sig) {
    if (!begin_item(w, HORA_ITEM_FULL, 1 + SIG_BYTES + (size_t)sig->ndim * 8 + name_len))
        return false;
    put_signature(w, sig, name_len);
    put_bytes(w, name, name_len);
    return true;
}

/* Ids one after the other share an item. */
bool hora_frame_put_cached(hora_frame_writer_t *w, uint32_t id) {
    uint16_t count = 0;
    if (w->open != 0)
        count = hora_get_u16(w->buf + w->open);
    if (w->open == 0 || count == COUNT_MAX) {
        if (!begin_item(w, HORA_ITEM_CACHED, 8))
            return false;
        put_u8(w, 0);
        w->open = w->len;
        put_u16(w, 0);
        count = 0;
    } else if (HORA_FRAME_MAX - w->len < 4) {
        return false;
    }
    put_u32(w, id);
    hora_put_u16(w->buf + w->open, (uint16_t)(count + 1));
    return true;
}

bool hora_frame_put_waited(hora_frame_writer_t *w, const char *name, size_t name_len,
                           uint32_t waited_ms) {
    if (!begin_item(w, HORA_ITEM_WAITED, 8 + name_len))
        return false;
    put_u8(w, 0);
    put_u16(w, name_len);
    put_u32(w, waited_ms);
    put_bytes(w, name, name_len);
    return true;
}

bool hora_frame_put_left(hora_frame_writer_t *w) {
    if (!begin_item(w, HORA_ITEM_LEFT, 4))
        return false;
    put_u8(w, 0);
    put_u16(w, 0);
    return true;
}

bool hora_frame_put_join(hora_frame_writer_t *w, uint32_t resends) {
    if (!begin_item(w, HORA_ITEM_JOIN, 8))
        return false;
    put_u8(w, 0);
    put_u16(w, 0);
    put_u32(w, resends);
    return true;
}

bool hora_frame_put_execute(hora_frame_writer_t *w, uint32_t nrefs, size_t bytes,
                            uint32_t divisor) {
    hora_item_type_t type = divisor > 0 ? HORA_ITEM_EXECUTE_SOME : HORA_ITEM_EXECUTE;
    if (nrefs > COUNT_MAX || bytes > HORA_FRAME_MAX ||
        !begin_item(w, type, (divisor > 0 ? 8 : 4) + bytes))
        return false;
    put_u8(w, 0);
    put_u16(w, nrefs);
    if (divisor > 0)
        put_u32(w, divisor);
    return true;
}

size_t hora_frame_ref_bytes(size_t name_len, const hora_signature_t *sig) {
    size_t bytes = 6 + name_len;
    return sig != NULL && name_len > 0 ? bytes + SIG_BYTES + (size_t)sig->ndim * 8 : bytes;
}

void hora_frame_put_ref(hora_frame_writer_t *w, uint32_t id, const char *name, size_t name_len,
                        const hora_signature_t *sig) {
    put_u32(w, id);
    put_u16(w, name != NULL ? name_len : 0);
    if (name == NULL)
        return;
    put_bytes(w, name, name_len);
    if (sig != NULL)
        put_signature(w, sig, 0);
}

/* An item that begins with the number of a frozen schedule. */
static bool begin_epoch(hora_frame_writer_t *w, hora_item_type_t type, size_t bytes,
                        uint32_t epoch) {
    if (!begin_item(w, type, 8 + bytes))
        return false;
    put_u8(w, 0);
    put_u16(w, 0);
    put_u32(w, epoch);
    return true;
}

bool hora_frame_put_progress(hora_frame_writer_t *w, uint32_t epoch, uint64_t upto) {
    if (!begin_epoch(w, HORA_ITEM_PROGRESS, 8, epoch))
        return false;
    put_u64(w, upto);
    return true;
}

bool hora_frame_put_freeze(hora_frame_writer_t *w, uint32_t epoch, uint64_t threshold,
                           uint32_t start, const uint32_t *ids, uint32_t n) {
    if (!begin_epoch(w, HORA_ITEM_FREEZE, 16 + (size_t)n * 4, epoch))
        return false;
    put_u64(w, threshold);
    put_u32(w, start);
    put_u32(w, n);
    for (uint32_t i = 0; i < n; i++)
        put_u32(w, ids[i]);
    return true;
}

bool hora_frame_put_advance(hora_frame_writer_t *w, uint32_t epoch, uint64_t from,
                            uint64_t upto) {
    if (!begin_epoch(w, HORA_ITEM_ADVANCE, 16, epoch))
        return false;
    put_u64(w, from);
    put_u64(w, upto);
    return true;
}

bool hora_frame_put_thaw(hora_frame_writer_t *w, uint32_t epoch) {
    return begin_epoch(w, HORA_ITEM_THAW, 0, epoch);
}

bool hora_frame_put_joined(hora_frame_writer_t *w, uint32_t last) {
    if (!begin_item(w, HORA_ITEM_JOINED, 8))
        return false;
    put_u8(w, 0);
    put_u16(w, 0);
    put_u32(w, last);
    return true;
}

static size_t text_length(const char *text) {
    return strnlen(text, HORA_TEXT_MAX);
}

bool hora_frame_put_error(hora_frame_writer_t *w, const char *name, size_t name_len,
                          hora_status_t status, const char *text) {
    size_t text_len = text_length(text);
    if (!begin_item(w, HORA_ITEM_ERROR, 10 + name_len + text_len))
        return false;
    put_u8(w, 0);
    put_u16(w, name_len);
    put_u32(w, (uint32_t)status);
    put_u16(w, text_len);
    put_bytes(w, name, name_len);
    put_bytes(w, text, text_len);
    return true;
}

bool hora_frame_put_stall(hora_frame_writer_t *w, const char *name, size_t name_len,
                          const char *text) {
    size_t text_len = text_length(text);
    if (!begin_item(w, HORA_ITEM_STALL, 6 + name_len + text_len))
        return false;
    put_u8(w, 0);
    put_u16(w, name_len);
    put_u16(w, text_len);
    put_bytes(w, name, name_len);
    put_bytes(w, text, text_len);
    return true;
}

bool hora_frame_put_resend(hora_frame_writer_t *w, uint32_t rank, uint32_t id) {
    if (!begin_item(w, HORA_ITEM_RESEND, 12))
        return false;
    put_u8(w, 0);
    put_u16(w, 0);
    put_u32(w, rank);
    put_u32(w, id);
    return true;
}

bool hora_frame_put_tune(hora_frame_writer_t *w, const hora_tuning_t *tuning) {
    if (!begin_item(w, HORA_ITEM_TUNE, 36))
        return false;
    put_u8(w, tuning->algo);
    put_u16(w, 0);
    put_u64(w, tuning->fusion_threshold);
    put_u64(w, tuning->pack);
    put_u64(w, tuning->alone);
    put_u64(w, tuning->oneshot_limit);
    return true;
}

bool hora_frame_put_shut_down(hora_frame_writer_t *w, const char *text) {
    size_t text_len = text_length(text);
    if (!begin_item(w, HORA_ITEM_SHUT_DOWN, 4 + text_len))
        return false;
    put_u8(w, 0);
    put_u16(w, text_len);
    put_bytes(w, text, text_len);
    return true;
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* The next `len` bytes, or NULL if the frame has fewer. */
static const uint8_t *take(hora_frame_reader_t *r, size_t len) {
    const uint8_t *p = r->buf + r->off;
    if (len > r->limit - r->off)
        return NULL;
    r->off += len;
    return p;
}

static double get_f64(const uint8_t *p) {
    uint64_t bits = hora_get_u64(p);
    double   v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

static bool take_name(hora_frame_reader_t *r, size_t len, hora_item_t *item) {
    const uint8_t *p = take(r, len);
    if (p == NULL || len == 0 || len > HORA_NAME_MAX || memchr(p, '\0', len) != NULL)
        return false;
    item->name = (const char *)p;
    item->name_len = len;
    return true;
}

/* The same, or the name of joins. */
static bool take_waiting_name(hora_frame_reader_t *r, size_t len, hora_item_t *item) {
    if (len != HORA_JOIN_NAME_LEN || r->limit - r->off < len ||
        memcmp(r->buf + r->off, HORA_JOIN_NAME, len) != 0)
        return take_name(r, len, item);
    item->name = (const char *)take(r, len);
    item->name_len = len;
    return true;
}

static bool take_text(hora_frame_reader_t *r, size_t len, hora_item_t *item) {
    const uint8_t *p = take(r, len);
    if (p == NULL || len > HORA_TEXT_MAX || memchr(p, '\0', len) != NULL)
        return false;
    item->text = (const char *)p;
    item->text_len = len;
    return true;
}

bool hora_frame_open(hora_frame_reader_t *r, const void *buf, size_t len, hora_frame_type_t type) {
    const uint8_t *p = buf;
    if (len < HORA_FRAME_HEAD || len > HORA_FRAME_MAX || hora_get_u32(p) != MAGIC ||
        hora_get_u16(p + 4) != HORA_FRAME_VERSION || hora_get_u16(p + 6) != (unsigned)type ||
        hora_get_u32(p + 8) != len)
        return false;
    *r = (hora_frame_reader_t){p, HORA_FRAME_HEAD, len, hora_get_u32(p + 12), hora_get_u32(p + 16),
                               type};
    return true;
}

static bool read_signature(hora_frame_reader_t *r, int size, hora_signature_t *sig,
                           size_t *name_len_p) {
    const uint8_t *p = take(r, SIG_BYTES);
    if (p == NULL || p[3] > HORA_MAX_DIMS)
        return false;
    sig->kind = p[0];
    sig->dtype = p[1];
    sig->op = p[2];
    sig->ndim = p[3];
    sig->device = p[4];
    *name_len_p = hora_get_u16(p + 5);
    sig->root = (int32_t)hora_get_u32(p + 7);
    sig->group_size = hora_get_u32(p + 11);
    sig->group_key = hora_get_u64(p + 15);
    sig->prescale = get_f64(p + 23);
    sig->postscale = get_f64(p + 31);
    for (int i = 0; i < sig->ndim; i++) {
        if ((p = take(r, 8)) == NULL)
            return false;
        sig->shape[i] = (int64_t)hora_get_u64(p);
    }
    return hora_signature_is_sane(sig, size);
}

static bool read_full(hora_frame_reader_t *r, int size, hora_item_t *item) {
    size_t name_len;
    return read_signature(r, size, &item->sig, &name_len) && take_name(r, name_len, item);
}

static bool read_cached(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 3);
    if (p == NULL || p[0] != 0)
        return false;
    item->count = hora_get_u16(p + 1);
    item->refs = take(r, (size_t)item->count * 4);
    return item->count > 0 && item->refs != NULL;
}

static bool read_waited(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 7);
    if (p == NULL || p[0] != 0)
        return false;
    item->waited_ms = hora_get_u32(p + 3);
    return take_waiting_name(r, hora_get_u16(p + 1), item);
}

static bool read_left(hora_frame_reader_t *r) {
    const uint8_t *p = take(r, 3);
    return p != NULL && p[0] == 0 && hora_get_u16(p + 1) == 0;
}

static bool read_join(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 7);
    if (p == NULL || p[0] != 0 || hora_get_u16(p + 1) != 0)
        return false;
    item->count = hora_get_u32(p + 3);
    return true;
}

/* After its name, where some ranks have joined. */
static bool read_ref_signature(hora_frame_reader_t *r, int size, hora_signature_t *sig) {
    size_t name_len;
    return read_signature(r, size, sig, &name_len) && name_len == 0;
}

static bool read_refs(hora_frame_reader_t *r, int size, hora_item_t *item) {
    hora_item_t    ignored;
    const uint8_t *p;
    item->refs = r->buf + r->off;
    for (uint32_t i = 0; i < item->count; i++) {
        if ((p = take(r, 6)) == NULL)
            return false;
        if (hora_get_u16(p + 4) > 0 ? !take_name(r, hora_get_u16(p + 4), &ignored)
                                    : hora_get_u32(p) == 0)
            return false;
        if (hora_get_u16(p + 4) > 0 && item->divisor > 0 &&
            !read_ref_signature(r, size, &ignored.sig))
            return false;
    }
    return item->count > 0;
}

static bool read_execute(hora_frame_reader_t *r, int size, hora_item_t *item) {
    const uint8_t *p = take(r, 3);
    if (p == NULL || p[0] != 0)
        return false;
    item->count = hora_get_u16(p + 1);
    item->divisor = 0;
    return read_refs(r, size, item);
}

static bool read_execute_some(hora_frame_reader_t *r, int size, hora_item_t *item) {
    const uint8_t *p = take(r, 7);
    if (p == NULL || p[0] != 0)
        return false;
    item->count = hora_get_u16(p + 1);
    item->divisor = hora_get_u32(p + 3);
    return item->divisor > 0 && item->divisor <= (uint32_t)size && read_refs(r, size, item);
}

static bool read_epoch(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 7);
    if (p == NULL || p[0] != 0 || hora_get_u16(p + 1) != 0)
        return false;
    item->epoch = hora_get_u32(p + 3);
    return true;
}

static bool read_progress(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p;
    if (!read_epoch(r, item) || (p = take(r, 8)) == NULL)
        return false;
    item->upto = hora_get_u64(p);
    return true;
}

static bool read_freeze(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p;
    if (!read_epoch(r, item) || (p = take(r, 16)) == NULL)
        return false;
    item->threshold = hora_get_u64(p);
    item->from = hora_get_u32(p + 8);
    item->count = hora_get_u32(p + 12);
    item->refs = item->count <= HORA_FRAME_MAX ? take(r, (size_t)item->count * 4) : NULL;
    return item->refs != NULL && item->from < item->count;
}

static bool read_advance(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p;
    if (!read_epoch(r, item) || (p = take(r, 16)) == NULL)
        return false;
    item->from = hora_get_u64(p);
    item->upto = hora_get_u64(p + 8);
    return item->from < item->upto;
}

static bool read_joined(hora_frame_reader_t *r, int size, hora_item_t *item) {
    const uint8_t *p = take(r, 7);
    if (p == NULL || p[0] != 0 || hora_get_u16(p + 1) != 0)
        return false;
    item->rank = hora_get_u32(p + 3);
    return item->rank < (uint32_t)size;
}

static bool read_error(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 9);
    if (p == NULL || p[0] != 0)
        return false;
    item->status = (hora_status_t)(int32_t)hora_get_u32(p + 3);
    return item->status < 0 && item->status >= HORA_ERR_INTERNAL &&
           take_waiting_name(r, hora_get_u16(p + 1), item) && take_text(r, hora_get_u16(p + 7), item);
}

static bool read_stall(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 5);
    return p != NULL && p[0] == 0 && take_waiting_name(r, hora_get_u16(p + 1), item) &&
           take_text(r, hora_get_u16(p + 3), item);
}

static bool read_resend(hora_frame_reader_t *r, int size, hora_item_t *item) {
    const uint8_t *p = take(r, 11);
    if (p == NULL || p[0] != 0 || hora_get_u16(p + 1) != 0)
        return false;
    item->rank = hora_get_u32(p + 3);
    item->id = hora_get_u32(p + 7);
    return item->rank < (uint32_t)size;
}

static bool read_tune(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 35);
    if (p == NULL || hora_get_u16(p + 1) != 0)
        return false;
    item->tuning = (hora_tuning_t){.algo = p[0],
                                   .fusion_threshold = hora_get_u64(p + 3),
                                   .pack = hora_get_u64(p + 11),
                                   .alone = hora_get_u64(p + 19),
                                   .oneshot_limit = hora_get_u64(p + 27)};
    return hora_tuning_is_sane(&item->tuning);
}

static bool read_shut_down(hora_frame_reader_t *r, hora_item_t *item) {
    const uint8_t *p = take(r, 3);
    return p != NULL && p[0] == 0 && take_text(r, hora_get_u16(p + 1), item);
}

static bool read_item(hora_frame_reader_t *r, int size, hora_item_t *item) {
    bool requests = r->type == HORA_FRAME_REQUESTS;
    switch (item->type) {
    case HORA_ITEM_FULL: return requests && read_full(r, size, item);
    case HORA_ITEM_CACHED: return requests && read_cached(r, item);
    case HORA_ITEM_WAITED: return requests && read_waited(r, item);
    case HORA_ITEM_LEFT: return requests && read_left(r);
    case HORA_ITEM_JOIN: return requests && read_join(r, item);
    case HORA_ITEM_EXECUTE: return !requests && read_execute(r, size, item);
    case HORA_ITEM_EXECUTE_SOME: return !requests && read_execute_some(r, size, item);
    case HORA_ITEM_JOINED: return !requests && read_joined(r, size, item);
    case HORA_ITEM_PROGRESS: return requests && read_progress(r, item);
    case HORA_ITEM_FREEZE: return !requests && read_freeze(r, item);
    case HORA_ITEM_ADVANCE: return !requests && read_advance(r, item);
    case HORA_ITEM_THAW: return !requests && read_epoch(r, item);
    case HORA_ITEM_ERROR: return !requests && read_error(r, item);
    case HORA_ITEM_STALL: return !requests && read_stall(r, item);
    case HORA_ITEM_RESEND: return !requests && read_resend(r, size, item);
    case HORA_ITEM_SHUT_DOWN: return !requests && read_shut_down(r, item);
    case HORA_ITEM_TUNE: return !requests && read_tune(r, item);
    }
    return false;
}

hora_status_t hora_frame_next(hora_frame_reader_t *r, int size, hora_item_t *item_p) {
    const uint8_t *type;
    if (r->items == 0)
        return r->off == r->limit ? HORA_IN_PROGRESS : HORA_ERR_PROTOCOL;
    type = take(r, 1);
    if (type == NULL)
        return HORA_ERR_PROTOCOL;
    r->items--;
    item_p->type = (hora_item_type_t)*type;
    return read_item(r, size, item_p) ? HORA_OK : HORA_ERR_PROTOCOL;
}

uint32_t hora_item_id(const hora_item_t *item, uint32_t i) {
    return hora_get_u32(item->refs + (size_t)i * 4);
}

/* All of it was checked when the item was read. */
bool hora_item_next_ref(hora_item_t *item, hora_item_ref_t *ref_p) {
    if (item->count == 0)
        return false;
    ref_p->id = hora_get_u32(item->refs);
    ref_p->name_len = hora_get_u16(item->refs + 4);
    ref_p->name = (const char *)item->refs + 6;
    item->refs += 6 + ref_p->name_len;
    item->count--;
    if (item->divisor > 0 && ref_p->name_len > 0) {
        hora_frame_reader_t r = {.buf = item->refs, .limit = HORA_FRAME_MAX};
        read_ref_signature(&r, INT32_MAX, &ref_p->sig);
        item->refs += r.off;
    }
    return true;
}
