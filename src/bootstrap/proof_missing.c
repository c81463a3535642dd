/*
 * The proof where hora was built without libsodium: there is none, and nobody is let in by one.
 */
#include "bootstrap/proof.h"

#include <string.h>

hora_status_t hora_proof_available(void) {
    return hora_fail(HORA_ERR_UNSUPPORTED,
                     "HORA_SECRET is set and the ranks meet over TCP, but this hora was built "
                     "without libsodium and cannot prove the secret: install libsodium-dev and "
                     "rebuild");
}

void hora_proof_make(const char *secret, const void *bytes, size_t len,
                     uint8_t proof_p[HORA_PROOF_BYTES]) {
    (void)secret;
    (void)bytes;
    (void)len;
    memset(proof_p, 0, HORA_PROOF_BYTES); /* not reached: hora_proof_available said no */
}
