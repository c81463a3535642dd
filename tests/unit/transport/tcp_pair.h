/*
 * Two ranks in one process, each with a TCP transport over a world made by hand, driven by turns.
 */
#ifndef HORA_TESTS_TCP_PAIR_H
#define HORA_TESTS_TCP_PAIR_H

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

static inline void world_make(side_t *s, int rank, int connections) {
    memset(s, 0, sizeof(*s));
    s->world.rank = rank;
    s->world.size = s->world.local_size = 2;
    s->world.peers = s->peers;
    s->world.settings.tcp_connections = connections;
    s->world.settings.start_timeout = 5;
    snprintf(s->world.settings.tcp_congestion, HORA_SETTING_STRING_MAX, "auto");
    snprintf(s->peers[0].host, HORA_HOST_MAX, "alpha");
    snprintf(s->peers[1].host, HORA_HOST_MAX, "beta");
    s->peers[1].local = 1;
}

static inline void side_open(side_t *s) {
    s->blob_len = sizeof(s->blob);
    assert_int_equal(ops->open(&s->world, &s->t), HORA_OK);
    assert_int_equal(ops->address(s->t, s->blob, &s->blob_len), HORA_OK);
}

static inline void pair_open(int connections) {
    world_make(&A, 0, connections);
    world_make(&B, 1, connections);
    side_open(&A);
    side_open(&B);
    assert_true(ops->reachable(A.t, 1, B.blob, B.blob_len));
    assert_int_equal(ops->connect(A.t, 1, B.blob, B.blob_len, &A.link), HORA_OK);
    assert_int_equal(ops->connect(B.t, 0, A.blob, A.blob_len, &B.link), HORA_OK);
}

static inline void side_close(side_t *s) {
    if (s->t != NULL)
        ops->close(s->t);
    s->t = NULL;
}

static inline int open_one(void **state) {
    (void)state;
    pair_open(1);
    return 0;
}

static inline int open_four(void **state) {
    (void)state;
    pair_open(4);
    return 0;
}

static inline int teardown(void **state) {
    (void)state;
    side_close(&A);
    side_close(&B);
    return 0;
}

static inline unsigned turn(void) {
    unsigned n = A.t != NULL ? ops->progress(A.t, NULL) : 0;
    return n + (B.t != NULL ? ops->progress(B.t, NULL) : 0);
}

/* Drives both until the transfer is done. */
static inline hora_status_t finish(hora_xfer_t *x) {
    uint64_t deadline = hora_clock_ns() + LIMIT_NS;
    while (x->status == HORA_IN_PROGRESS && hora_clock_ns() < deadline)
        turn();
    return x->status;
}

static inline void drive_for(uint64_t ms) {
    uint64_t deadline = hora_clock_ns() + ms * 1000000u;
    while (hora_clock_ns() < deadline)
        turn();
}

static inline hora_xfer_t xfer(void *buf, size_t len, uint64_t tag) {
    return (hora_xfer_t){.buf = buf, .len = len, .tag = tag};
}

static inline void *filled(size_t len, uint32_t seed) {
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

static inline uint8_t *empty(size_t len) {
    uint8_t *p = malloc(len + 1);
    assert_non_null(p);
    memset(p, 0xdd, len);
    p[len] = 0xcc;
    return p;
}

static inline void assert_same(const uint8_t *got, const uint8_t *expected, size_t len) {
    assert_int_equal(memcmp(got, expected, len), 0);
    assert_int_equal(got[len], 0xcc); /* not one byte more */
}

/* One message from one side to the other; the receive is posted before or after. */
static inline void exchange(side_t *from, side_t *to, size_t len, bool receive_first) {
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

#define ONE(f)   cmocka_unit_test_setup_teardown(f, open_one, teardown)
#define FOUR(f)  {#f " (4 connections)", f, open_four, teardown, NULL}
#define PLAIN(f) cmocka_unit_test_teardown(f, teardown)

#endif
