/*
 * The TCP transport: two of them in one process, each with a world made by hand, driven by turns.
 * Hostile clients are plain sockets.
 */
#include "transport/tcp/tcp.h"
#include "transport/transport.h"
#include "util/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define LIMIT_NS 20000000000u /* for anything that should come about */

typedef struct side {
    hora_world_t      world;
    hora_peer_t       peers[2];
    hora_transport_t *t;
    hora_link_t      *link;
    uint8_t           blob[HORA_ADDRESS_MAX];
    size_t            blob_len;
} side_t;

static side_t                            A, B;
static const hora_transport_ops_t *const ops = &hora_transport_tcp;

/* ---- Two ranks ---- */

static void world_make(side_t *s, int rank, int connections) {
    memset(s, 0, sizeof(*s));
    s->world.rank = rank;
    s->world.size = s->world.local_size = 2;
    s->world.peers = s->peers;
    s->world.settings.tcp_connections = connections;
    s->world.settings.start_timeout = 5;
    snprintf(s->peers[0].host, HORA_HOST_MAX, "alpha");
    snprintf(s->peers[1].host, HORA_HOST_MAX, "beta");
    s->peers[1].local = 1;
}

static void side_open(side_t *s) {
    s->blob_len = sizeof(s->blob);
    assert_int_equal(ops->open(&s->world, &s->t), HORA_OK);
    assert_int_equal(ops->address(s->t, s->blob, &s->blob_len), HORA_OK);
}

static void pair_open(int connections) {
    world_make(&A, 0, connections);
    world_make(&B, 1, connections);
    side_open(&A);
    side_open(&B);
    assert_true(ops->reachable(A.t, 1, B.blob, B.blob_len));
    assert_int_equal(ops->connect(A.t, 1, B.blob, B.blob_len, &A.link), HORA_OK);
    assert_int_equal(ops->connect(B.t, 0, A.blob, A.blob_len, &B.link), HORA_OK);
}

static void side_close(side_t *s) {
    if (s->t != NULL)
        ops->close(s->t);
    s->t = NULL;
}

static int open_one(void **state) {
    (void)state;
    pair_open(1);
    return 0;
}

static int open_four(void **state) {
    (void)state;
    pair_open(4);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    side_close(&A);
    side_close(&B);
    return 0;
}

static unsigned turn(void) {
    unsigned n = A.t != NULL ? ops->progress(A.t) : 0;
    return n + (B.t != NULL ? ops->progress(B.t) : 0);
}

/* Drives both until the transfer is done. */
static hora_status_t finish(hora_xfer_t *x) {
    uint64_t deadline = hora_clock_ns() + LIMIT_NS;
    while (x->status == HORA_IN_PROGRESS && hora_clock_ns() < deadline)
        turn();
    return x->status;
}

static void drive_for(uint64_t ms) {
    uint64_t deadline = hora_clock_ns() + ms * 1000000u;
    while (hora_clock_ns() < deadline)
        turn();
}

static hora_xfer_t xfer(void *buf, size_t len, uint64_t tag) {
    return (hora_xfer_t){.buf = buf, .len = len, .tag = tag};
}

static void *filled(size_t len, uint32_t seed) {
    uint8_t *p = malloc(len + 1);
    assert_non_null(p);
    for (size_t i = 0; i < len; i++) {
        if (i % 4096 == 0)
            seed = seed * 1664525u + 1013904223u;
        p[i] = (uint8_t)((i * 7) ^ (seed >> 24) ^ (i >> 12));
    }
    p[len] = 0xee;
    return p;
}

static uint8_t *empty(size_t len) {
    uint8_t *p = malloc(len + 1);
    assert_non_null(p);
    memset(p, 0xdd, len);
    p[len] = 0xcc;
    return p;
}

static void assert_same(const uint8_t *got, const uint8_t *expected, size_t len) {
    assert_int_equal(memcmp(got, expected, len), 0);
    assert_int_equal(got[len], 0xcc); /* not one byte more */
}

/* ---- Messages ---- */

/* One message from one side to the other; the receive is posted before or after. */
static void exchange(side_t *from, side_t *to, size_t len, bool receive_first) {
    uint8_t    *in = filled(len, (uint32_t)len), *out = empty(len);
    hora_xfer_t s = xfer(in, len, 42), r = xfer(out, len, 42);
    if (receive_first)
        ops->recv(to->link, &r);
    ops->send(from->link, &s);
    if (!receive_first) {
        drive_for(2);
        ops->recv(to->link, &r);
    }
    assert_int_equal(finish(&r), HORA_OK);
    assert_int_equal(finish(&s), HORA_OK);
    assert_int_equal(r.moved, len);
    assert_int_equal(s.moved, len);
    assert_same(out, in, len);
    free(in);
    free(out);
}

static void test_sizes(void **state) {
    static const size_t sizes[] = {
        0,     1,          17,             4095,     HORA_TCP_BUFFER - 48, 65536,
        65537, 262144 + 3, (1u << 20) - 1, 1u << 20, 0,                    33u << 20,
        (33u << 20) + 5,
    };
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        exchange(&A, &B, sizes[i], true);
        exchange(&A, &B, sizes[i], false);
        exchange(&B, &A, sizes[i], i % 2);
    }
}

