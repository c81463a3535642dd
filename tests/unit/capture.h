/*
 * What the tested code writes to stderr, by way of a pipe: no more than a pipe holds. One at a time.
 */
#ifndef HORA_TESTS_CAPTURE_H
#define HORA_TESTS_CAPTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <unistd.h>

#define CAPTURE_MAX 1024

typedef struct capture {
    int errors; /* the process's own stderr */
    int pipe;   /* what is written instead */
} capture_t;

static inline capture_t capture_begin(void) {
    capture_t capture = {.errors = dup(2)};
    int       ends[2];
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], 2);
    close(ends[1]);
    capture.pipe = ends[0];
    return capture;
}

/* Returns text, what was written since then. */
static inline const char *capture_end(capture_t capture, char text[CAPTURE_MAX]) {
    ssize_t n;
    dup2(capture.errors, 2);
    close(capture.errors);
    n = read(capture.pipe, text, CAPTURE_MAX - 1);
    close(capture.pipe);
    assert_true(n >= 0);
    text[n] = '\0';
    return text;
}

#endif
