/*
 * The handshake's bytes, frames over a socket, texts from the wire, host computation.
 */
#include "bootstrap/handshake.h"
#include "bootstrap/roster.h"
#include "bootstrap/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint8_t nonce_a[HORA_NONCE_BYTES] = {1, 2, 3}, nonce_b[HORA_NONCE_BYTES] = {4, 5, 6};

static hora_ticket_t ticket(int rank, const char *secret, bool local) {
    hora_ticket_t t = {.key = 77, .rank = rank, .size = 4, .local = local, .secret = secret,
                       .host = "here", .place = "unix:test"};
    return t;
}

static hora_frame_t frame_of(uint16_t type, void *bytes, size_t len) {
    hora_frame_t f = {HORA_FRAME_VERSION, type, (uint32_t)len, bytes};
    return f;
}

static hora_verdict_t judge(const hora_ticket_t *mine, const hora_ticket_t *theirs,
                            uint16_t version, hora_status_t *status, char *text) {
    uint8_t      bytes[HORA_HELLO_BYTES];
    hora_hello_t hello;
    hora_frame_t f = frame_of(HORA_FRAME_HELLO, bytes, sizeof(bytes));
    f.version = version;
    hora_hello_encode(theirs, nonce_a, bytes);
    assert_true(hora_hello_decode(&f, &hello));
    return hora_hello_judge(mine, &hello, status, text, 512);
}

static void test_judge(void **state) {
    (void)state;
    hora_ticket_t zero = ticket(0, "", true), one = ticket(1, "", true), other = one;
    hora_status_t st = HORA_OK;
    char          text[512];
    assert_int_equal(judge(&zero, &one, 1, &st, text), HORA_VERDICT_OK);
    other.key++;
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_STRANGER);
    assert_int_equal(st, HORA_ERR_MISMATCH);
    other = one;
    other.size = 5;
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_FATAL);
    assert_int_equal(st, HORA_ERR_MISMATCH);
    assert_non_null(strstr(text, "rank 1 on host here was started for 5 ranks"));
    other = one;
    other.rank = 4;
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_FATAL);
    other.rank = 0;
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_FATAL);
    other.rank = -3;
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_FATAL);
    assert_int_equal(judge(&zero, &one, 9, &st, text), HORA_VERDICT_FATAL);
    assert_non_null(strstr(text, "version 9"));
    other = ticket(1, "s", true);
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_REFUSED);
    assert_int_equal(st, HORA_ERR_AUTHENTICATION);
    /* With a secret, nobody unproven can end the job. */
    zero.secret = "s";
    other.size = 5;
    assert_int_equal(judge(&zero, &other, 1, &st, text), HORA_VERDICT_REFUSED);
    assert_int_equal(judge(&zero, &other, 9, &st, text), HORA_VERDICT_REFUSED);
}

static void test_hello_malformed(void **state) {
    (void)state;
    uint8_t       bytes[HORA_HELLO_BYTES + 1];
    hora_hello_t  hello;
    hora_ticket_t t = ticket(1, "", true);
    memset(t.host, 'h', sizeof(t.host)); /* no end: cut */
    hora_hello_encode(&t, nonce_a, bytes);
    for (size_t len = 0; len <= sizeof(bytes); len++) {
        hora_frame_t f = frame_of(HORA_FRAME_HELLO, bytes, len);
        assert_int_equal(hora_hello_decode(&f, &hello), len == HORA_HELLO_BYTES);
    }
    assert_int_equal(strlen(hello.host), HORA_HOST_MAX - 1);
    memset(bytes + 52, 0x1b, HORA_HOST_MAX); /* escapes: not for a terminal */
    hora_frame_t f = frame_of(HORA_FRAME_HELLO, bytes, HORA_HELLO_BYTES);
    assert_true(hora_hello_decode(&f, &hello));
    assert_null(strchr(hello.host, 0x1b));
    f.type = HORA_FRAME_PROOF;
    assert_false(hora_hello_decode(&f, &hello));
}

