/* The codec: what is put comes back; every truncation and any noise is refused without harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "controller/message.h"

#define RANKS 4

static uint8_t frame[HORA_FRAME_MAX];

static hora_signature_t some_signature(void) {
    hora_signature_t sig = {.kind = HORA_TASK_REDUCESCATTER, .dtype = HORA_BFLOAT16,
                            .op = HORA_AVERAGE, .ndim = 3, .device = 1, .root = 0, .prescale = 0.25,
                            .postscale = -3.5, .group_key = 0x0123456789abcdef, .group_size = 7,
                            .shape = {3, 0, 1LL << 40}};
    return sig;
}

static size_t write_requests(void) {
    hora_frame_writer_t w;
    hora_signature_t    sig = some_signature();
    hora_frame_begin(&w, frame, HORA_FRAME_REQUESTS, 77);
    assert_true(hora_frame_put_cached(&w, 11));
    assert_true(hora_frame_put_cached(&w, 0xffffffff));
    assert_true(hora_frame_put_full(&w, "grad.w", 6, &sig));
    assert_true(hora_frame_put_cached(&w, 13));
    assert_true(hora_frame_put_waited(&w, "x", 1, 60000));
    assert_true(hora_frame_put_join(&w, 4));
    assert_true(hora_frame_put_progress(&w, 3, 1234567890123));
    assert_true(hora_frame_put_left(&w));
    return hora_frame_end(&w);
}

static const hora_tuning_t some_tuning = {1 << 27, HORA_TUNING_BYTES_MAX, 1 << 20, 0x8001,
                                          HORA_TUNING_HALVING};

static size_t write_responses(void) {
    hora_frame_writer_t w;
    hora_frame_begin(&w, frame, HORA_FRAME_RESPONSES, 0);
    assert_true(hora_frame_put_error(&w, "bad", 3, HORA_ERR_MISMATCH, "they differ"));
    assert_true(hora_frame_put_stall(&w, "slow", 4, "rank 2 is missing"));
    assert_true(hora_frame_put_resend(&w, 3, 99));
    hora_signature_t sig = some_signature();
    size_t           refs = 2 * hora_frame_ref_bytes(0, NULL) + hora_frame_ref_bytes(3, NULL);
    assert_true(hora_frame_put_execute(&w, 3, refs, 0));
    hora_frame_put_ref(&w, 5, NULL, 0, NULL);
    hora_frame_put_ref(&w, 6, "new", 3, NULL);
    hora_frame_put_ref(&w, 7, NULL, 0, NULL);
    refs = hora_frame_ref_bytes(0, &sig) + 2 * hora_frame_ref_bytes(5, &sig);
    assert_true(hora_frame_put_execute(&w, 3, refs, 2));
    hora_frame_put_ref(&w, 8, "other", 5, &sig);
    hora_frame_put_ref(&w, 9, NULL, 0, &sig);
    hora_frame_put_ref(&w, 0, "third", 5, &sig);
    assert_true(hora_frame_put_joined(&w, 2));
    assert_true(hora_frame_put_freeze(&w, 9, 1 << 20, 1, (const uint32_t[]){70, 71}, 2));
    assert_true(hora_frame_put_advance(&w, 9, 5, 7));
    assert_true(hora_frame_put_thaw(&w, 9));
    assert_true(hora_frame_put_tune(&w, &some_tuning));
    assert_true(hora_frame_put_shut_down(&w, "done"));
    return hora_frame_end(&w);
}

static bool text_is(const char *text, size_t len, const char *expected) {
    return len == strlen(expected) && memcmp(text, expected, len) == 0;
}

static void requests_come_back(void **state) {
    hora_frame_reader_t r;
    hora_item_t         item;
    hora_signature_t    sig = some_signature();
    size_t              len = write_requests();
    (void)state;
    assert_true(hora_frame_open(&r, frame, len, HORA_FRAME_REQUESTS));
    assert_int_equal(r.acked, 77);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_CACHED);
    assert_int_equal(item.count, 2);
    assert_int_equal(hora_item_id(&item, 0), 11);
    assert_int_equal(hora_item_id(&item, 1), 0xffffffff);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_FULL);
    assert_true(text_is(item.name, item.name_len, "grad.w"));
    assert_true(hora_signature_equal(&item.sig, &sig));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.count, 1);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_WAITED);
    assert_true(text_is(item.name, item.name_len, "x"));
    assert_int_equal(item.waited_ms, 60000);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_JOIN);
    assert_int_equal(item.count, 4);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_PROGRESS);
    assert_int_equal(item.epoch, 3);
    assert_int_equal(item.upto, 1234567890123);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_LEFT);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_IN_PROGRESS);
}

static void responses_come_back(void **state) {
    hora_frame_reader_t r;
    hora_item_t         item;
    hora_item_ref_t     ref;
    hora_signature_t    sig = some_signature();
    size_t              len = write_responses();
    (void)state;
    assert_true(hora_frame_open(&r, frame, len, HORA_FRAME_RESPONSES));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.status, HORA_ERR_MISMATCH);
    assert_true(text_is(item.name, item.name_len, "bad"));
    assert_true(text_is(item.text, item.text_len, "they differ"));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_true(text_is(item.name, item.name_len, "slow"));
    assert_true(text_is(item.text, item.text_len, "rank 2 is missing"));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.rank, 3);
    assert_int_equal(item.id, 99);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.count, 3);
    assert_int_equal(item.divisor, 0);
    assert_true(hora_item_next_ref(&item, &ref));
    assert_int_equal(ref.id, 5);
    assert_int_equal(ref.name_len, 0);
    assert_true(hora_item_next_ref(&item, &ref));
    assert_int_equal(ref.id, 6);
    assert_true(text_is(ref.name, ref.name_len, "new"));
    assert_true(hora_item_next_ref(&item, &ref));
    assert_int_equal(ref.id, 7);
    assert_false(hora_item_next_ref(&item, &ref));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_EXECUTE_SOME);
    assert_int_equal(item.divisor, 2);
    assert_true(hora_item_next_ref(&item, &ref));
    assert_int_equal(ref.id, 8);
    assert_true(text_is(ref.name, ref.name_len, "other"));
    assert_true(hora_signature_equal(&ref.sig, &sig));
    assert_true(hora_item_next_ref(&item, &ref));
    assert_int_equal(ref.id, 9);
    assert_int_equal(ref.name_len, 0);
    assert_true(hora_item_next_ref(&item, &ref));
    assert_int_equal(ref.id, 0);
    assert_true(text_is(ref.name, ref.name_len, "third"));
    assert_true(hora_signature_equal(&ref.sig, &sig));
    assert_false(hora_item_next_ref(&item, &ref));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_JOINED);
    assert_int_equal(item.rank, 2);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_FREEZE);
    assert_int_equal(item.epoch, 9);
    assert_int_equal(item.threshold, 1 << 20);
    assert_int_equal(item.from, 1);
    assert_int_equal(item.count, 2);
    assert_int_equal(hora_item_id(&item, 1), 71);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_ADVANCE);
    assert_int_equal(item.from, 5);
    assert_int_equal(item.upto, 7);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_THAW);
    assert_int_equal(item.epoch, 9);
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_int_equal(item.type, HORA_ITEM_TUNE);
    assert_true(hora_tuning_equal(&item.tuning, &some_tuning));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_OK);
    assert_true(text_is(item.text, item.text_len, "done"));
    assert_int_equal(hora_frame_next(&r, RANKS, &item), HORA_IN_PROGRESS);
}

/* Reads all of it from memory of exactly that size, so that a sanitizer sees a byte too far. */
static hora_status_t read_all(const uint8_t *bytes, size_t len, hora_frame_type_t type) {
    hora_frame_reader_t r;
    hora_item_t         item;
    hora_status_t       st = HORA_ERR_PROTOCOL;
    uint8_t            *copy = malloc(len + (len == 0));
    memcpy(copy, bytes, len);
    if (hora_frame_open(&r, copy, len, type))
        while ((st = hora_frame_next(&r, RANKS, &item)) == HORA_OK) {
            hora_item_ref_t ref;
            for (uint32_t i = 0; item.type == HORA_ITEM_CACHED && i < item.count; i++)
                hora_item_id(&item, i);
            while ((item.type == HORA_ITEM_EXECUTE || item.type == HORA_ITEM_EXECUTE_SOME) &&
                   hora_item_next_ref(&item, &ref))
                assert_true(ref.name_len == 0 || memchr(ref.name, '\0', ref.name_len) == NULL);
        }
    free(copy);
    return st;
}