/* Thousands of small messages both ways; receives are posted late, early, and in between. */
static void test_many_small(void **state) {
    enum { N = 5000 };
    static hora_xfer_t s[2][N], r[2][N];
    static uint32_t    in[2][N][3], out[2][N][3];
    side_t            *sides[2] = {&A, &B};
    (void)state;
    for (int i = 0; i < N; i++)
        for (int d = 0; d < 2; d++) {
            for (int k = 0; k < 3; k++)
                in[d][i][k] = (uint32_t)(i * 10 + d + k * 1000003);
            memset(out[d][i], 0, sizeof(out[d][i]));
            s[d][i] = xfer(in[d][i], (size_t)(i % 13), (uint64_t)(i % 3));
            r[d][i] = xfer(out[d][i], (size_t)(i % 13), (uint64_t)(i % 3));
            if (i % 2)
                ops->recv(sides[1 - d]->link, &r[d][i]);
            ops->send(sides[d]->link, &s[d][i]);
            if (i % 2 == 0)
                ops->recv(sides[1 - d]->link, &r[d][i]);
            if (i % 97 == 0)
                turn();
        }
    for (int i = 0; i < N; i++)
        for (int d = 0; d < 2; d++) {
            assert_int_equal(finish(&s[d][i]), HORA_OK);
            assert_int_equal(finish(&r[d][i]), HORA_OK);
            assert_memory_equal(out[d][i], in[d][i], (size_t)(i % 13));
        }
}

/* Messages of mixed sizes, received in another order than sent, by tag. */
static void test_odd_order(void **state) {
    enum { N = 60 };
    hora_xfer_t s[N], r[N];
    uint8_t    *in[N], *out[N];
    (void)state;
    for (int i = 0; i < N; i++) {
        size_t len = i % 7 == 0 ? 700000 + (size_t)i : i % 3 == 0 ? 70000 : (size_t)i;
        in[i] = filled(len, (uint32_t)i);
        out[i] = empty(len);
        s[i] = xfer(in[i], len, (uint64_t)i);
        r[i] = xfer(out[i], len, (uint64_t)i);
        ops->send(A.link, &s[i]);
    }
    for (int k = 0; k < N; k++) { /* 37 has no divisor in common with 60 */
        int i = k * 37 % N;
        ops->recv(B.link, &r[i]);
        turn();
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(finish(&r[i]), HORA_OK);
        assert_int_equal(finish(&s[i]), HORA_OK);
        assert_same(out[i], in[i], r[i].len);
        free(in[i]);
        free(out[i]);
    }
}

/* Messages of one tag come in the order sent, whatever their sizes and connections. */
static void test_same_tag_order(void **state) {
    enum { N = 40 };
    hora_xfer_t s[N], r[N];
    uint8_t    *in[N], *out[N];
    (void)state;
    for (int i = 0; i < N; i++) {
        size_t len = i % 2 ? 8 : 3000000;
        in[i] = filled(len, (uint32_t)i);
        out[i] = empty(len);
        s[i] = xfer(in[i], len, 9);
        r[i] = xfer(out[i], len, 9);
        ops->send(A.link, &s[i]);
    }
    for (int i = 0; i < N; i++)
        ops->recv(B.link, &r[i]);
    for (int i = 0; i < N; i++) {
        assert_int_equal(finish(&r[i]), HORA_OK);
        assert_same(out[i], in[i], r[i].len);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(finish(&s[i]), HORA_OK);
        free(in[i]);
        free(out[i]);
    }
}