/* One whole exchange. Bits: 1: the client believes rank 0; 2: rank 0 believes the client. */
static int exchange(const char *secret_0, const char *secret_1, bool local) {
    hora_ticket_t zero = ticket(0, secret_0, local), one = ticket(1, secret_1, local);
    uint8_t       hello_bytes[HORA_HELLO_BYTES], challenge[HORA_CHALLENGE_BYTES];
    uint8_t       proof[HORA_SECRET_MAX];
    hora_hello_t  hello;
    hora_frame_t  f = frame_of(HORA_FRAME_HELLO, hello_bytes, sizeof(hello_bytes));
    int           believed = 0;
    hora_hello_encode(&one, nonce_a, hello_bytes);
    assert_true(hora_hello_decode(&f, &hello));
    hora_challenge_encode(&zero, &hello, nonce_b, challenge);
    f = frame_of(HORA_FRAME_CHALLENGE, challenge, sizeof(challenge));
    believed |= hora_challenge_check(&one, hello_bytes, &f);
    size_t len = hora_proof_encode(&one, hello_bytes, challenge, proof);
    f = frame_of(HORA_FRAME_PROOF, proof, len);
    return believed | hora_proof_check(&zero, &hello, nonce_b, &f) << 1;
}

static void test_proofs(void **state) {
    (void)state;
    assert_int_equal(exchange("", "", true), 3);
    assert_int_equal(exchange("", "", false), 3);
    assert_int_equal(exchange("secret", "secret", true), 3);
    assert_int_equal(exchange("secret", "Secret", true), 1); /* the kernel vouches for rank 0 */
    assert_int_equal(exchange("secret", "secret1", true), 1);
    if (hora_proof_available() != HORA_OK)
        return;
    assert_int_equal(exchange("secret", "secret", false), 3);
    assert_int_equal(exchange("secret", "Secret", false), 0);
    assert_int_equal(exchange("a", "b", false), 0);
}

/* A proof is good for one nonce, one rank and one direction. */
static void test_proof_binding(void **state) {
    (void)state;
    hora_ticket_t zero = ticket(0, "secret", false), one = ticket(1, "secret", false), two = one;
    uint8_t       bytes_1[HORA_HELLO_BYTES], bytes_2[HORA_HELLO_BYTES], proof[HORA_SECRET_MAX];
    uint8_t       challenge[HORA_CHALLENGE_BYTES];
    hora_hello_t  hello;
    if (hora_proof_available() != HORA_OK)
        skip();
    two.rank = 2;
    hora_hello_encode(&one, nonce_a, bytes_1);
    hora_hello_encode(&two, nonce_a, bytes_2);
    hora_frame_t f = frame_of(HORA_FRAME_HELLO, bytes_1, sizeof(bytes_1));
    assert_true(hora_hello_decode(&f, &hello));
    size_t len = hora_proof_encode(&one, bytes_1, nonce_b, proof);
    f = frame_of(HORA_FRAME_PROOF, proof, len);
    assert_true(hora_proof_check(&zero, &hello, nonce_b, &f));
    assert_false(hora_proof_check(&zero, &hello, nonce_a, &f));
    f.len--;
    assert_false(hora_proof_check(&zero, &hello, nonce_b, &f));
    len = hora_proof_encode(&two, bytes_2, nonce_b, proof);
    f = frame_of(HORA_FRAME_PROOF, proof, len);
    assert_false(hora_proof_check(&zero, &hello, nonce_b, &f));
    hora_challenge_encode(&zero, &hello, nonce_b, challenge); /* reflected */
    f = frame_of(HORA_FRAME_PROOF, challenge + HORA_NONCE_BYTES, HORA_PROOF_BYTES);
    assert_false(hora_proof_check(&zero, &hello, nonce_b, &f));
}

static void test_fail(void **state) {
    (void)state;
    uint8_t       bytes[HORA_FAIL_MAX];
    char          text[64];
    hora_status_t st;
    uint32_t      flags;
    size_t        len = hora_fail_encode(HORA_ERR_TIMEOUT, 1, "late\n\x1b[1m", bytes);
    hora_frame_t  f = frame_of(HORA_FRAME_FAIL, bytes, len);
    hora_fail_decode(&f, &st, &flags, text, sizeof(text));
    assert_int_equal(st, HORA_ERR_TIMEOUT);
    assert_int_equal(flags, 1);
    assert_string_equal(text, "late??[1m");
    for (f.len = 0; f.len < len; f.len++) {
        hora_fail_decode(&f, &st, &flags, text, sizeof(text));
        assert_int_equal(st, HORA_ERR_PROTOCOL);
    }
    bytes[0] = bytes[1] = bytes[2] = bytes[3] = 0; /* "failed with success" */
    f.len = (uint32_t)len;
    hora_fail_decode(&f, &st, &flags, text, sizeof(text));
    assert_int_equal(st, HORA_ERR_PROTOCOL);
}

