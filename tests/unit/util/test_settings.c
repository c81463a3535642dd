/*
 * src/util/settings: defaults, both prefixes, units, and what is refused.
 */
#include "../capture.h"
#include "../comma.h"
#include "util/log.h"
#include "util/settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int clear(void **state) {
    size_t                    count;
    const hora_setting_row_t *rows = hora_settings_rows(&count);
    char                      name[80];
    for (size_t i = 0; i < count; i++) {
        strcpy(name, "HORA_");
        unsetenv(strcat(name, rows[i].name));
        strcpy(name, "HOROVOD_");
        unsetenv(strcat(name, rows[i].horovod != NULL ? rows[i].horovod : rows[i].name));
    }
    return 0;
}

static void load__defaults(void **state) {
    hora_settings_t s;
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_string_equal(s.transport, "auto");
    assert_int_equal(s.fusion_threshold, 128 << 20);
    assert_true(s.timeout == 600);
    assert_false(s.deterministic);
    assert_int_equal(s.spin_us, -1);
}

static void load__hora_wins_over_horovod(void **state) {
    hora_settings_t s;
    setenv("HOROVOD_FUSION_THRESHOLD", "1024", 1);
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_int_equal(s.fusion_threshold, 1024);
    setenv("HORA_FUSION_THRESHOLD", "64k", 1);
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_int_equal(s.fusion_threshold, 65536);
}

static void load__horovod_only_where_it_has_the_setting(void **state) {
    hora_settings_t s;
    setenv("HOROVOD_TRANSPORT", "tcp", 1);
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_string_equal(s.transport, "auto");
}

static void load__horovod_by_another_name(void **state) {
    hora_settings_t s;
    setenv("HOROVOD_GLOO_IFACE", "eth7", 1);
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_string_equal(s.interface, "eth7");
    setenv("HORA_INTERFACE", "lo", 1);
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_string_equal(s.interface, "lo");
}

static void warn_horovod__only_of_what_has_no_meaning(void **state) {
    setenv("HOROVOD_CONTROLLER", "gloo", 1);
    setenv("HOROVOD_FUSION_THRESHOLD", "1024", 1);
    setenv("HOROVOD_RANK", "0", 1);
    setenv("HOROVOD_TORUS_ALLREDUCE", "0", 1);
    setenv("HOROVOD_CACHE_CAPACITY", "", 1);
    assert_int_equal(hora_settings_warn_horovod(), 0);
    setenv("HOROVOD_CONTROLLER", "glo", 1); /* the beginning of a value that is listed */
    setenv("HOROVOD_TORUS_ALLREDUCE", "1", 1);
    setenv("HOROVOD_CYCLE_TIME", "3.5", 1);
    assert_int_equal(hora_settings_warn_horovod(), 3);
    unsetenv("HOROVOD_CONTROLLER");
    unsetenv("HOROVOD_RANK");
    unsetenv("HOROVOD_TORUS_ALLREDUCE");
    unsetenv("HOROVOD_CACHE_CAPACITY");
    unsetenv("HOROVOD_CYCLE_TIME");
}

/* The sentence on the only one that there is; NULL: there is none. */
static const char *find_unknown(void) {
    static char text[HORA_SETTING_STRING_MAX];
    char        second[HORA_SETTING_STRING_MAX];
    if (!hora_settings_unknown(0, text))
        return NULL;
    assert_false(hora_settings_unknown(1, second));
    return text;
}

static void unknown__says_what_is_meant(void **state) {
    static const char *const slips[][2] = {
        {"HORA_TIMEOT", "HORA_TIMEOUT"},
        {"HORA_ALOG", "HORA_ALGO"},
        {"HORA_TRANSPROT", "HORA_TRANSPORT"},
        {"HORA_GLOO_IFACE", "HORA_INTERFACE"},
        {"HORA_TCP_CONNECTION", "HORA_TCP_CONNECTIONS"},
        {"HORA_FUSION_TRESHOLD", "HORA_FUSION_THRESHOLD"},
    };
    char expected[128];
    for (size_t i = 0; i < sizeof(slips) / sizeof(slips[0]); i++) {
        setenv(slips[i][0], "1", 1);
        snprintf(expected, sizeof(expected), "%s is no setting of hora; did you mean %s?",
                 slips[i][0], slips[i][1]);
        assert_string_equal(find_unknown(), expected);
        unsetenv(slips[i][0]);
    }
    setenv("HORA_COLOUR_OF_THE_DANCERS", "red", 1);
    assert_string_equal(find_unknown(), "HORA_COLOUR_OF_THE_DANCERS is no setting of hora");
    unsetenv("HORA_COLOUR_OF_THE_DANCERS");
    setenv("HORA_", "1", 1);
    assert_string_equal(find_unknown(), "HORA_ is no setting of hora");
    unsetenv("HORA_");
}

static void unknown__not_what_somebody_reads(void **state) {
    static const char *const names[] = {
        "HORA_RANK",       "HORA_SIZE",    "HORA_LOCAL_RANK",  "HORA_LOCAL_SIZE",
        "HORA_CROSS_RANK", "HORA_BIN_DIR", "HORA_CROSS_SIZE",  "HORA_MPI_ENVS",
        "HORA_ELASTIC",    "HORA_TIMEOUT", "HORA_ELASTIC_ID",  "HORA_STANDIN_GPUS",
        "HORA_SECRET",     "HORAX",        "HORA_TEST_FOLDER", "HORA_PORT",
        "HORA_SERVICE_HOST", "HORA_SERVICE_PORT_HTTP", "HORA_X_PORT_80_TCP_ADDR",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        setenv(names[i], "1", 1);
        assert_null(find_unknown());
        unsetenv(names[i]);
    }
}

