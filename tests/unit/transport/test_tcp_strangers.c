/*
 * The TCP transport and those who mean no good, who are plain sockets here; and addresses.
 */
#include "tcp_pair.h"

#include <netinet/tcp.h>

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
        {1, 0, UINT64_MAX, 0, 8, 0, 0},               /* huge message */
        {1, 0, (uint64_t)1 << 47, 0, 1 << 20, 0, 0},  /* possible, but not to be had */
        {1, 0, 8, 9, 1, 0, 0},                        /* begins beyond the end */
        {1, 0, 8, UINT64_MAX, 8, 0, 0},               /* offset + len wraps */
        {1, 0, 8, 0, 9, 0, 0},                        /* longer than its message */
        {1, 0, 8, 0, 0, 0, 0},                        /* empty frame of a message that is not */
        {1, 0, 8, 0, 8, 0, 0x10000},                  /* no core has such a number */
        {1, 5, 8, 0, 8, 0, 0},                        /* messages left out */
        {1, 0, (uint64_t)1 << 40, 0, 0x80000000u, 0, 0}, /* longer than a frame may be */
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

/* Somebody who only pretends to be rank 1: a plain socket. Takes A's connection; A has sent `s`. */
static int false_rank(hora_xfer_t *s, int *listener_p) {
    hora_tcp_address_t address = {.len = sizeof(address.sa), .token = {7}};
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint8_t            blob[HORA_TCP_ADDRESS_SIZE];
    int                fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&here, sizeof(here)), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address.sa, &address.len), 0);
    hora_tcp_address_encode(&address, blob);
    assert_int_equal(ops->connect(A.t, 1, blob, sizeof(blob), &A.link), HORA_OK);
    ops->send(A.link, s);
    assert_int_equal(finish(s), HORA_OK);
    *listener_p = fd;
    return accept(fd, NULL, NULL);
}

/* Who answers on a connection that A has opened must know A's word, too. */
static void test_answer_without_the_word(void **state) {
    (void)state;
    for (int fault = 0; fault < 4; fault++) {
        static const hora_tcp_header_t frame = {2, 0, 8, 0, 8, 0, 0};
        uint8_t          bytes[HORA_TCP_HELLO_SIZE + HORA_TCP_HEADER_SIZE + 8] = {0};
        char             buf[8], got[8] = "";
        hora_tcp_hello_t hello;
        hora_xfer_t      s = xfer(buf, 8, 1), r = xfer(got, 8, 2);
        int              listener;
        world_make(&A, 0, 1);
        side_open(&A);
        int fd = false_rank(&s, &listener);
        ops->recv(A.link, &r);
        hello_of(&A, &hello);
        hello.token[3] ^= fault == 1;
        hello.rank = fault == 2 ? 0 : 1;
        hello.version += fault == 3;
        hora_tcp_hello_encode(&hello, bytes);
        hora_tcp_header_encode(&frame, bytes + HORA_TCP_HELLO_SIZE);
        memcpy(bytes + HORA_TCP_HELLO_SIZE + HORA_TCP_HEADER_SIZE, "answer!", 8);
        put(fd, bytes, 40);
        drive_for(1);
        put(fd, bytes + 40, sizeof(bytes) - 40);
        assert_int_equal(finish(&r), fault == 0 ? HORA_OK : HORA_ERR_PROTOCOL);
        assert_string_equal(got, fault == 0 ? "answer!" : "");
        close(fd);
        close(listener);
        side_close(&A);
    }
}

