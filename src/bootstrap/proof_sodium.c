/*
 * The proof by libsodium. Any thread; sodium_init may be called any number of times.
 */
#include "bootstrap/proof.h"

#include <sodium.h>
#include <string.h>

hora_status_t hora_proof_available(void) {
    if (sodium_init() < 0)
        return hora_fail(HORA_ERR_SYSTEM, "libsodium found no source of random numbers");
    return HORA_OK;
}

void hora_proof_make(const char *secret, const void *bytes, size_t len,
                     uint8_t proof_p[HORA_PROOF_BYTES]) {
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, (const unsigned char *)secret, strlen(secret));
    crypto_auth_hmacsha256_update(&state, bytes, len);
    crypto_auth_hmacsha256_final(&state, proof_p);
    sodium_memzero(&state, sizeof(state));
}