/* Both send a long message before either receives: must not lock up. */
static void test_both_send_first(void **state) {
    size_t      len = 24u << 20;
    uint8_t    *in = filled(len, 1), *out[2] = {empty(len), empty(len)};
    hora_xfer_t s[2] = {xfer(in, len, 1), xfer(in, len, 1)};
    hora_xfer_t r[2] = {xfer(out[0], len, 1), xfer(out[1], len, 1)};
    (void)state;
    ops->send(A.link, &s[0]);
    ops->send(B.link, &s[1]);
    assert_int_equal(finish(&s[0]), HORA_OK);
    assert_int_equal(finish(&s[1]), HORA_OK);
    ops->recv(B.link, &r[0]);
    ops->recv(A.link, &r[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(finish(&r[i]), HORA_OK);
        assert_same(out[i], in, len);
        free(out[i]);
    }
    free(in);
}

/* A long message that nobody receives does not keep back a later one that is waited for. */
static void test_long_unexpected_is_overtaken(void **state) {
    size_t      len = 24u << 20;
    uint8_t    *in = filled(len, 1), *out = empty(len);
    uint32_t    small = 77, got = 0;
    hora_xfer_t big = xfer(in, len, 1), little = xfer(&small, 4, 2);
    hora_xfer_t r1 = xfer(out, len, 1), r2 = xfer(&got, 4, 2);
    (void)state;
    ops->send(A.link, &big);
    ops->send(A.link, &little);
    ops->recv(B.link, &r2);
    assert_int_equal(finish(&r2), HORA_OK);
    assert_int_equal(got, 77);
    ops->recv(B.link, &r1);
    assert_int_equal(finish(&r1), HORA_OK);
    assert_same(out, in, len);
    assert_int_equal(finish(&big), HORA_OK);
    free(in);
    free(out);
}

static void test_mismatch_then_works(void **state) {
    static uint8_t big[1 << 20], buf[64];
    hora_xfer_t    s = xfer(big, sizeof(big), 1), r = xfer(buf, sizeof(buf), 1);
    (void)state;
    ops->recv(B.link, &r);
    ops->send(A.link, &s);
    assert_int_equal(finish(&r), HORA_ERR_MISMATCH);
    assert_non_null(strstr(hora_last_error(), "rank 0 on host alpha"));
    assert_int_equal(finish(&s), HORA_OK);
    s.sig = 1;
    s.len = r.len = 64;
    r.sig = 2;
    ops->recv(B.link, &r);
    ops->send(A.link, &s);
    assert_int_equal(finish(&r), HORA_ERR_MISMATCH);
    assert_int_equal(finish(&s), HORA_OK);
    exchange(&A, &B, 100000, true);
}

/* A sleeper that polls fd() is woken by whatever concerns it, and not otherwise. */
static void test_fd(void **state) {
    uint32_t      value = 5, got = 0;
    hora_xfer_t   s = xfer(&value, 4, 1), r = xfer(&got, 4, 1);
    struct pollfd a = {.fd = ops->fd(A.t), .events = POLLIN};
    struct pollfd b = {.fd = ops->fd(B.t), .events = POLLIN};
    (void)state;
    exchange(&A, &B, 10, true);
    drive_for(10);
    ops->recv(B.link, &r);
    assert_int_equal(poll(&b, 1, 0), 0);
    assert_int_equal(poll(&a, 1, 0), 0);
    ops->send(A.link, &s);
    assert_int_equal(s.status, HORA_OK); /* at once, without progress */
    assert_int_equal(poll(&b, 1, 1000), 1);
    ops->progress(B.t);
    assert_int_equal(r.status, HORA_OK);
    assert_int_equal(got, 5);
    assert_int_equal(poll(&b, 1, 0), 0);
}

/* Only by sleeping in poll, never by spinning, a long message gets through. */
static void test_sleepers_move_on(void **state) {
    size_t      len = 33u << 20;
    uint8_t    *in = filled(len, 3), *out = empty(len);
    hora_xfer_t s = xfer(in, len, 1), r = xfer(out, len, 1);
    (void)state;
    ops->recv(B.link, &r);
    ops->send(A.link, &s);
    while (r.status == HORA_IN_PROGRESS || s.status == HORA_IN_PROGRESS) {
        struct pollfd p[2] = {{.fd = ops->fd(A.t), .events = POLLIN},
                              {.fd = ops->fd(B.t), .events = POLLIN}};
        assert_true(poll(p, 2, 5000) > 0);
        if (p[0].revents)
            ops->progress(A.t);
        if (p[1].revents)
            ops->progress(B.t);
    }
    assert_int_equal(r.status, HORA_OK);
    assert_same(out, in, len);
    free(in);
    free(out);
}

/* ---- Cancelling ---- */

static void test_cancel_unstarted_send(void **state) {
    static uint8_t big[40 << 20];
    uint32_t       one = 1, two = 2, got = 0;
    hora_xfer_t    blocker = xfer(big, sizeof(big), 1), a = xfer(&one, 4, 2), b = xfer(&two, 4, 2);
    hora_xfer_t    rb = xfer(big, sizeof(big), 1), r = xfer(&got, 4, 2);
    (void)state;
    exchange(&A, &B, 8, true);
    ops->send(A.link, &blocker);
    ops->send(A.link, &a);
    ops->send(A.link, &b);
    assert_int_equal(a.status, HORA_IN_PROGRESS);
    ops->cancel(A.link, &a);
    assert_int_equal(a.status, HORA_ERR_ABORTED);
    one = 99;
    ops->recv(B.link, &r);
    rb.buf = malloc(sizeof(big));
    ops->recv(B.link, &rb);
    assert_int_equal(finish(&r), HORA_OK);
    assert_int_equal(got, 2); /* the first was never sent, and nothing is missing */
    assert_int_equal(finish(&rb), HORA_OK);
    free(rb.buf);
}

static void test_cancel_begun_send(void **state) {
    size_t      len = 40u << 20;
    uint8_t    *in = filled(len, 4), *expected = filled(len, 4), *out = empty(len);
    hora_xfer_t s = xfer(in, len, 1), r = xfer(out, len, 1);
    (void)state;
    exchange(&A, &B, 8, true);
    ops->send(A.link, &s);
    assert_int_equal(s.status, HORA_IN_PROGRESS);
    assert_true(s.moved < len);
    ops->cancel(A.link, &s);
    assert_int_equal(s.status, HORA_ERR_ABORTED);
    memset(in, 0x55, len); /* the caller has its buffer back ... */
    free(in);
    ops->recv(B.link, &r);
    assert_int_equal(finish(&r), HORA_OK); /* ... and the receiver gets what it was promised */
    assert_same(out, expected, len);
    exchange(&A, &B, 100, true);
    free(expected);
    free(out);
}

/* Half of the message has been written in chunks to several connections, some of it received. */
static void test_cancel_send_midway(void **state) {
    size_t      len = 40u << 20;
    uint8_t    *in = filled(len, 5), *expected = filled(len, 5), *out = empty(len);
    hora_xfer_t s = xfer(in, len, 1), r = xfer(out, len, 1);
    (void)state;
    exchange(&A, &B, 8, true);
    ops->recv(B.link, &r);
    ops->send(A.link, &s);
    for (int i = 0; i < 3 && s.status == HORA_IN_PROGRESS; i++)
        turn();
    assert_int_equal(s.status, HORA_IN_PROGRESS);
    ops->cancel(A.link, &s);
    free(in);
    assert_int_equal(finish(&r), HORA_OK);
    assert_same(out, expected, len);
    free(expected);
    free(out);
}

static void test_cancel_receive_midway(void **state) {
    size_t      len = 40u << 20;
    uint8_t    *in = filled(len, 6), *out = empty(len);
    hora_xfer_t s = xfer(in, len, 1), r = xfer(out, len, 1);
    uint64_t    deadline = hora_clock_ns() + LIMIT_NS;
    (void)state;
    ops->recv(B.link, &r);
    ops->send(A.link, &s);
    while (r.moved < 100000 && hora_clock_ns() < deadline)
        turn();
    assert_int_equal(r.status, HORA_IN_PROGRESS);
    ops->cancel(B.link, &r);
    assert_int_equal(r.status, HORA_ERR_ABORTED);
    memset(out, 0x11, len);
    assert_int_equal(finish(&s), HORA_OK);
    exchange(&A, &B, 1000, true); /* after it: all of the message has passed */
    for (size_t i = 0; i < len; i++)
        if (out[i] != 0x11)
            fail_msg("byte %zu was written after cancel", i);
    free(in);
    free(out);
}

/* ---- Failures ---- */

static void test_peer_leaves_idle(void **state) {
    char        buf[8];
    hora_xfer_t s = xfer(buf, 8, 1), r = xfer(buf, 8, 1);
    (void)state;
    exchange(&A, &B, 1000, true);
    exchange(&B, &A, 1000, true);
    side_close(&B);
    drive_for(20);
    ops->recv(A.link, &r); /* now it matters */
    assert_int_equal(r.status, HORA_ERR_PEER_FAILED);
    assert_non_null(strstr(hora_last_error(), "rank 1 on host beta"));
    ops->send(A.link, &s);
    assert_int_equal(finish(&s), HORA_ERR_PEER_FAILED);
}

/* What a rank sent before it left can still be received. */
static void test_messages_survive_leaving(void **state) {
    size_t      len = 3u << 20;
    uint8_t    *in = filled(len, 7), *out = empty(len);
    char        small[4] = "abc", got[4] = "";
    hora_xfer_t s1 = xfer(small, 4, 1), s2 = xfer(in, len, 2);
    hora_xfer_t r1 = xfer(got, 4, 1), r2 = xfer(out, len, 2), r3 = xfer(got, 4, 1);
    (void)state;
    exchange(&A, &B, 8, true); /* A has a connection to B, which will break */
    ops->send(B.link, &s1);
    ops->send(B.link, &s2);
    for (int i = 0; i < 1000; i++)
        ops->progress(B.t);
    drive_for(100);
    assert_int_equal(finish(&s2), HORA_OK);
    side_close(&B);
    drive_for(20);
    ops->recv(A.link, &r2);
    assert_int_equal(finish(&r2), HORA_OK);
    assert_same(out, in, len);
    ops->recv(A.link, &r1);
    assert_int_equal(finish(&r1), HORA_OK);
    assert_string_equal(got, "abc");
    ops->recv(A.link, &r3);
    assert_int_equal(finish(&r3), HORA_ERR_PEER_FAILED);
    free(in);
    free(out);
}

static void test_peer_leaves_while_waited_for(void **state) {
    char        buf[8];
    hora_xfer_t r = xfer(buf, 8, 1);
    (void)state;
    exchange(&B, &A, 8, true);
    ops->recv(A.link, &r);
    side_close(&B);
    assert_int_equal(finish(&r), HORA_ERR_PEER_FAILED);
    assert_non_null(strstr(hora_last_error(), "connection to rank 1 on host beta was lost"));
}

/* The peer dies with a message half sent: cut its sockets, as the kernel would. */
static void test_peer_dies_mid_message(void **state) {
    size_t      len = 40u << 20;
    uint8_t    *in = filled(len, 8), *out = empty(len);
    hora_xfer_t s = xfer(in, len, 1), r = xfer(out, len, 1), other = xfer(in, 8, 3);
    (void)state;
    exchange(&A, &B, 8, true);
    exchange(&B, &A, 8, true);
    ops->recv(A.link, &r);
    ops->recv(A.link, &other);
    ops->send(B.link, &s);
    while (r.moved == 0)
        turn();
    hora_tcp_link_t *link = (hora_tcp_link_t *)B.link;
    hora_tcp_link_fail(link, HORA_ERR_ABORTED, "test: rank 1 dies");
    assert_int_equal(s.status, HORA_ERR_ABORTED);
    assert_int_equal(finish(&r), HORA_ERR_PEER_FAILED);
    assert_int_equal(other.status, HORA_ERR_PEER_FAILED);
    assert_non_null(strstr(hora_last_error(), "rank 1 on host beta"));
    assert_int_equal(finish(&other), HORA_ERR_PEER_FAILED);
    free(in);
    free(out);
}

static void test_receiver_dies_mid_message(void **state) {
    size_t      len = 40u << 20;
    uint8_t    *in = filled(len, 9);
    hora_xfer_t s = xfer(in, len, 1), later = xfer(in, 8, 1);
    (void)state;
    exchange(&A, &B, 8, true);
    ops->send(A.link, &s);
    turn();
    side_close(&B);
    assert_int_equal(finish(&s), HORA_ERR_PEER_FAILED);
    assert_non_null(strstr(hora_last_error(), "rank 1 on host beta"));
    ops->send(A.link, &later);
    assert_int_equal(later.status, HORA_ERR_PEER_FAILED);
    free(in);
}

static void test_connect_refused(void **state) {
    char        buf[8];
    hora_xfer_t s = xfer(buf, 8, 1), r = xfer(buf, 8, 1);
    (void)state;
    ops->recv(A.link, &r);
    side_close(&B); /* nothing was ever sent: there is no connection yet */
    ops->send(A.link, &s);
    assert_int_equal(finish(&s), HORA_ERR_PEER_FAILED);
    assert_non_null(strstr(hora_last_error(), "cannot connect to rank 1 on host beta at 127.0"));
    assert_non_null(strstr(hora_last_error(), "interface lo"));
    assert_non_null(strstr(hora_last_error(), "HORA_INTERFACE"));
    assert_int_equal(r.status, HORA_ERR_PEER_FAILED);
}

/* close() sends what is queued. */
static void test_close_flushes(void **state) {
    enum { N = 2000 };
    static uint32_t    value[N], got[N];
    static hora_xfer_t s[N], r[N];
    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        value[i] = i;
        s[i] = xfer(&value[i], 4, 1);
        ops->send(B.link, &s[i]); /* the connection is still being made */
    }
    assert_int_equal(s[N - 1].status, HORA_IN_PROGRESS);
    side_close(&B);
    assert_int_equal(s[N - 1].status, HORA_OK);
    for (uint32_t i = 0; i < N; i++) {
        r[i] = xfer(&got[i], 4, 1);
        ops->recv(A.link, &r[i]);
        assert_int_equal(finish(&r[i]), HORA_OK);
        assert_int_equal(got[i], i);
    }
}