static void expect_clean(const char *in, const char *out) {
    char text[64];
    snprintf(text, sizeof(text), "%s", in);
    hora_text_sanitise(text);
    assert_string_equal(text, out);
}

static void test_sanitise(void **state) {
    (void)state;
    expect_clean("plain", "plain");
    expect_clean("gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f");
    expect_clean("\xe4\xb8\xad\xf0\x9f\x92\x83", "\xe4\xb8\xad\xf0\x9f\x92\x83");
    expect_clean("a\x07\x7f", "a??");
    expect_clean("\xc2\x9b" "1m", "??1m");     /* a control in two bytes */
    expect_clean("\xc0\xaf", "??");            /* overlong */
    expect_clean("\xed\xa0\x80", "???");       /* half of a surrogate pair */
    expect_clean("\xe2\x80\xae", "???");       /* turns the line round */
    expect_clean("\xe4\xb8", "??");            /* cut */
    expect_clean("\xf5\x80\x80\x80", "????");
}

static void test_wire(void **state) {
    (void)state;
    uint8_t     bytes[16];
    char        text[8];
    hora_wire_t w = hora_wire_over(bytes, sizeof(bytes));
    hora_wire_put_u16(&w, 0x1234);
    hora_wire_put_u64(&w, 0x1122334455667788u);
    hora_wire_put_text(&w, "longer than the room");
    assert_false(w.bad);
    assert_int_equal(w.off, 16);
    hora_wire_put_u16(&w, 1);
    assert_true(w.bad);
    w = hora_wire_over(bytes, sizeof(bytes));
    assert_int_equal(hora_wire_get_u16(&w), 0x1234);
    assert_true(hora_wire_get_u64(&w) == 0x1122334455667788u);
    hora_wire_get_text(&w, text, sizeof(text));
    assert_string_equal(text, "long");
    bytes[10] = 5; /* claims more than there is */
    w.off = 10;
    hora_wire_get_text(&w, text, sizeof(text));
    assert_true(w.bad);
    assert_string_equal(text, "");
    assert_int_equal(hora_wire_get_u32(&w), 0);
}

/* ---- frames ---------------------------------------------------------------------------------- */

static void test_frames(void **state) {
    (void)state;
    int         s[2];
    hora_conn_t a, b;
    hora_frame_t f;
    uint8_t      big[100000];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
    hora_conn_init(&a, s[0], 1, 64);
    hora_conn_init(&b, s[1], 0, 64);
    assert_int_equal(hora_conn_read(&b, &f), HORA_READ_NOTHING);
    assert_true(hora_conn_queue(&a, 5, "xyz", 3));
    assert_true(hora_conn_queue(&a, 6, NULL, 0));
    assert_true(hora_conn_flush(&a));
    assert_int_equal(hora_conn_read(&b, &f), HORA_READ_FRAME);
    assert_int_equal(f.type, 5);
    assert_memory_equal(f.payload, "xyz", 3);
    assert_int_equal(hora_conn_read(&b, &f), HORA_READ_FRAME);
    assert_int_equal(f.len, 0);
    assert_int_equal(hora_conn_read(&b, &f), HORA_READ_NOTHING);
    /* One that does not read: the queue has an end, and no call waits. */
    int queued = 0;
    while (queued < 10000 && hora_conn_queue(&a, 5, big, 1000) && hora_conn_flush(&a))
        queued++;
    assert_true(queued > 0 && queued < 10000);
    assert_int_equal(hora_conn_read(&b, &f), HORA_READ_BAD); /* 1000 > 64 */
    hora_conn_close(&b);
    hora_conn_close(&a);
    assert_int_equal(a.fd, -1);
    assert_int_equal(a.rank, 1);
}

