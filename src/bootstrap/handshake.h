/*
 * The handshake: how a rank shows rank 0 that it belongs to the job, as pure functions of bytes.
 *
 *     rank r                              rank 0
 *     HELLO      key, rank, size, nonce, host  ->
 *                                    <-   CHALLENGE  nonce, proof   (or FAIL)
 *     PROOF      proof | the secret | nothing  ->
 *                                    <-   WELCOME    when all ranks are there (or FAIL)
 *
 * Over TCP with a secret both prove to know it, by HMAC over the HELLO and both nonces. Over a unix
 * socket the kernel has vouched for the user, and the secret itself is shown. Without a secret the
 * key keeps jobs apart that meet by accident, and nothing more.
 */
#ifndef HORA_BOOTSTRAP_HANDSHAKE_H
#define HORA_BOOTSTRAP_HANDSHAKE_H

#include "bootstrap/conn.h"
#include "bootstrap/proof.h"
#include "transport/world.h"

#define HORA_HELLO_BYTES     116u /* payloads; each at most 116, so that a stranger is heard for */
#define HORA_CHALLENGE_BYTES 64u  /* at most 256 bytes in all */
#define HORA_SECRET_MAX      116u
#define HORA_FAIL_MAX        2048u

/* What a rank brings to the rendezvous. */
typedef struct hora_ticket {
    uint64_t    key; /* of the job and of this joining */
    int         rank, size;
    bool        local;  /* over a unix socket */
    const char *secret; /* "": none */
    char        host[HORA_HOST_MAX];
    const char *place; /* for messages */
} hora_ticket_t;

typedef struct hora_hello {
    uint16_t version;
    uint64_t key;
    int      rank, size;
    bool     has_secret;
    char     host[HORA_HOST_MAX];
    uint8_t  bytes[HORA_HELLO_BYTES]; /* as they came: part of the proofs */
} hora_hello_t;

/* From the kernel; fails only where the system call is forbidden. */
hora_status_t hora_random_bytes(void *bytes_p, size_t len);

void hora_hello_encode(const hora_ticket_t *ticket, const uint8_t nonce[HORA_NONCE_BYTES],
                       uint8_t bytes_p[HORA_HELLO_BYTES]);
/* False if it is malformed. A hello of another version has only version, key, rank and size. */
bool hora_hello_decode(const hora_frame_t *frame, hora_hello_t *hello_p);

typedef enum hora_verdict {
    HORA_VERDICT_OK,
    HORA_VERDICT_STRANGER, /* of another job: refuse it and forget it */
    HORA_VERDICT_REFUSED,  /* of this job, it seems, but it may not join; the job goes on */
    HORA_VERDICT_FATAL     /* of this job, and the job cannot start like this */
} hora_verdict_t;

/* Rank 0 judges a hello. On anything but OK, text has the reason and *status_p the status. */
hora_verdict_t hora_hello_judge(const hora_ticket_t *ticket, const hora_hello_t *hello,
                                hora_status_t *status_p, char *text, size_t size);

void hora_challenge_encode(const hora_ticket_t *ticket, const hora_hello_t *hello,
                           const uint8_t nonce[HORA_NONCE_BYTES],
                           uint8_t bytes_p[HORA_CHALLENGE_BYTES]);
/* Does this challenge come from one who knows the secret? hello: the bytes that I sent. */
bool hora_challenge_check(const hora_ticket_t *ticket, const uint8_t hello[HORA_HELLO_BYTES],
                          const hora_frame_t *frame);

/* bytes_p has room for HORA_SECRET_MAX; returns the length. */
size_t hora_proof_encode(const hora_ticket_t *ticket, const uint8_t hello[HORA_HELLO_BYTES],
                         const uint8_t nonce[HORA_NONCE_BYTES], uint8_t *bytes_p);
bool   hora_proof_check(const hora_ticket_t *ticket, const hora_hello_t *hello,
                        const uint8_t nonce[HORA_NONCE_BYTES], const hora_frame_t *frame);

#define HORA_FAIL_ELSEWHERE 1u /* flag: not your job; look on */

/* bytes_p has room for HORA_FAIL_MAX; returns the length. */
size_t hora_fail_encode(hora_status_t status, uint32_t flags, const char *text, uint8_t *bytes_p);
/* Never succeeds in returning HORA_OK as a status; a malformed one is HORA_ERR_PROTOCOL. */
void hora_fail_decode(const hora_frame_t *frame, hora_status_t *status_p, uint32_t *flags_p,
                      char *text, size_t size);

#endif