static void test_disconnect_fails_pending(void **state) {
    size_t      len = 40u << 20;
    uint8_t    *in = filled(len, 9);
    hora_xfer_t s = xfer(in, len, 1), r = xfer(in, 8, 1);
    (void)state;
    exchange(&A, &B, 8, true);
    ops->send(A.link, &s);
    ops->recv(A.link, &r);
    ops->disconnect(A.link);
    assert_int_equal(s.status, HORA_ERR_SHUT_DOWN);
    assert_int_equal(r.status, HORA_ERR_SHUT_DOWN);
    assert_false(ops->reachable(A.t, 1, B.blob, B.blob_len));
    free(in);
}

/* ---- Strangers ---- */

static int stranger(const side_t *to) {
    hora_tcp_address_t address;
    assert_true(hora_tcp_address_decode(to->blob, to->blob_len, &address));
    int fd = socket(address.sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address.sa, address.len), 0);
    return fd;
}

static void hello_of(const side_t *to, hora_tcp_hello_t *hello) {
    hora_tcp_address_t address;
    assert_true(hora_tcp_address_decode(to->blob, to->blob_len, &address));
    *hello = (hora_tcp_hello_t){HORA_TCP_VERSION, 1, 2, 0, 1, {0}};
    memcpy(hello->token, address.token, sizeof(hello->token));
}

