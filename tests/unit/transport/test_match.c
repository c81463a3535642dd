/*
 * Matching without any transport: the test plays the part of the wire.
 */
#include "transport/match.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static hora_match_t match;

static int setup(void **state) {
    (void)state;
    hora_match_init(&match);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    hora_match_destroy(&match);
    assert_null(match.posted);
    assert_null(match.inbound);
    return 0;
}

static hora_xfer_t receive(void *buf, size_t len, uint64_t tag) {
    return (hora_xfer_t){.buf = buf, .len = len, .tag = tag};
}

static hora_inbound_t *arrive(uint64_t tag, uint32_t sig, size_t len) {
    hora_inbound_t *in = NULL;
    assert_int_equal(hora_match_arrive(&match, tag, sig, len, &in), HORA_OK);
    assert_int_equal(in->len, len);
    return in;
}

/* Bytes of an arriving message come in. */
static void feed(hora_inbound_t *in, const char *bytes) {
    size_t n = strlen(bytes);
    assert_true(n <= in->len - in->filled);
    if (in->body != NULL && n > 0)
        memcpy(in->body + in->filled, bytes, n);
    in->filled += n;
    if (in->filled == in->len)
        hora_match_arrived(&match, in);
}

static void message(uint64_t tag, const char *bytes) {
    feed(arrive(tag, 0, strlen(bytes)), bytes);
}

static void test_posted_first(void **state) {
    char        buf[8] = {0};
    hora_xfer_t x = receive(buf, 5, 7);
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_IN_PROGRESS);
    hora_inbound_t *in = arrive(7, 0, 5);
    assert_ptr_equal(in->body, buf); /* no copy */
    feed(in, "hel");
    assert_int_equal(x.status, HORA_IN_PROGRESS);
    feed(in, "lo");
    assert_int_equal(x.status, HORA_OK);
    assert_int_equal(x.moved, 5);
    assert_string_equal(buf, "hello");
}

static void test_arrived_first(void **state) {
    char buf[8] = {0};
    message(7, "hello");
    hora_xfer_t x = receive(buf, 5, 7);
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_OK);
    assert_int_equal(x.moved, 5);
    assert_string_equal(buf, "hello");
    assert_null(match.inbound);
}

static void test_joins_while_arriving(void **state) {
    char            buf[8] = {0};
    hora_inbound_t *in = arrive(7, 0, 5);
    feed(in, "he");
    hora_xfer_t x = receive(buf, 5, 7);
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_IN_PROGRESS);
    feed(in, "llo");
    assert_int_equal(x.status, HORA_OK);
    assert_string_equal(buf, "hello");
    /* with nothing there yet, the bytes go straight to the buffer */
    hora_xfer_t y = receive(buf, 3, 8);
    in = arrive(8, 0, 3);
    hora_match_post(&match, &y);
    assert_ptr_equal(in->body, buf);
    feed(in, "abc");
    assert_int_equal(y.status, HORA_OK);
    assert_memory_equal(buf, "abclo", 5);
}

static void test_order_per_tag(void **state) {
    char        buf[4][4] = {{0}};
    hora_xfer_t x[4];
    message(1, "a1");
    message(2, "b1");
    message(1, "a2");
    message(2, "b2");
    for (int i = 0; i < 4; i++) { /* tags 2, 1, 1, 2 */
        x[i] = receive(buf[i], 2, i == 0 || i == 3 ? 2 : 1);
        hora_match_post(&match, &x[i]);
        assert_int_equal(x[i].status, HORA_OK);
    }
    assert_string_equal(buf[0], "b1");
    assert_string_equal(buf[1], "a1");
    assert_string_equal(buf[2], "a2");
    assert_string_equal(buf[3], "b2");
    memset(buf, 0, sizeof(buf));
    for (int i = 0; i < 4; i++) {
        x[i] = receive(buf[i], 2, i == 0 || i == 3 ? 2 : 1);
        hora_match_post(&match, &x[i]);
    }
    message(1, "c1");
    message(2, "d1");
    message(2, "d2");
    message(1, "c2");
    assert_string_equal(buf[0], "d1");
    assert_string_equal(buf[1], "c1");
    assert_string_equal(buf[2], "c2");
    assert_string_equal(buf[3], "d2");
    assert_null(match.posted);
    hora_xfer_t last = receive(buf[0], 2, 9); /* the queue's tail is still right */
    hora_match_post(&match, &last);
    message(9, "e1");
    assert_string_equal(buf[0], "e1");
}

