/*
 * What another rank shows of its memory: taken if it lies within the allocation, else refused with
 * the rank and the values. No GPU: the regions are this process's own, which is not opened.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "offload/cuda/ipc.h"

#include <string.h>

#define MB ((uint64_t)1 << 20)

static hora_status_t find(const hora_ipc_region_t *region, uint64_t *at_p) {
    hora_ipc_member_t    members[4] = {{0}};
    hora_gpu_ipc_t       self = {.members = members};
    struct hora_gpu_comm gpu = {.ipc = &self};
    hora_comm_t          comm = {.size = 4, .gpu = &gpu};
    hora_coll_t          coll = {0};
    members[3].process = hora_ipc_process();
    return hora_ipc_find(&comm, &coll, 3, region, at_p);
}

static void test_takes(void **state) {
    static const struct {
        hora_ipc_region_t region;
        uint64_t          at;
    } cases[] = {
        {{0}, 0},
        {{.id = 1, .start = 64 * MB, .length = 2 * MB, .bytes = 2 * MB}, 64 * MB},
        {{.id = 1, .start = 64 * MB, .length = 4 * MB, .offset = 3 * MB, .bytes = MB}, 67 * MB},
        {{.id = 1, .start = 64 * MB, .length = 2 * MB, .offset = 2 * MB}, 66 * MB},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t at = 1;
        assert_int_equal(find(&cases[i].region, &at), HORA_OK);
        assert_int_equal(at, cases[i].at);
    }
}

static void test_refuses(void **state) {
    static const struct {
        hora_ipc_region_t region;
        const char       *says;
    } cases[] = {
        {{.bytes = 7}, "rank 3 shows 7 bytes"},
        {{.id = 1, .start = MB, .length = 0}, "of 0 bytes"},
        {{.id = 1, .start = MB, .length = 3 * MB}, "of 3145728 bytes"},
        {{.id = 1, .start = UINT64_MAX - MB, .length = 2 * MB}, "at 0xffffffffffefffff"},
        {{.id = 1, .start = MB, .length = 2 * MB, .offset = 2 * MB + 1}, "at 2097153 of"},
        {{.id = 1, .start = MB, .length = 2 * MB, .offset = 5, .bytes = 2 * MB}, "bytes at 5 of"},
        {{.id = 1, .start = MB, .length = 2 * MB, .offset = 1, .bytes = UINT64_MAX}, "at 1 of"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t at = 1;
        assert_int_equal(find(&cases[i].region, &at), HORA_ERR_PROTOCOL);
        assert_int_equal(at, 1);
        if (strstr(hora_last_error(), cases[i].says) == NULL)
            fail_msg("'%s' says nothing of '%s'", hora_last_error(), cases[i].says);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_takes),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
