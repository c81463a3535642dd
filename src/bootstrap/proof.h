/*
 * Proof that a process knows the job's secret, without saying it: HMAC-SHA256 of what both sides
 * said. proof_sodium.c has it from libsodium; proof_missing.c is built where there is none.
 */
#ifndef HORA_BOOTSTRAP_PROOF_H
#define HORA_BOOTSTRAP_PROOF_H

#include "util/status.h"

#define HORA_PROOF_BYTES 32
#define HORA_NONCE_BYTES 32

/* HORA_OK, or HORA_ERR_UNSUPPORTED with a remedy, when this build can prove nothing. */
hora_status_t hora_proof_available(void);
/* The proof of `secret` over bytes. Only where hora_proof_available. */
void hora_proof_make(const char *secret, const void *bytes, size_t len,
                     uint8_t proof_p[HORA_PROOF_BYTES]);

#endif
