/*
 * The TCP transport between two ranks: messages, cancelling, and what happens when a rank goes.
 */
#include "tcp_pair.h"

/* ---- Messages ---- */

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

/* Ranks of one host tell each other their core; those of others do not. */
static void test_core(void **state) {
    hora_bell_t bell;
    (void)state;
    memset(&bell, 0, sizeof(bell));
    A.world.bell = &bell;
    A.world.has_cores = true;
    exchange(&A, &B, 8, true);
    assert_int_equal(atomic_load(&B.peers[0].core), atomic_load(&bell.core));
    assert_true(atomic_load(&bell.core) > 0);
    B.peers[0].local = -1;
    atomic_store(&B.peers[0].core, 0);
    exchange(&A, &B, 8, true);
    assert_int_equal(atomic_load(&B.peers[0].core), 0);
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
    ops->progress(B.t, NULL);
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
            ops->progress(A.t, NULL);
        if (p[1].revents)
            ops->progress(B.t, NULL);
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

/* The higher rank's short messages go back over the lower one's connection, the long ones do not; what
 * goes which way is matched in the order in which it was sent. */
static void test_way_back(void **state) {
    enum { N = 24 };
    static const size_t length[] = {8, 100000, 0, 16384, 1u << 20, 3};
    uint8_t            *in[N], *out[N];
    hora_xfer_t         s[N], r[N];
    (void)state;
    exchange(&A, &B, 8, true);
    exchange(&B, &A, 8, true);
    hora_tcp_link_t *link = (hora_tcp_link_t *)B.link;
    assert_non_null(link->out[HORA_TCP_BACK]);
    assert_int_equal(link->out_count, 0); /* it needed none of its own */
    for (uint32_t i = 0; i < N; i++) {
        size_t len = length[i % 6];
        in[i] = filled(len, i);
        out[i] = empty(len);
        s[i] = xfer(in[i], len, 5);
        r[i] = xfer(out[i], len, 5);
        ops->send(B.link, &s[i]);
        if (i % 7 == 0)
            turn();
    }
    assert_true(link->out_count > 0);
    for (int i = 0; i < N; i++) {
        ops->recv(A.link, &r[i]);
        exchange(&A, &B, 64, i % 2);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(finish(&r[i]), HORA_OK);
        assert_int_equal(finish(&s[i]), HORA_OK);
        assert_same(out[i], in[i], s[i].len);
        free(in[i]);
        free(out[i]);
    }
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
    assert_int_equal(finish(&r), HORA_ERR_PEER_FAILED);
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
        ops->progress(B.t, NULL);
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

/* Although the one that left has not read what came to it, and more is under way than A's kernel takes. */
static void test_messages_survive_a_deaf_leaver(void **state) {
    enum { N = 60, LEN = 16384 };
    static uint8_t     in[N][LEN], out[N][LEN];
    static hora_xfer_t s[N], r[N];
    hora_xfer_t        lost = xfer(out, 2000, 9);
    (void)state;
    exchange(&A, &B, 8, true);
    exchange(&B, &A, 8, true);
    ops->send(A.link, &lost);
    for (int i = 0; i < N; i++) {
        memset(in[i], i + 1, LEN);
        s[i] = xfer(in[i], LEN, 1);
        ops->send(B.link, &s[i]);
    }
    side_close(&B);
    for (int i = 0; i < N; i++) {
        assert_int_equal(s[i].status, HORA_OK);
        r[i] = xfer(out[i], LEN, 1);
        ops->recv(A.link, &r[i]);
        assert_int_equal(finish(&r[i]), HORA_OK);
        assert_memory_equal(out[i], in[i], LEN);
    }
}

/* Nobody has received from it yet, and A sends to it, in vain. */
static void test_waiting_messages_survive_leaving(void **state) {
    size_t      len = 200000;
    uint8_t    *in = filled(len, 9), *out = empty(len);
    char        small[4] = "abc", got[4] = "", vain[2][8];
    hora_xfer_t s1 = xfer(in, len, 1), s2 = xfer(small, 4, 2);
    hora_xfer_t r1 = xfer(out, len, 1), r2 = xfer(got, 4, 2), r3 = xfer(got, 4, 2);
    hora_xfer_t lost[2] = {xfer(vain[0], 8, 3), xfer(vain[1], 8, 3)};
    (void)state;
    exchange(&A, &B, 8, true);
    exchange(&B, &A, 8, true);
    ops->send(B.link, &s1);
    ops->send(B.link, &s2);
    assert_int_equal(finish(&s2), HORA_OK);
    assert_int_equal(finish(&s1), HORA_OK);
    drive_for(2);
    assert_true(((hora_tcp_link_t *)A.link)->stalled > 0);
    side_close(&B);
    for (int i = 0; i < 2; i++) {
        drive_for(2);
        ops->send(A.link, &lost[i]);
    }
    drive_for(2);
    ops->recv(A.link, &r2);
    ops->recv(A.link, &r1);
    assert_int_equal(finish(&r1), HORA_OK);
    assert_same(out, in, len);
    assert_int_equal(finish(&r2), HORA_OK);
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
    assert_int_equal(finish(&r), HORA_ERR_PEER_FAILED); /* unless it had opened one */
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

int main(void) {
    const struct CMUnitTest tests[] = {
        ONE(test_core),
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
        ONE(test_way_back),
        FOUR(test_way_back),
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
        ONE(test_messages_survive_a_deaf_leaver),
        FOUR(test_messages_survive_leaving),
        ONE(test_waiting_messages_survive_leaving),
        FOUR(test_waiting_messages_survive_leaving),
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