static void put(int fd, const void *bytes, size_t len) {
    assert_int_equal(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

/* Has the transport closed this connection? */
static bool turned_away(int fd, uint64_t ms) {
    uint64_t deadline = hora_clock_ns() + ms * 1000000u;
    char     byte;
    while (hora_clock_ns() < deadline) {
        turn();
        ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return true;
        assert_true(n < 0); /* strangers are told nothing */
    }
    return false;
}

static void test_strangers_are_dropped(void **state) {
    uint8_t          bytes[HORA_TCP_HELLO_SIZE], garbage[200];
    hora_tcp_hello_t good, bad;
    (void)state;
    memset(garbage, 'G', sizeof(garbage));
    int fd = stranger(&A);
    put(fd, garbage, sizeof(garbage));
    assert_true(turned_away(fd, 1000));
    close(fd);
    hello_of(&A, &good);
    for (int i = 0; i < 9; i++) {
        bad = good;
        switch (i) {
        case 0: bad.token[15] ^= 1; break;
        case 1: bad.version++; break;
        case 2: bad.rank = 2; break;
        case 3: bad.rank = 0; break; /* myself */
        case 4: bad.size = 3; break;
        case 5: bad.index = 1; break;
        case 6: bad.count = 0; break;
        case 7: bad.count = 17; break;
        case 8: bad.rank = 0xffffffffu; break;
        }
        hora_tcp_hello_encode(&bad, bytes);
        fd = stranger(&A);
        put(fd, bytes, sizeof(bytes));
        assert_true(turned_away(fd, 1000));
        close(fd);
    }
    exchange(&A, &B, 100, true);
    exchange(&B, &A, 100, true);
}

/* Silent ones, and ones that stop half-way, keep nobody out and go after five seconds. */
static void test_silent_strangers(void **state) {
    enum { N = 150 };
    uint8_t          bytes[HORA_TCP_HELLO_SIZE];
    hora_tcp_hello_t good;
    int              fd[N];
    (void)state;
    hello_of(&A, &good);
    hora_tcp_hello_encode(&good, bytes);
    for (int i = 0; i < N; i++) {
        fd[i] = stranger(&A);
        if (i % 2)
            put(fd[i], bytes, 40);
    }
    exchange(&B, &A, 100000, true);
    int pending = 0;
    for (int i = 0; i < N; i++)
        pending += !turned_away(fd[i], 1);
    assert_true(pending <= HORA_TCP_STRANGERS_MAX + 1);
    uint64_t begin = hora_clock_ns();
    assert_true(turned_away(fd[N - 1], 8000));
    assert_true(hora_clock_ns() - begin > 3000000000u);
    for (int i = 0; i < N; i++)
        close(fd[i]);
    exchange(&B, &A, 100, true);
}

/* A hello in many pieces is fine. */
static void test_slow_hello(void **state) {
    uint8_t          bytes[HORA_TCP_HELLO_SIZE];
    hora_tcp_hello_t good;
    (void)state;
    hello_of(&A, &good);
    hora_tcp_hello_encode(&good, bytes);
    int fd = stranger(&A);
    for (int i = 0; i < HORA_TCP_HELLO_SIZE; i++) {
        put(fd, bytes + i, 1);
        turn();
    }
    assert_false(turned_away(fd, 50));
    int again = stranger(&A); /* the same connection cannot be opened twice */
    put(again, bytes, sizeof(bytes));
    assert_true(turned_away(again, 1000));
    close(again);
    close(fd);
}

/* An authenticated peer whose frames are wrong: the link fails with words, the process goes on. */
static void test_malformed_frames(void **state) {
    static const hora_tcp_header_t headers[] = {
        {1, 0, UINT64_MAX, 0, 8, 0},               /* huge message */
        {1, 0, (uint64_t)1 << 47, 0, 1 << 20, 0},  /* possible, but not to be had */
        {1, 0, 8, 9, 1, 0},                        /* begins beyond the end */
        {1, 0, 8, UINT64_MAX, 8, 0},               /* offset + len wraps */
        {1, 0, 8, 0, 9, 0},                        /* longer than its message */
        {1, 0, 8, 0, 0, 0},                        /* empty frame of a message that is not */
        {1, 5, 8, 0, 8, 0},                        /* messages left out */
        {1, 0, (uint64_t)1 << 40, 0, 0x80000000u, 0}, /* longer than a frame may be */
    };
    (void)state;
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]) + 1; i++) {
        uint8_t          hello_bytes[HORA_TCP_HELLO_SIZE], bytes[HORA_TCP_HEADER_SIZE + 64] = {0};
        hora_tcp_hello_t hello;
        char             buf[8];
        hora_xfer_t      r = xfer(buf, 8, 2);
        pair_open(1);
        hello_of(&A, &hello);
        hora_tcp_hello_encode(&hello, hello_bytes);
        if (i < sizeof(headers) / sizeof(headers[0]))
            hora_tcp_header_encode(&headers[i], bytes);
        int fd = stranger(&A);
        ops->recv(A.link, &r);
        put(fd, hello_bytes, sizeof(hello_bytes));
        put(fd, bytes, sizeof(bytes));
        assert_int_equal(finish(&r), i == 1 ? HORA_ERR_NO_MEMORY : HORA_ERR_PROTOCOL);
        assert_non_null(strstr(hora_last_error(), "rank 1"));
        assert_true(turned_away(fd, 1000));
        close(fd);
        side_close(&A);
        side_close(&B);
    }
}

