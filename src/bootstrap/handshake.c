/*
 * The handshake's messages (handshake.h). Pure functions but for the random bytes; any thread.
 */
#include "bootstrap/handshake.h"

#include "bootstrap/wire.h"
#include "util/bytes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define HELLO_FIXED 16u /* key, rank, size: at the front in all versions */

hora_status_t hora_random_bytes(void *bytes_p, size_t len) {
    size_t have = 0;
    while (have < len) {
        ssize_t n = getrandom((uint8_t *)bytes_p + have, len - have, 0);
        if (n > 0)
            have += (size_t)n;
        else if (errno != EINTR)
            return hora_fail_errno(HORA_ERR_SYSTEM, errno, "random numbers (getrandom)");
    }
    return HORA_OK;
}

void hora_hello_encode(const hora_ticket_t *ticket, const uint8_t nonce[HORA_NONCE_BYTES],
                       uint8_t bytes_p[HORA_HELLO_BYTES]) {
    hora_wire_t w = hora_wire_over(bytes_p, HORA_HELLO_BYTES);
    memset(bytes_p, 0, HORA_HELLO_BYTES);
    hora_wire_put_u64(&w, ticket->key);
    hora_wire_put_u32(&w, (uint32_t)ticket->rank);
    hora_wire_put_u32(&w, (uint32_t)ticket->size);
    hora_wire_put_u32(&w, ticket->secret[0] != '\0');
    hora_wire_put_bytes(&w, nonce, HORA_NONCE_BYTES);
    hora_wire_put_bytes(&w, ticket->host, strnlen(ticket->host, HORA_HOST_MAX - 1));
}

bool hora_hello_decode(const hora_frame_t *frame, hora_hello_t *hello_p) {
    hora_wire_t  w = hora_wire_over(frame->payload, frame->len);
    hora_hello_t hello;
    bool         ours = frame->version == HORA_FRAME_VERSION;
    if (frame->type != HORA_FRAME_HELLO || frame->len < HELLO_FIXED ||
        (ours && frame->len != HORA_HELLO_BYTES))
        return false;
    memset(&hello, 0, sizeof(hello));
    hello.version = frame->version;
    hello.key = hora_wire_get_u64(&w);
    hello.rank = hora_wire_get_i32(&w);
    hello.size = hora_wire_get_i32(&w);
    snprintf(hello.host, sizeof(hello.host), "(unknown)");
    if (ours) {
        memcpy(hello.bytes, frame->payload, HORA_HELLO_BYTES);
        hello.has_secret = hora_wire_get_u32(&w) != 0;
        hora_wire_take(&w, HORA_NONCE_BYTES);
        hora_wire_get_bytes(&w, hello.host, HORA_HOST_MAX);
        hello.host[HORA_HOST_MAX - 1] = '\0';
        hora_text_sanitise(hello.host);
    }
    if (w.bad)
        return false;
    *hello_p = hello;
    return true;
}

static hora_verdict_t refuse(hora_verdict_t verdict, hora_status_t status,
                             hora_status_t *status_p) {
    *status_p = status;
    return verdict;
}

/* What an unproven stranger says must not end a job that has a secret. */
hora_verdict_t hora_hello_judge(const hora_ticket_t *ticket, const hora_hello_t *hello,
                                hora_status_t *status_p, char *text, size_t size) {
    bool           secret = ticket->secret[0] != '\0';
    hora_verdict_t worst = secret ? HORA_VERDICT_REFUSED : HORA_VERDICT_FATAL;
    if (hello->key != ticket->key) {
        snprintf(text, size, "rank 0 at %s on host %s belongs to another job, or to another "
                 "name or copy of libhora in this one", ticket->place, ticket->host);
        return refuse(HORA_VERDICT_STRANGER, HORA_ERR_MISMATCH, status_p);
    }
    if (hello->version != HORA_FRAME_VERSION) {
        snprintf(text, size, "rank %d speaks version %u of hora's handshake, rank 0 on host %s "
                 "version %u: use one version of hora on all ranks",
                 hello->rank, hello->version, ticket->host, HORA_FRAME_VERSION);
        return refuse(worst, HORA_ERR_MISMATCH, status_p);
    }
    if (hello->has_secret != secret) {
        snprintf(text, size, "rank %d on host %s has %s secret and rank 0 on host %s has %s: set "
                 "the same HORA_SECRET on all ranks", hello->rank, hello->host,
                 hello->has_secret ? "a" : "no", ticket->host, secret ? "one" : "none");
        return refuse(HORA_VERDICT_REFUSED, HORA_ERR_AUTHENTICATION, status_p);
    }
    if (hello->size != ticket->size) {
        snprintf(text, size,
                 "rank %d on host %s was started for %d ranks, rank 0 on host %s for %d",
                 hello->rank, hello->host, hello->size, ticket->host, ticket->size);
        return refuse(worst, HORA_ERR_MISMATCH, status_p);
    }
    if (hello->rank < 1 || hello->rank >= ticket->size) {
        snprintf(text, size,
                 "host %s has a rank %d in a job of %d ranks whose rank 0 is on host %s",
                 hello->host, hello->rank, ticket->size, ticket->host);
        return refuse(worst, HORA_ERR_MISMATCH, status_p);
    }
    return HORA_VERDICT_OK;
}