/* Two messages of one tag arrive at the same time, the second is whole first. */
static void test_interleaved_bodies(void **state) {
    char            a[3] = {0}, b[3] = {0};
    hora_xfer_t     x = receive(a, 2, 1), y = receive(b, 2, 1);
    hora_inbound_t *first = arrive(1, 0, 2), *second = arrive(1, 0, 2);
    feed(second, "22");
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_IN_PROGRESS); /* not the second message, though it is whole */
    hora_match_post(&match, &y);
    assert_int_equal(y.status, HORA_OK);
    feed(first, "11");
    assert_int_equal(x.status, HORA_OK);
    assert_string_equal(a, "11");
    assert_string_equal(b, "22");
}

static void test_zero_length(void **state) {
    hora_xfer_t x = receive(NULL, 0, 3), y = receive(NULL, 0, 3);
    hora_match_post(&match, &x);
    message(3, "");
    feed(arrive(4, 0, 0), "");
    assert_int_equal(x.status, HORA_OK);
    y.tag = 4;
    hora_match_post(&match, &y);
    assert_int_equal(y.status, HORA_OK);
    assert_int_equal(y.moved, 0);
}

static void test_any_length(void **state) {
    char        buf[8] = {0};
    hora_xfer_t x = receive(buf, 8, 1), y = receive(buf, 8, 1), z = receive(buf, 2, 1);
    x.flags = y.flags = z.flags = HORA_XFER_ANY_LENGTH;
    hora_match_post(&match, &x);
    message(1, "abc");
    assert_int_equal(x.status, HORA_OK);
    assert_int_equal(x.moved, 3);
    message(1, "");
    hora_match_post(&match, &y);
    assert_int_equal(y.status, HORA_OK);
    assert_int_equal(y.moved, 0);
    message(1, "abc"); /* too long is wrong all the same */
    hora_match_post(&match, &z);
    assert_int_equal(z.status, HORA_ERR_MISMATCH);
    assert_non_null(strstr(hora_last_error(), "3 bytes"));
}

static void test_wrong_length(void **state) {
    char        buf[8] = "unused";
    hora_xfer_t x = receive(buf, 4, 1), y = receive(buf, 2, 1), ok = receive(buf, 1, 1);
    hora_match_post(&match, &x);
    hora_inbound_t *in = arrive(1, 0, 3);
    assert_int_equal(x.status, HORA_ERR_MISMATCH); /* at once */
    assert_ptr_not_equal(in->body, buf);
    feed(in, "abc");
    assert_null(match.inbound); /* dropped */
    message(1, "abc");
    hora_match_post(&match, &y);
    assert_int_equal(y.status, HORA_ERR_MISMATCH);
    assert_null(match.inbound);
    assert_string_equal(buf, "unused");
    message(1, "z"); /* the next one works */
    hora_match_post(&match, &ok);
    assert_int_equal(ok.status, HORA_OK);
}

static void test_wrong_length_while_arriving(void **state) {
    char            buf[8] = "unused";
    hora_xfer_t     x = receive(buf, 4, 1), y = receive(buf, 3, 1);
    hora_inbound_t *in = arrive(1, 0, 3);
    feed(in, "a");
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_ERR_MISMATCH);
    hora_match_post(&match, &y); /* must not get the message that was refused */
    assert_int_equal(y.status, HORA_IN_PROGRESS);
    feed(in, "bc");
    assert_int_equal(y.status, HORA_IN_PROGRESS);
    assert_string_equal(buf, "unused");
    hora_match_cancel(&match, &y);
}

static void test_wrong_sig(void **state) {
    char        buf[8] = "unused";
    hora_xfer_t x = receive(buf, 3, 1);
    x.sig = 5;
    hora_match_post(&match, &x);
    feed(arrive(1, 6, 3), "abc");
    assert_int_equal(x.status, HORA_ERR_MISMATCH);
    assert_int_equal(x.sig, 6); /* so that both sides can be named */
    assert_string_equal(buf, "unused");
    x.sig = 5;
    feed(arrive(1, 6, 3), "abc");
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_ERR_MISMATCH);
    assert_int_equal(x.sig, 6);
    x.sig = 5;
    /* 0 on either side: not compared */
    feed(arrive(1, 0, 3), "abc");
    hora_match_post(&match, &x);
    assert_int_equal(x.status, HORA_OK);
    x.sig = 0;
    hora_match_post(&match, &x);
    feed(arrive(1, 6, 3), "def");
    assert_int_equal(x.status, HORA_OK);
    assert_memory_equal(buf, "def", 3);
}