/* Frames of one message that overlap, or change their mind about it. */
static void test_malformed_pieces(void **state) {
    static const hora_tcp_header_t first = {1, 0, 64, 0, 32, 0};
    static const hora_tcp_header_t second[] = {
        {1, 0, 64, 0, 40, 0}, /* more bytes than the message has */
        {1, 0, 72, 32, 32, 0}, /* another length */
        {2, 0, 64, 32, 32, 0}, /* another tag */
    };
    (void)state;
    for (size_t i = 0; i < sizeof(second) / sizeof(second[0]); i++) {
        uint8_t          hello_bytes[HORA_TCP_HELLO_SIZE], bytes[HORA_TCP_HEADER_SIZE];
        uint8_t          body[64] = {0};
        hora_tcp_hello_t hello;
        char             buf[64];
        hora_xfer_t      r = xfer(buf, 64, 1);
        pair_open(1);
        hello_of(&A, &hello);
        hora_tcp_hello_encode(&hello, hello_bytes);
        int fd = stranger(&A);
        ops->recv(A.link, &r);
        put(fd, hello_bytes, sizeof(hello_bytes));
        hora_tcp_header_encode(&first, bytes);
        put(fd, bytes, sizeof(bytes));
        put(fd, body, first.len);
        hora_tcp_header_encode(&second[i], bytes);
        put(fd, bytes, sizeof(bytes));
        assert_int_equal(finish(&r), HORA_ERR_PROTOCOL);
        close(fd);
        side_close(&A);
        side_close(&B);
    }
}