/* Frames of one message that overlap, or change their mind about it. */
static void test_malformed_pieces(void **state) {
    static const hora_tcp_header_t first = {1, 0, 64, 0, 32, 0, 0};
    static const hora_tcp_header_t second[] = {
        {1, 0, 64, 0, 40, 0, 0}, /* more bytes than the message has */
        {1, 0, 72, 32, 32, 0, 0}, /* another length */
        {2, 0, 64, 32, 32, 0, 0}, /* another tag */
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
            hora_tcp_header_t h = {i % 3, i, 40, 0, 40, 0, 0};
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
    hora_tcp_header_t h[3] = {{7, 1, 0, 0, 0, 0, 0}, {1, 0, 100, 60, 40, 0, 0},
                              {1, 0, 100, 0, 60, 0, 0}};
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

/* Of a link on which nothing comes any more, and whose sends wait for the peer: the nearest deadline counts. */
static uint64_t tick_while_blocked(hora_tcp_link_t *link, int fd) {
    hora_tcp_conn_t conn = {.source = {.fd = fd}};
    hora_tcp_out_t  out = {.conn = &conn, .link = link, .blocked = true};
    uint64_t        want;
    link->out[0] = &out;
    want = hora_tcp_link_tick(link, link->ended);
    link->out[0] = NULL;
    return want;
}

/* Of two connections one ends before the other has said hello: its message still counts. */
static void test_hello_after_the_end(void **state) {
    uint8_t           bytes[HORA_TCP_HEADER_SIZE], hello_bytes[HORA_TCP_HELLO_SIZE];
    hora_tcp_hello_t  hello;
    hora_tcp_header_t header = {7, 0, 3, 0, 3, 0, 0};
    char              got[4] = "";
    hora_xfer_t       r = xfer(got, 3, 7), none = xfer(got, 3, 7);
    int               fd[2] = {stranger(&A), stranger(&A)};
    (void)state;
    hello_of(&A, &hello);
    hello.count = 2;
    hora_tcp_hello_encode(&hello, hello_bytes);
    put(fd[0], hello_bytes, sizeof(hello_bytes));
    drive_for(5);
    ops->recv(A.link, &r);
    close(fd[0]); /* both can be seen at once, and the end is seen first */
    hello.index = 1;
    hora_tcp_hello_encode(&hello, hello_bytes);
    put(fd[1], hello_bytes, sizeof(hello_bytes));
    hora_tcp_header_encode(&header, bytes);
    put(fd[1], bytes, sizeof(bytes));
    put(fd[1], "abc", 3);
    assert_int_equal(finish(&r), HORA_OK);
    assert_string_equal(got, "abc");
    ops->recv(A.link, &none);
    close(fd[1]);
    assert_int_equal(finish(&none), HORA_ERR_PEER_FAILED);
}

/* Sends that wait do not put that off. */
static void test_end_while_blocked(void **state) {
    hora_tcp_link_t *link = (hora_tcp_link_t *)A.link;
    int              fd = stranger(&A);
    (void)state;
    link->ended = hora_clock_ns();
    assert_int_equal(tick_while_blocked(link, fd), HORA_TCP_END_NS);
    close(fd);
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

static struct sockaddr_storage v4(const char *text) {
    struct sockaddr_storage sa = {.ss_family = AF_INET};
    assert_int_equal(inet_pton(AF_INET, text, &((struct sockaddr_in *)&sa)->sin_addr), 1);
    return sa;
}

static bool is_near(const char *mine, const char *mask, const char *to) {
    hora_tcp_interface_t    from = {.sa = v4(mine)};
    struct sockaddr_storage there = v4(to);
    if (mask != NULL)
        from.mask = v4(mask);
    return hora_tcp_is_near(&from, &there);
}

static void test_near(void **state) {
    hora_tcp_interface_t    from = {.sa = v4("10.1.2.3"), .mask = v4("255.255.255.0")};
    struct sockaddr_storage v6 = {.ss_family = AF_INET6};
    (void)state;
    assert_true(is_near("10.1.2.3", "255.255.255.0", "10.1.2.200"));
    assert_false(is_near("10.1.2.3", "255.255.255.0", "10.1.3.3"));
    assert_true(is_near("10.1.2.3", "255.255.254.0", "10.1.3.3"));
    assert_true(is_near("10.1.2.3", NULL, "127.0.0.1"));
    assert_true(is_near("10.1.2.3", NULL, "10.1.2.3"));
    assert_false(is_near("10.1.2.3", NULL, "10.1.2.4")); /* its network is not known */
    assert_false(is_near("10.1.2.3", "0.0.0.0", "10.1.2.4"));
    ((struct sockaddr_in6 *)&v6)->sin6_addr.s6_addr[0] = 0x20;
    assert_false(hora_tcp_is_near(&from, &v6));
}

/* What the kernel says that the first connection to B uses. */
static void congestion_of_a(char name[32]) {
    hora_tcp_link_t *link = (hora_tcp_link_t *)A.link;
    socklen_t        len = 31;
    memset(name, 0, 32);
    exchange(&A, &B, 8, true);
    int fd = link->out[0]->conn->source.fd;
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len), 0);
}

static void test_congestion(void **state) {
    char name[32];
    (void)state;
    congestion_of_a(name);
    assert_string_not_equal(name, "bbr"); /* to this very host it has no place */
    side_close(&A);
    side_close(&B);
    world_make(&A, 0, 1);
    snprintf(A.world.settings.tcp_congestion, HORA_SETTING_STRING_MAX, "nosuch");
    assert_int_equal(ops->open(&A.world, &A.t), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "HORA_TCP_CONGESTION=nosuch"));
    pair_open(1);
    snprintf(A.world.settings.tcp_congestion, HORA_SETTING_STRING_MAX, "reno");
    congestion_of_a(name);
    assert_string_equal(name, "reno");
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

int main(void) {
    const struct CMUnitTest tests[] = {
        ONE(test_strangers_are_dropped),
        ONE(test_silent_strangers),
        ONE(test_slow_hello),
        PLAIN(test_malformed_frames),
        PLAIN(test_answer_without_the_word),
        PLAIN(test_malformed_pieces),
        PLAIN(test_mutated_streams),
        ONE(test_pieces_out_of_order),
        ONE(test_hello_after_the_end),
        ONE(test_end_while_blocked),
        ONE(test_addresses),
        PLAIN(test_interfaces),
        PLAIN(test_near),
        ONE(test_congestion),
        ONE(test_loopback_of_another_host),
        PLAIN(test_bad_settings),
        PLAIN(test_no_descriptor_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