/* The text says who, where the link is known. */
static void test_mismatch_names_rank_and_host(void **state) {
    hora_peer_t      peers[2] = {{.host = "alpha"}, {.host = "beta"}};
    hora_world_t     world = {.rank = 0, .size = 2, .peers = peers};
    hora_transport_t transport = {NULL, &world};
    hora_link_t      link = {&transport, 1};
    hora_xfer_t      x = receive(NULL, 0, 1);
    x.link = &link;
    hora_match_post(&match, &x);
    message(1, "abc");
    assert_int_equal(x.status, HORA_ERR_MISMATCH);
    assert_non_null(strstr(hora_last_error(), "rank 1 on host beta"));
}

static void test_cancel_posted(void **state) {
    char        buf[3][4] = {{0}};
    hora_xfer_t x[3];
    for (int victim = 0; victim < 3; victim++) { /* head, middle, tail of the queue */
        memset(buf, 0, sizeof(buf));
        for (int i = 0; i < 3; i++) {
            x[i] = receive(buf[i], 2, 1);
            hora_match_post(&match, &x[i]);
        }
        hora_match_cancel(&match, &x[victim]);
        assert_int_equal(x[victim].status, HORA_ERR_ABORTED);
        message(1, "m1");
        message(1, "m2");
        for (int i = 0, n = 1; i < 3; i++) {
            char expected[3] = {'m', (char)('0' + n), '\0'};
            assert_string_equal(buf[i], i == victim ? "" : expected);
            n += i != victim;
        }
    }
    assert_null(match.posted);
}

static void test_cancel_while_arriving(void **state) {
    char            buf[8] = "......";
    hora_xfer_t     x = receive(buf, 5, 1), y = receive(buf, 2, 1);
    hora_inbound_t *in;
    hora_match_post(&match, &x);
    in = arrive(1, 0, 5);
    feed(in, "he");
    hora_match_cancel(&match, &x);
    assert_ptr_not_equal(in->body, buf);
    memset(buf, '.', 6);
    feed(in, "llo");
    assert_string_equal(buf, "......"); /* not touched any more */
    assert_null(match.inbound);
    hora_match_post(&match, &y); /* the cancelled message is nobody's */
    assert_int_equal(y.status, HORA_IN_PROGRESS);
    message(1, "ok");
    assert_int_equal(y.status, HORA_OK);
}

/* The receive came while its message was arriving into own memory. */
static void test_cancel_joined(void **state) {
    char            buf[8] = "......";
    hora_xfer_t     x = receive(buf, 5, 1);
    hora_inbound_t *in = arrive(1, 0, 5);
    feed(in, "he");
    hora_match_post(&match, &x);
    hora_match_cancel(&match, &x);
    feed(in, "llo");
    assert_string_equal(buf, "......");
    in = arrive(1, 0, 5); /* joined before the first byte: it had been redirected */
    hora_match_post(&match, &x);
    hora_match_cancel(&match, &x);
    feed(in, "hello");
    assert_string_equal(buf, "......");
    assert_null(match.inbound);
}

static void test_cancel_done(void **state) {
    char        buf[8];
    hora_xfer_t x = receive(buf, 2, 1);
    message(1, "ok");
    hora_match_post(&match, &x);
    hora_match_cancel(&match, &x);
    assert_int_equal(x.status, HORA_OK);
}