static void put_length(uint8_t *bytes, size_t len) {
    for (int i = 0; i < 4; i++)
        bytes[8 + i] = (uint8_t)(len >> (8 * i));
}

static void truncation_is_refused(hora_frame_type_t type, size_t len) {
    uint8_t copy[4096];
    assert_int_equal(read_all(frame, len, type), HORA_IN_PROGRESS);
    for (size_t cut = 0; cut < len; cut++) {
        memcpy(copy, frame, len);
        assert_int_equal(read_all(copy, cut, type), HORA_ERR_PROTOCOL);
        if (cut < HORA_FRAME_HEAD)
            continue;
        put_length(copy, cut); /* a head that agrees with the cut */
        assert_int_equal(read_all(copy, cut, type), HORA_ERR_PROTOCOL);
    }
    memcpy(copy, frame, len);
    copy[len] = 0;
    put_length(copy, len + 1); /* a byte too many */
    assert_int_equal(read_all(copy, len + 1, type), HORA_ERR_PROTOCOL);
}

static void every_truncation(void **state) {
    (void)state;
    truncation_is_refused(HORA_FRAME_REQUESTS, write_requests());
    truncation_is_refused(HORA_FRAME_RESPONSES, write_responses());
}

static void the_wrong_direction(void **state) {
    uint8_t swapped[4096];
    size_t  len = write_requests();
    (void)state;
    assert_int_equal(read_all(frame, len, HORA_FRAME_RESPONSES), HORA_ERR_PROTOCOL);
    memcpy(swapped, frame, len);
    swapped[6] = HORA_FRAME_RESPONSES; /* requests in a frame of responses */
    assert_int_equal(read_all(swapped, len, HORA_FRAME_RESPONSES), HORA_ERR_PROTOCOL);
    swapped[6] = HORA_FRAME_REQUESTS;
    swapped[4]++; /* another version */
    assert_int_equal(read_all(swapped, len, HORA_FRAME_REQUESTS), HORA_ERR_PROTOCOL);
}