static uint32_t random_next(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* A stream of frames with some bytes changed: either it still makes sense, or the link fails; bytes
 * never land outside a receive's buffer. */
static void test_mutated_streams(void **state) {
    enum { ROUNDS = 200, FRAMES = 12 };
    uint32_t seed = 2024;
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t          stream[HORA_TCP_HELLO_SIZE + FRAMES * (HORA_TCP_HEADER_SIZE + 40)];
        uint8_t          out[FRAMES][72];
        hora_xfer_t      r[FRAMES];
        hora_tcp_hello_t hello;
        size_t           end = HORA_TCP_HELLO_SIZE;
        pair_open(1);
        hello_of(&A, &hello);
        hora_tcp_hello_encode(&hello, stream);
        memset(out, 0xcc, sizeof(out));
        for (uint32_t i = 0; i < FRAMES; i++) {
            hora_tcp_header_t h = {i % 3, i, 40, 0, 40, 0};
            hora_tcp_header_encode(&h, stream + end);
            memset(stream + end + HORA_TCP_HEADER_SIZE, (int)i, 40);
            end += HORA_TCP_HEADER_SIZE + 40;
            r[i] = xfer(out[i], 40, i % 3);
            if (random_next(&seed) % 2)
                ops->recv(A.link, &r[i]);
            else
                r[i].status = HORA_OK;
        }
        for (uint32_t n = random_next(&seed) % 4; n > 0; n--) {
            size_t at = HORA_TCP_HELLO_SIZE + random_next(&seed) % (end - HORA_TCP_HELLO_SIZE);
            if (random_next(&seed) % 3)
                stream[at] ^= (uint8_t)(1u << random_next(&seed) % 8);
            else
                stream[at] = (uint8_t)random_next(&seed);
        }
        int fd = stranger(&A);
        put(fd, stream, end - random_next(&seed) % 50);
        close(fd);
        for (int i = 0; i < FRAMES; i++) {
            finish(&r[i]); /* the connection has ended, so each does, too */
            assert_int_not_equal(r[i].status, HORA_IN_PROGRESS);
            for (int k = 40; k < 72; k++)
                assert_int_equal(out[i][k], 0xcc);
        }
        side_close(&A);
        side_close(&B);
    }
}

/* Pieces in odd order over two connections make a whole. */
static void test_pieces_out_of_order(void **state) {
    uint8_t          bytes[HORA_TCP_HEADER_SIZE], hello_bytes[HORA_TCP_HELLO_SIZE];
    uint8_t          body[100], got[101];
    hora_tcp_hello_t hello;
    hora_xfer_t      r = xfer(got, 100, 1), r2 = xfer(NULL, 0, 7);
    int              fd[2];
    (void)state;
    for (int i = 0; i < 100; i++)
        body[i] = (uint8_t)i;
    hello_of(&A, &hello);
    hello.count = 2;
    for (unsigned i = 0; i < 2; i++) {
        hello.index = i;
        hora_tcp_hello_encode(&hello, hello_bytes);
        fd[i] = stranger(&A);
        put(fd[i], hello_bytes, sizeof(hello_bytes));
    }
    ops->recv(A.link, &r);
    ops->recv(A.link, &r2);
    hora_tcp_header_t h[3] = {{7, 1, 0, 0, 0, 0}, {1, 0, 100, 60, 40, 0}, {1, 0, 100, 0, 60, 0}};
    hora_tcp_header_encode(&h[0], bytes); /* message 1 before message 0 */
    put(fd[0], bytes, sizeof(bytes));
    drive_for(5);
    assert_int_equal(r2.status, HORA_IN_PROGRESS);
    hora_tcp_header_encode(&h[1], bytes); /* the end of message 0 before its beginning */
    put(fd[1], bytes, sizeof(bytes));
    put(fd[1], body + 60, 40);
    drive_for(5);
    assert_int_equal(r2.status, HORA_OK);
    assert_int_equal(r.status, HORA_IN_PROGRESS);
    hora_tcp_header_encode(&h[2], bytes);
    put(fd[0], bytes, sizeof(bytes));
    put(fd[0], body, 60);
    assert_int_equal(finish(&r), HORA_OK);
    assert_memory_equal(got, body, 100);
    close(fd[0]);
    close(fd[1]);
}

/* ---- Addresses ---- */

static void test_addresses(void **state) {
    uint8_t            blob[HORA_ADDRESS_MAX], other[HORA_ADDRESS_MAX] = {0};
    size_t             len = 4;
    hora_link_t       *link = NULL;
    hora_tcp_address_t back;
    hora_backend_t     backend = HORA_BACKEND_INIT;
    (void)state;
    assert_int_equal(ops->address(A.t, blob, &len), HORA_ERR_INTERNAL); /* no room */
    for (len = 0; len <= B.blob_len + 1; len++)
        assert_int_equal(ops->reachable(A.t, 1, B.blob, len), len == B.blob_len);
    assert_false(ops->reachable(A.t, 0, B.blob, B.blob_len)); /* myself */
    assert_false(ops->reachable(A.t, 2, B.blob, B.blob_len));
    assert_false(ops->reachable(A.t, -1, B.blob, B.blob_len));
    assert_false(ops->reachable(A.t, 1, other, B.blob_len));
    assert_int_equal(ops->connect(A.t, 1, other, B.blob_len, &link), HORA_ERR_PROTOCOL);
    assert_null(link);
    hora_tcp_address_t v6 = {.len = sizeof(struct sockaddr_in6), .token = {1, 2, 3}};
    struct sockaddr_in6 *sa = (struct sockaddr_in6 *)&v6.sa;
    sa->sin6_family = AF_INET6;
    sa->sin6_port = htons(4711);
    sa->sin6_addr = in6addr_loopback;
    hora_tcp_address_encode(&v6, other);
    assert_true(hora_tcp_address_decode(other, HORA_TCP_ADDRESS_SIZE, &back));
    assert_int_equal(back.len, v6.len);
    assert_memory_equal(&back.sa, &v6.sa, sizeof(*sa));
    assert_memory_equal(back.token, v6.token, sizeof(v6.token));
    assert_true(ops->probe(&backend));
    assert_non_null(strstr(backend.detail, "127.0.0.1"));
}

