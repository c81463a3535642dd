/*
 * NCCL's loader beside stand-ins: what is refused, with which words, and what is found. Arguments: one
 * that is too old, one that lacks a function, one without the newer functions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "offload/nccl/library.h"

#include <stdlib.h>
#include <string.h>

static char **paths; /* see above, from 1 */

static void refuse(const char *path, const char *says) {
    const hora_nccl_library_t *none = NULL;
    assert_int_equal(hora_nccl_open(path, &none), HORA_ERR_UNSUPPORTED);
    assert_null(none);
    if (strstr(hora_last_error(), says) == NULL)
        fail_msg("'%s' says nothing of '%s'", hora_last_error(), says);
}

static void test_refuses(void **state) {
    hora_backend_t backend = HORA_BACKEND_INIT;
    refuse("/nowhere/libnccl.so.2", "no NCCL: /nowhere/libnccl.so.2");
    refuse(paths[1], "is version 2.13.3, and hora needs 2.14.3 or later");
    refuse(paths[2], "has no ncclCommFinalize");
    refuse("libm.so.6", "is not NCCL: it has no ncclGetVersion");
    setenv("HORA_NCCL_LIBRARY", paths[1], 1);
    assert_false(hora_nccl_probe(&backend));
    assert_non_null(strstr(backend.detail, "2.13.3"));
    assert_non_null(strstr(backend.remedy, "HORA_NCCL_LIBRARY"));
}

static void test_opens(void **state) {
    hora_backend_t             backend = HORA_BACKEND_INIT;
    const hora_nccl_library_t *nccl = NULL, *again = NULL;
    assert_int_equal(hora_nccl_open(paths[3], &nccl), HORA_OK);
    assert_int_equal(nccl->version, 21705);
    assert_string_equal(nccl->path, paths[3]);
    assert_non_null(nccl->allreduce);
    assert_null(nccl->split);
    assert_int_equal(hora_nccl_open("/nowhere/else.so", &again), HORA_OK); /* the one that is open */
    assert_ptr_equal(again, nccl);
    setenv("HORA_NCCL_LIBRARY", paths[3], 1);
    assert_true(hora_nccl_probe(&backend));
    assert_memory_equal(backend.detail, "NCCL 2.17.5; ", 13);
    assert_non_null(strstr(backend.detail, paths[3]));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refuses), cmocka_unit_test(test_opens)};
    paths = argv;
    return argc < 4 ? 2 : cmocka_run_group_tests(tests, NULL, NULL);
}
