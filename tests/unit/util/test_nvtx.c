/*
 * NVTX ranges, as a profiler sees them (tests/standin/nvtx): argv[1] is its library.
 */
#include "util/nvtx.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *library;

static void test_phases(void **state) {
    char *log;
    (void)state;
    assert_false(hora_nvtx_on);
    hora_nvtx_open();
    hora_nvtx_open();
    assert_true(hora_nvtx_on);
    hora_nvtx_phase("A");
    hora_nvtx_phase("B");
    hora_nvtx_phase(NULL);
    hora_nvtx_phase(NULL);
    log = dlsym(dlopen(library, RTLD_NOW | RTLD_NOLOAD), "standin_nvtx_log");
    assert_non_null(log);
    assert_string_equal(log, "domain hora; push A; pop; push B; pop; ");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_phases)};
    if (argc < 2)
        return 2;
    library = argv[1];
    setenv("NVTX_INJECTION64_PATH", library, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
