/*
 * A stand-in for the CUDA driver: records calls, fails where the test says so, and computes nothing.
 * For error paths only.
 */
#ifndef HORA_TESTS_FAKE_CUDA_H
#define HORA_TESTS_FAKE_CUDA_H

#define FAKE_CALLS_MAX 64

typedef struct fake_cuda {
    const char *fails;  /* the symbol that fails, NULL: none */
    int         result; /* with this result */
    int         depth;  /* contexts entered and not left */
    int         retained;
    int         loaded; /* modules */
    int         launches;
    unsigned    blocks; /* of the last launch */
    const char *calls[FAKE_CALLS_MAX]; /* symbols, in order */
    int         ncalls;
} fake_cuda_t;

#endif