/* The two sides prove different texts, so that neither can send the other's proof back. */
static void prove(const char *secret, const char *side, const uint8_t *hello, const uint8_t *nonce,
                  uint8_t proof_p[HORA_PROOF_BYTES]) {
    uint8_t     text[16 + HORA_HELLO_BYTES + HORA_NONCE_BYTES] = {0};
    hora_wire_t w = hora_wire_over(text, sizeof(text));
    hora_wire_put_bytes(&w, side, strlen(side));
    w.off = 16;
    hora_wire_put_bytes(&w, hello, HORA_HELLO_BYTES);
    hora_wire_put_bytes(&w, nonce, HORA_NONCE_BYTES);
    hora_proof_make(secret, text, sizeof(text), proof_p);
}

static bool proves(const hora_ticket_t *ticket) {
    return ticket->secret[0] != '\0' && !ticket->local;
}

void hora_challenge_encode(const hora_ticket_t *ticket, const hora_hello_t *hello,
                           const uint8_t nonce[HORA_NONCE_BYTES],
                           uint8_t bytes_p[HORA_CHALLENGE_BYTES]) {
    memset(bytes_p, 0, HORA_CHALLENGE_BYTES);
    memcpy(bytes_p, nonce, HORA_NONCE_BYTES);
    if (proves(ticket))
        prove(ticket->secret, "hora rank 0", hello->bytes, nonce, bytes_p + HORA_NONCE_BYTES);
}

bool hora_challenge_check(const hora_ticket_t *ticket, const uint8_t hello[HORA_HELLO_BYTES],
                          const hora_frame_t *frame) {
    uint8_t proof[HORA_PROOF_BYTES];
    if (frame->type != HORA_FRAME_CHALLENGE || frame->len != HORA_CHALLENGE_BYTES)
        return false;
    if (!proves(ticket))
        return true;
    prove(ticket->secret, "hora rank 0", hello, frame->payload, proof);
    return hora_bytes_equal(proof, frame->payload + HORA_NONCE_BYTES, HORA_PROOF_BYTES);
}

size_t hora_proof_encode(const hora_ticket_t *ticket, const uint8_t hello[HORA_HELLO_BYTES],
                         const uint8_t nonce[HORA_NONCE_BYTES], uint8_t *bytes_p) {
    size_t len = strlen(ticket->secret);
    if (proves(ticket)) {
        prove(ticket->secret, "hora rank n", hello, nonce, bytes_p);
        return HORA_PROOF_BYTES;
    }
    memcpy(bytes_p, ticket->secret, len);
    return len;
}

bool hora_proof_check(const hora_ticket_t *ticket, const hora_hello_t *hello,
                      const uint8_t nonce[HORA_NONCE_BYTES], const hora_frame_t *frame) {
    uint8_t proof[HORA_SECRET_MAX];
    size_t  len = hora_proof_encode(ticket, hello->bytes, nonce, proof);
    return frame->type == HORA_FRAME_PROOF && frame->len == len &&
           hora_bytes_equal(proof, frame->payload, len);
}

size_t hora_fail_encode(hora_status_t status, uint32_t flags, const char *text, uint8_t *bytes_p) {
    hora_wire_t w = hora_wire_over(bytes_p, HORA_FAIL_MAX);
    hora_wire_put_u32(&w, (uint32_t)status);
    hora_wire_put_u32(&w, flags);
    hora_wire_put_text(&w, text);
    return w.off;
}

void hora_fail_decode(const hora_frame_t *frame, hora_status_t *status_p, uint32_t *flags_p,
                      char *text, size_t size) {
    hora_wire_t w = hora_wire_over(frame->payload, frame->len);
    int32_t     status = hora_wire_get_i32(&w);
    uint32_t    flags = hora_wire_get_u32(&w);
    hora_wire_get_text(&w, text, size);
    if (w.bad || status > HORA_ERR_INVALID_ARGUMENT || status < HORA_ERR_INTERNAL) {
        status = HORA_ERR_PROTOCOL;
        flags = 0;
        snprintf(text, size, "a malformed report of a failure");
    }
    *status_p = (hora_status_t)status;
    *flags_p = flags;
}