static void warn_unknown__once(void **state) {
    char      text[CAPTURE_MAX];
    capture_t capture;
    setenv("HORA_TIMEOT", "3", 1);
    capture = capture_begin();
    hora_settings_warn_unknown();
    assert_non_null(strstr(capture_end(capture, text), "did you mean HORA_TIMEOUT?"));
    capture = capture_begin();
    hora_settings_warn_unknown();
    fputs("silence", stderr);
    assert_string_equal(capture_end(capture, text), "silence");
    unsetenv("HORA_TIMEOT");
}

static void load__units(void **state) {
    static const struct {
        const char *text;
        size_t      bytes;
    } good[] = {{"0", 0}, {"7", 7}, {"3K", 3072}, {"2mb", 2 << 20}, {"1g", 1 << 30}};
    static const char *const bad[] = {"-1", "x", "1kk", "1.5m", "99999999999999999999", "9999999t"};
    hora_settings_t s;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        setenv("HORA_ARENA_SIZE", good[i].text, 1);
        assert_int_equal(hora_settings_load(&s), HORA_OK);
        assert_int_equal(s.arena_size, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        setenv("HORA_ARENA_SIZE", bad[i], 1);
        assert_int_equal(hora_settings_load(&s), HORA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(hora_last_error(), "HORA_ARENA_SIZE"));
        assert_non_null(strstr(hora_last_error(), bad[i]));
    }
}

static void load__with_a_point_in_every_locale(void **state) {
    hora_settings_t s;
    if (!comma_begin())
        skip();
    setenv("HORA_TIMEOUT", "1.5", 1);
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_true(s.timeout == 1.5);
    setenv("HORA_TIMEOUT", "1,5", 1);
    assert_int_equal(hora_settings_load(&s), HORA_ERR_INVALID_ARGUMENT);
    comma_end();
}

static void load__refuses_nonsense(void **state) {
    static const char *const pairs[][2] = {{"HORA_DETERMINISTIC", "maybe"},
                                           {"HORA_TIMEOUT", "-3"},
                                           {"HORA_TIMEOUT", "nan"},
                                           {"HORA_SPIN_US", "1.5"},
                                           {"HORA_LOG_LEVEL", "loud"},
                                           {"HORA_ALGO", "rin"},
                                           {"HORA_ALGO", "ring halving"},
                                           {"HORA_KERNELS", "abacus"},
                                           {"HORA_OFFLOAD", "MPI"},
                                           {"HORA_JOIN_AVERAGE", "all"},
                                           {"HORA_GPU_PATH", "pcie"}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        hora_settings_t s;
        memset(&s, 0x5a, sizeof(s));
        setenv(pairs[i][0], pairs[i][1], 1);
        assert_int_equal(hora_settings_load(&s), HORA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(hora_last_error(), pairs[i][0]));
        assert_int_equal(((unsigned char *)&s)[0], 0x5a); /* outputs only on success */
        unsetenv(pairs[i][0]);
    }
}

static void load__never_shows_the_secret(void **state) {
    hora_settings_t s;
    char            secret[600];
    memset(secret, 's', sizeof(secret) - 1);
    secret[sizeof(secret) - 1] = '\0';
    setenv("HORA_SECRET", secret, 1);
    assert_int_equal(hora_settings_load(&s), HORA_ERR_INVALID_ARGUMENT);
    assert_null(strstr(hora_last_error(), "sss"));
}

static void log__levels(void **state) {
    setenv("HORA_LOG_LEVEL", "debug", 1);
    hora_settings_t s;
    assert_int_equal(hora_settings_load(&s), HORA_OK);
    assert_int_equal(hora_log_threshold, HORA_LOG_DEBUG);
    assert_true(hora_log_setup("off", false));
    assert_true((int)hora_log_threshold < (int)HORA_LOG_ERROR);
    assert_false(hora_log_setup("loud", false));
    assert_true(hora_log_setup("WARNING", false));
    assert_int_equal(hora_log_threshold, HORA_LOG_WARNING);
}

static void test_items_of_a_list(void **state) {
    const char *list = " eth0,, 10.0.0.1 ,lo,";
    const char *empty = " ,";
    char        item[HORA_SETTING_STRING_MAX];
    (void)state;
    assert_true(hora_settings_item(&list, item));
    assert_string_equal(item, "eth0");
    assert_true(hora_settings_item(&list, item));
    assert_string_equal(item, "10.0.0.1");
    assert_true(hora_settings_item(&list, item));
    assert_string_equal(item, "lo");
    assert_false(hora_settings_item(&list, item));
    assert_false(hora_settings_item(&list, item));
    assert_false(hora_settings_item(&empty, item));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(load__defaults, clear),
        cmocka_unit_test_setup(load__hora_wins_over_horovod, clear),
        cmocka_unit_test_setup(load__horovod_only_where_it_has_the_setting, clear),
        cmocka_unit_test_setup(load__horovod_by_another_name, clear),
        cmocka_unit_test_setup(warn_horovod__only_of_what_has_no_meaning, clear),
        cmocka_unit_test_setup(unknown__says_what_is_meant, clear),
        cmocka_unit_test_setup(unknown__not_what_somebody_reads, clear),
        cmocka_unit_test_setup(warn_unknown__once, clear),
        cmocka_unit_test_setup(load__units, clear),
        cmocka_unit_test_setup(load__with_a_point_in_every_locale, clear),
        cmocka_unit_test_setup(load__refuses_nonsense, clear),
        cmocka_unit_test_setup(load__never_shows_the_secret, clear),
        cmocka_unit_test(test_items_of_a_list),
        cmocka_unit_test_setup(log__levels, clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