static void test_interfaces(void **state) {
    hora_tcp_interface_t chosen = {0};
    hora_world_t         world = {.size = 2, .local_size = 1};
    (void)state;
    snprintf(world.settings.interface, sizeof(world.settings.interface), "nosuch0");
    assert_int_equal(hora_tcp_interface_choose(&world, &chosen), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "HORA_INTERFACE=nosuch0"));
    assert_non_null(strstr(hora_last_error(), "lo 127.0.0.1"));
    assert_int_equal(chosen.len, 0);
    snprintf(world.settings.interface, sizeof(world.settings.interface), "lo");
    assert_int_equal(hora_tcp_interface_choose(&world, &chosen), HORA_OK);
    assert_string_equal(chosen.text, "127.0.0.1");
    assert_true(chosen.loopback);
    snprintf(world.settings.interface, sizeof(world.settings.interface), "127.0.0.1");
    assert_int_equal(hora_tcp_interface_choose(&world, &chosen), HORA_OK);
    assert_string_equal(chosen.name, "lo");
    snprintf(world.settings.interface, sizeof(world.settings.interface), "203.0.113.9");
    assert_int_equal(hora_tcp_interface_choose(&world, &chosen), HORA_ERR_INVALID_ARGUMENT);
    world.settings.interface[0] = '\0';
    snprintf(world.settings.rendezvous, sizeof(world.settings.rendezvous), "tcp:127.0.0.1:4444");
    assert_int_equal(hora_tcp_interface_choose(&world, &chosen), HORA_OK); /* whatever is there */
    world.local_size = 2;
    assert_int_equal(hora_tcp_interface_choose(&world, &chosen), HORA_OK);
    assert_true(chosen.loopback);
}

/* A loopback address of another host is of no use, unless this rank has only that, too. */
static void test_loopback_of_another_host(void **state) {
    (void)state;
    A.peers[1].local = -1;
    ((hora_tcp_t *)A.t)->interface.loopback = false;
    assert_false(ops->reachable(A.t, 1, B.blob, B.blob_len));
    ((hora_tcp_t *)A.t)->interface.loopback = true;
    assert_true(ops->reachable(A.t, 1, B.blob, B.blob_len));
}

static void test_bad_settings(void **state) {
    (void)state;
    for (int connections = 0; connections <= 17; connections += 17) {
        world_make(&A, 0, connections);
        assert_int_equal(ops->open(&A.world, &A.t), HORA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(hora_last_error(), "HORA_TCP_CONNECTIONS"));
        assert_null(A.t);
    }
}

/* Opening and closing leaves no descriptor behind. */
static void test_no_descriptor_leak(void **state) {
    int before = dup(0), after;
    (void)state;
    close(before);
    for (int i = 0; i < 20; i++) {
        pair_open(1 + i % 4);
        if (i % 2)
            exchange(&A, &B, 100000, true);
        side_close(i % 3 ? &A : &B);
        drive_for(1);
        side_close(&A);
        side_close(&B);
    }
    after = dup(0);
    close(after);
    assert_int_equal(before, after);
}

#define ONE(f)   cmocka_unit_test_setup_teardown(f, open_one, teardown)
#define FOUR(f)  {#f " (4 connections)", f, open_four, teardown, NULL}
#define PLAIN(f) cmocka_unit_test_teardown(f, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        ONE(test_sizes),
        FOUR(test_sizes),
        ONE(test_many_small),
        FOUR(test_many_small),
        ONE(test_odd_order),
        FOUR(test_odd_order),
        ONE(test_same_tag_order),
        FOUR(test_same_tag_order),
        ONE(test_both_send_first),
        FOUR(test_both_send_first),
        ONE(test_long_unexpected_is_overtaken),
        FOUR(test_long_unexpected_is_overtaken),
        ONE(test_mismatch_then_works),
        ONE(test_fd),
        ONE(test_sleepers_move_on),
        FOUR(test_sleepers_move_on),
        ONE(test_cancel_unstarted_send),
        ONE(test_cancel_begun_send),
        FOUR(test_cancel_begun_send),
        ONE(test_cancel_send_midway),
        FOUR(test_cancel_send_midway),
        ONE(test_cancel_receive_midway),
        FOUR(test_cancel_receive_midway),
        ONE(test_peer_leaves_idle),
        FOUR(test_peer_leaves_idle),
        ONE(test_messages_survive_leaving),
        FOUR(test_messages_survive_leaving),
        ONE(test_peer_leaves_while_waited_for),
        FOUR(test_peer_leaves_while_waited_for),
        ONE(test_peer_dies_mid_message),
        FOUR(test_peer_dies_mid_message),
        ONE(test_receiver_dies_mid_message),
        FOUR(test_receiver_dies_mid_message),
        ONE(test_connect_refused),
        FOUR(test_connect_refused),
        ONE(test_close_flushes),
        FOUR(test_close_flushes),
        ONE(test_disconnect_fails_pending),
        ONE(test_strangers_are_dropped),
        ONE(test_silent_strangers),
        ONE(test_slow_hello),
        PLAIN(test_malformed_frames),
        PLAIN(test_malformed_pieces),
        PLAIN(test_mutated_streams),
        ONE(test_pieces_out_of_order),
        ONE(test_addresses),
        PLAIN(test_interfaces),
        ONE(test_loopback_of_another_host),
        PLAIN(test_bad_settings),
        PLAIN(test_no_descriptor_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