/* Byte by byte, then garbage of every kind. */
static void test_frames_malformed(void **state) {
    (void)state;
    static const uint8_t good[] = {'h', 'o', 'r', 'a', 1, 0, 5, 0, 2, 0, 0, 0, 'o', 'k'};
    uint8_t              bad[sizeof(good)];
    hora_frame_t         f;
    for (size_t flip = 0; flip <= sizeof(good); flip++) {
        int         s[2];
        hora_conn_t c;
        hora_read_t got = HORA_READ_NOTHING;
        memcpy(bad, good, sizeof(good));
        if (flip < 12)
            bad[flip] ^= 0x80;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
        hora_conn_init(&c, s[1], 0, 64);
        for (size_t i = 0; i < sizeof(bad) && got == HORA_READ_NOTHING; i++) {
            assert_int_equal(write(s[0], &bad[i], 1), 1);
            got = hora_conn_read(&c, &f);
        }
        bool type_only = flip == 6 || flip == 7;
        assert_int_equal(got, flip >= 12 || type_only ? HORA_READ_FRAME : HORA_READ_BAD);
        close(s[0]);
        if (got == HORA_READ_FRAME)
            assert_int_equal(hora_conn_read(&c, &f), HORA_READ_END);
        hora_conn_close(&c);
    }
}

/* ---- roster ---------------------------------------------------------------------------------- */

static void test_roster(void **state) {
    (void)state;
    /* Ranks 0 2 3 5 on host A, 1 4 on host B, 6 on host C. */
    static const uint64_t hosts[] = {1, 2, 1, 1, 2, 1, 3};
    static const int      local_ranks[] = {0, 0, 1, 2, 1, 3, 0};
    hora_card_t           cards[7];
    hora_world_t         *world;
    memset(cards, 0, sizeof(cards));
    for (int r = 0; r < 7; r++) {
        cards[r].host_id = hosts[r];
        snprintf(cards[r].host, sizeof(cards[r].host), "h%d", (int)hosts[r]);
    }
    assert_int_equal(hora_world_create(4, 7, &world), HORA_OK);
    hora_roster_fill(world, cards);
    for (int r = 0; r < 7; r++) {
        assert_int_equal(world->peers[r].local_rank, local_ranks[r]);
        assert_int_equal(world->peers[r].cross_rank, hosts[r] - 1);
        assert_int_equal(world->peers[r].local, hosts[r] == 2 ? local_ranks[r] : -1);
    }
    assert_int_equal(world->local_size, 2);
    assert_int_equal(world->local_rank, 1);
    assert_int_equal(world->cross_size, 2); /* of local rank 1: ranks 2 and 4 */
    assert_int_equal(world->cross_rank, 1);
    hora_world_destroy(world);
}

static void test_card(void **state) {
    (void)state;
    hora_card_t card = {.host_id = 1u << 31, .host = "h", .socket = "s",
                        .transport = "shm"};
    hora_card_t back;
    uint8_t     bytes[HORA_BLOB_MAX];
    size_t      len = hora_card_encode(&card, bytes);
    assert_true(hora_card_decode(bytes, len, &back));
    assert_string_equal(back.transport, "shm");
    for (size_t cut = 0; cut < len; cut++)
        assert_false(hora_card_decode(bytes, cut, &back));
    assert_false(hora_card_decode(bytes, len + 1, &back));
}

static void test_ranks_text(void **state) {
    (void)state;
    uint8_t flags[100] = {0};
    char    text[256];
    flags[2] = 1;
    hora_ranks_write(flags, 100, 1, text, sizeof(text));
    assert_string_equal(text, "2");
    flags[5] = flags[7] = 1;
    hora_ranks_write(flags, 100, 1, text, sizeof(text));
    assert_string_equal(text, "2, 5 and 7");
    hora_ranks_write(flags, 100, 0, text, sizeof(text));
    assert_non_null(strstr(text, " and 81 more"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_judge),         cmocka_unit_test(test_hello_malformed),
        cmocka_unit_test(test_proofs),        cmocka_unit_test(test_proof_binding),
        cmocka_unit_test(test_fail),          cmocka_unit_test(test_sanitise),
        cmocka_unit_test(test_wire),          cmocka_unit_test(test_frames),
        cmocka_unit_test(test_frames_malformed), cmocka_unit_test(test_roster),
        cmocka_unit_test(test_card),          cmocka_unit_test(test_ranks_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