static void flipped_bytes_and_noise(void **state) {
    uint8_t copy[4096];
    (void)state;
    srand(5);
    for (int i = 0; i < 200000; i++) {
        hora_frame_type_t type = i % 2 ? HORA_FRAME_REQUESTS : HORA_FRAME_RESPONSES;
        size_t            len = i % 2 ? write_requests() : write_responses();
        memcpy(copy, frame, len);
        if (i % 10 < 8) {
            for (int k = rand() % 4; k >= 0; k--)
                copy[8 + (size_t)rand() % (len - 8)] = (uint8_t)rand();
        } else {
            for (size_t k = HORA_FRAME_HEAD; k < len; k++)
                copy[k] = (uint8_t)(rand() % 24);
        }
        put_length(copy, len);
        read_all(copy, len, type); /* whatever it says, it stays in bounds and ends */
    }
}

static void bad_values_are_refused(void **state) {
    hora_frame_writer_t w;
    hora_signature_t    good = some_signature(), sig;
    (void)state;
#define REFUSE(change)                                                                            \
    (sig = good, change, hora_frame_begin(&w, frame, HORA_FRAME_REQUESTS, 0),                     \
     hora_frame_put_full(&w, "n", 1, &sig),                                                       \
     assert_int_equal(read_all(frame, hora_frame_end(&w), HORA_FRAME_REQUESTS), HORA_ERR_PROTOCOL))
    REFUSE(sig.kind = HORA_TASK_KIND_COUNT);
    REFUSE(sig.kind = HORA_TASK_JOIN);
    REFUSE(sig.dtype = HORA_DTYPE_COUNT);
    REFUSE(sig.op = HORA_ADASUM);
    REFUSE(sig.op = HORA_OP_COUNT);
    REFUSE(sig.op = HORA_BXOR);
    REFUSE(sig.root = RANKS);
    REFUSE(sig.root = -1);
    REFUSE(sig.shape[0] = -1);
    REFUSE((sig.shape[1] = 1LL << 40));
    REFUSE(sig.ndim = 0);
    REFUSE(sig.group_size = 0);
    REFUSE(sig.group_key = 0);
    REFUSE(sig.group_size = 1);
#undef REFUSE
    hora_frame_begin(&w, frame, HORA_FRAME_REQUESTS, 0);
    hora_frame_put_full(&w, "a\0b", 3, &good);
    assert_int_equal(read_all(frame, hora_frame_end(&w), HORA_FRAME_REQUESTS), HORA_ERR_PROTOCOL);
}

