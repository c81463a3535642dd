/*
 * src/util: status names, type and operation tables, the error text of a thread, failures, the clock.
 */
#include "util/clock.h"
#include "util/failure.h"
#include "util/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void status__names_and_messages(void **state) {
    assert_string_equal(hora_status_name(HORA_OK), "HORA_OK");
    assert_string_equal(hora_status_name(HORA_ERR_TIMEOUT), "HORA_ERR_TIMEOUT");
    assert_string_equal(hora_status_name((hora_status_t)-999), "HORA_ERR_UNKNOWN");
    assert_non_null(strstr(hora_status_message(HORA_ERR_NO_MEMORY), "memory"));
    assert_non_null(hora_status_message((hora_status_t)-999));
    assert_string_equal(hora_version(), "0.1.0");
}

static void dtype__sizes_and_names(void **state) {
    static const size_t sizes[HORA_DTYPE_COUNT] = {1, 1, 2, 4, 8, 1, 2, 4,
                                                   8, 2, 2, 4, 8, 1, 1};
    for (int t = 0; t < HORA_DTYPE_COUNT; t++) {
        assert_int_equal(hora_dtype_size((hora_dtype_t)t), sizes[t]);
        assert_string_not_equal(hora_dtype_name((hora_dtype_t)t), "unknown");
    }
    assert_int_equal(hora_dtype_size(HORA_DTYPE_COUNT), 0);
    assert_int_equal(hora_dtype_size((hora_dtype_t)-1), 0);
    assert_string_equal(hora_dtype_name((hora_dtype_t)-1), "unknown");
    assert_true(hora_dtype_is_half(HORA_BFLOAT16) && hora_dtype_is_float(HORA_FLOAT16));
    assert_false(hora_dtype_is_half(HORA_FLOAT32) || hora_dtype_is_float(HORA_INT64));
}

static void op__supported_pairs(void **state) {
    assert_true(hora_op_supported(HORA_FLOAT32, HORA_AVERAGE));
    assert_true(hora_op_supported(HORA_INT8, HORA_AVERAGE));
    assert_false(hora_op_supported(HORA_BOOL, HORA_AVERAGE));
    assert_true(hora_op_supported(HORA_BOOL, HORA_BXOR));
    assert_false(hora_op_supported(HORA_FLOAT16, HORA_BAND));
    assert_true(hora_op_supported(HORA_BFLOAT16, HORA_ADASUM));
    assert_false(hora_op_supported(HORA_INT64, HORA_ADASUM));
    assert_true(hora_op_supported(HORA_FLOAT8_E4M3, HORA_AVERAGE));
    assert_false(hora_op_supported(HORA_FLOAT8_E5M2, HORA_PRODUCT));
    assert_false(hora_op_supported(HORA_FLOAT8_E4M3, HORA_ADASUM));
    assert_false(hora_op_supported(HORA_FLOAT32, (hora_op_t)99));
    assert_false(hora_op_supported((hora_dtype_t)99, HORA_SUM));
    assert_string_equal(hora_op_name(HORA_PRODUCT), "product");
    assert_string_equal(hora_op_name((hora_op_t)-1), "unknown");
}

static void *fail_elsewhere(void *arg) {
    hora_fail(HORA_ERR_INTERNAL, "other thread");
    return NULL;
}

static void fail__text_belongs_to_the_thread(void **state) {
    pthread_t thread;
    assert_int_equal(hora_fail(HORA_ERR_SYSTEM, "tensor %s, rank %d", "w", 3), HORA_ERR_SYSTEM);
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    assert_string_equal(hora_last_error(), "tensor w, rank 3");
    hora_fail_errno(HORA_ERR_SYSTEM, ENOSPC, "mapping");
    assert_string_equal(hora_last_error(), "mapping: No space left on device");
}

static void fail__long_text_is_cut(void **state) {
    char *text = malloc(10000);
    memset(text, 'x', 9999);
    text[9999] = '\0';
    hora_fail(HORA_ERR_SYSTEM, "%s", text);
    size_t length = strlen(hora_last_error());
    assert_true(length >= 1000 && length <= 4000);
    hora_fail_again(HORA_ERR_SYSTEM, hora_last_error());
    assert_int_equal(hora_last_error()[0], 'x');
    free(text);
}

static void failure__first_one_wins(void **state) {
    static hora_failure_t failure;
    assert_int_equal(hora_failure_check(&failure), HORA_OK);
    assert_true(hora_failure_raise(&failure, HORA_ERR_PEER_FAILED, 2, "rank 2 died"));
    assert_false(hora_failure_raise(&failure, HORA_ERR_ABORTED, 1, "aborted"));
    hora_fail(HORA_ERR_SYSTEM, "something else");
    assert_int_equal(hora_failure_check(&failure), HORA_ERR_PEER_FAILED);
    assert_string_equal(hora_last_error(), "rank 2 died");
    assert_int_equal(failure.rank, 2);
}

static void clock__seconds(void **state) {
    assert_true(hora_clock_from_seconds(1.5) == 1500000000u);
    assert_true(hora_clock_from_seconds(-1) == 0);
    assert_true(hora_clock_from_seconds(1e300) == UINT64_MAX / 2);
    uint64_t a = hora_clock_ns();
    assert_true(hora_clock_ns() >= a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status__names_and_messages),
        cmocka_unit_test(dtype__sizes_and_names),
        cmocka_unit_test(op__supported_pairs),
        cmocka_unit_test(fail__text_belongs_to_the_thread),
        cmocka_unit_test(fail__long_text_is_cut),
        cmocka_unit_test(failure__first_one_wins),
        cmocka_unit_test(clock__seconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