static void test_fail(void **state) {
    char        buf[8];
    hora_xfer_t waiting = receive(buf, 2, 1), arriving = receive(buf, 3, 2);
    hora_xfer_t late = receive(buf, 4, 3), gone = receive(buf, 5, 4);
    hora_match_post(&match, &waiting);
    hora_match_post(&match, &arriving);
    feed(arrive(2, 0, 3), "a");
    message(3, "kept");
    feed(arrive(4, 0, 5), "half");
    hora_match_fail(&match, HORA_ERR_PEER_FAILED);
    assert_int_equal(waiting.status, HORA_ERR_PEER_FAILED);
    assert_int_equal(arriving.status, HORA_ERR_PEER_FAILED);
    hora_match_post(&match, &late); /* what came in whole is still there */
    assert_int_equal(late.status, HORA_OK);
    assert_memory_equal(buf, "kept", 4);
    hora_match_post(&match, &gone); /* half a message is not */
    assert_int_equal(gone.status, HORA_IN_PROGRESS);
    hora_match_cancel(&match, &gone);
}

/* Destroying with everything pending: nothing leaks (under ASan), receives end. */
static void test_destroy(void **state) {
    char         buf[8];
    hora_match_t own;
    hora_xfer_t  a = receive(buf, 2, 1), b = receive(buf, 3, 2), c = receive(buf, 3, 3);
    hora_inbound_t *in;
    hora_match_init(&own);
    hora_match_post(&own, &a);
    hora_match_post(&own, &b);
    hora_match_post(&own, &c);
    assert_int_equal(hora_match_arrive(&own, 2, 0, 3, &in), HORA_OK);
    assert_int_equal(hora_match_arrive(&own, 3, 0, 3, &in), HORA_OK);
    hora_match_cancel(&own, &c);
    assert_int_equal(hora_match_arrive(&own, 9, 0, 3, &in), HORA_OK);
    in->filled = 3;
    hora_match_arrived(&own, in);
    hora_match_destroy(&own);
    assert_int_equal(a.status, HORA_ERR_SHUT_DOWN);
    assert_int_equal(b.status, HORA_ERR_SHUT_DOWN);
}

static void test_impossible_length(void **state) {
    hora_inbound_t *in = NULL;
    assert_int_equal(hora_match_arrive(&match, 1, 0, SIZE_MAX, &in), HORA_ERR_NO_MEMORY);
    assert_int_equal(hora_match_arrive(&match, 1, 0, SIZE_MAX / 2, &in), HORA_ERR_NO_MEMORY);
    assert_null(in);
}

/* Random posts, arrivals, bytes and cancels, against what a plain list says. */
static void test_random(void **state) {
    enum { N = 4000, TAGS = 5 };
    static hora_xfer_t x[N];
    static uint32_t    got[N];
    uint32_t           sent[TAGS] = {0}, expected[TAGS] = {0};
    unsigned           seed = 12345;
    int                next = 0;
    for (int i = 0; i < N; i++) {
        seed = seed * 1664525u + 1013904223u;
        unsigned tag = (seed >> 16) % TAGS;
        if ((seed >> 8) % 2) {
            uint32_t        value = ++sent[tag];
            hora_inbound_t *in = arrive(tag, 0, sizeof(value));
            memcpy(in->body, &value, sizeof(value));
            in->filled = in->len;
            hora_match_arrived(&match, in);
        } else {
            x[next] = receive(&got[next], sizeof(uint32_t), tag);
            hora_match_post(&match, &x[next++]);
        }
    }
    for (int i = 0; i < next; i++)
        if (x[i].status == HORA_OK)
            assert_int_equal(got[i], ++expected[x[i].tag]);
        else
            hora_match_cancel(&match, &x[i]);
    for (int tag = 0; tag < TAGS; tag++) {
        int kept = 0;
        for (hora_inbound_t *in = match.inbound; in != NULL; in = in->next)
            kept += in->tag == (uint64_t)tag;
        assert_int_equal(expected[tag] + (uint32_t)kept, sent[tag]);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_posted_first),
        TEST(test_arrived_first),
        TEST(test_joins_while_arriving),
        TEST(test_order_per_tag),
        TEST(test_interleaved_bodies),
        TEST(test_zero_length),
        TEST(test_any_length),
        TEST(test_wrong_length),
        TEST(test_wrong_length_while_arriving),
        TEST(test_wrong_sig),
        TEST(test_mismatch_names_rank_and_host),
        TEST(test_cancel_posted),
        TEST(test_cancel_while_arriving),
        TEST(test_cancel_joined),
        TEST(test_cancel_done),
        TEST(test_fail),
        TEST(test_destroy),
        TEST(test_impossible_length),
        TEST(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