static void bad_tunings_are_refused(void **state) {
    hora_frame_writer_t w;
    hora_tuning_t       tuning;
    (void)state;
#define REFUSE(change)                                                                            \
    (tuning = some_tuning, change, hora_frame_begin(&w, frame, HORA_FRAME_RESPONSES, 0),          \
     hora_frame_put_tune(&w, &tuning),                                                            \
     assert_int_equal(read_all(frame, hora_frame_end(&w), HORA_FRAME_RESPONSES),                  \
                      HORA_ERR_PROTOCOL))
    REFUSE(tuning.algo = HORA_TUNING_ALGO_COUNT);
    REFUSE(tuning.fusion_threshold = HORA_TUNING_BYTES_MAX + 1);
    REFUSE(tuning.pack = UINT64_MAX);
    REFUSE(tuning.pack = tuning.alone - 1);
    REFUSE(tuning.oneshot_limit = UINT64_MAX);
#undef REFUSE
}

/* It is no task's, whatever that is called. */
static void the_name_of_joins(void **state) {
    static uint8_t      buf[HORA_FRAME_MAX];
    hora_signature_t    sig = {.kind = HORA_TASK_BARRIER, .group_size = 1, .prescale = 1,
                               .postscale = 1};
    hora_frame_writer_t w;
    hora_frame_reader_t r;
    hora_item_t         item;
    (void)state;
    hora_signature_normalize(&sig);
    for (size_t len = HORA_JOIN_NAME_LEN - 1; len <= HORA_JOIN_NAME_LEN; len++) {
        hora_frame_begin(&w, buf, HORA_FRAME_REQUESTS, 0);
        hora_frame_put_waited(&w, HORA_JOIN_NAME, len, 5);
        hora_frame_put_full(&w, HORA_JOIN_NAME, len, &sig);
        assert_true(hora_frame_open(&r, buf, hora_frame_end(&w), HORA_FRAME_REQUESTS));
        assert_int_equal(hora_frame_next(&r, 4, &item), HORA_OK);
        assert_int_equal(item.name_len, len);
        assert_int_equal(hora_frame_next(&r, 4, &item),
                         len < HORA_JOIN_NAME_LEN ? HORA_OK : HORA_ERR_PROTOCOL);
        hora_frame_begin(&w, buf, HORA_FRAME_RESPONSES, 0);
        hora_frame_put_error(&w, HORA_JOIN_NAME, len, HORA_ERR_TIMEOUT, "text");
        hora_frame_put_stall(&w, HORA_JOIN_NAME, len, "text");
        assert_true(hora_frame_open(&r, buf, hora_frame_end(&w), HORA_FRAME_RESPONSES));
        for (int i = 0; i < 2; i++) {
            assert_int_equal(hora_frame_next(&r, 4, &item), HORA_OK);
            assert_int_equal(item.name_len, len);
        }
    }
}

static void full_frames(void **state) {
    hora_frame_writer_t w;
    hora_signature_t    sig = some_signature();
    char                name[HORA_NAME_MAX], text[2 * HORA_TEXT_MAX];
    uint32_t            n = 0;
    (void)state;
    memset(name, 'n', sizeof(name));
    memset(text, 't', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    hora_frame_begin(&w, frame, HORA_FRAME_REQUESTS, 0);
    for (; hora_frame_put_cached(&w, n + 1); n++)
        ;
    assert_int_equal(n, (HORA_FRAME_MAX - HORA_FRAME_HEAD - 4) / 4);
    assert_false(hora_frame_put_left(&w) && hora_frame_put_left(&w));
    assert_int_equal(read_all(frame, hora_frame_end(&w), HORA_FRAME_REQUESTS), HORA_IN_PROGRESS);
    hora_frame_begin(&w, frame, HORA_FRAME_REQUESTS, 0);
    for (n = 0; hora_frame_put_full(&w, name, sizeof(name), &sig); n++)
        ;
    assert_true(n > 50);
    assert_int_equal(read_all(frame, hora_frame_end(&w), HORA_FRAME_REQUESTS), HORA_IN_PROGRESS);
    hora_frame_begin(&w, frame, HORA_FRAME_RESPONSES, 0); /* a text that is too long is cut */
    for (n = 0; hora_frame_put_error(&w, name, sizeof(name), HORA_ERR_TIMEOUT, text); n++)
        ;
    assert_true(n > 25);
    assert_int_equal(read_all(frame, hora_frame_end(&w), HORA_FRAME_RESPONSES), HORA_IN_PROGRESS);
    assert_false(hora_frame_put_execute(&w, 1, HORA_FRAME_MAX, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_come_back),      cmocka_unit_test(responses_come_back),
        cmocka_unit_test(every_truncation),        cmocka_unit_test(the_wrong_direction),
        cmocka_unit_test(flipped_bytes_and_noise), cmocka_unit_test(bad_values_are_refused),
        cmocka_unit_test(bad_tunings_are_refused), cmocka_unit_test(full_frames),
        cmocka_unit_test(the_name_of_joins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
