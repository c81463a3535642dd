/* The fusion buffer: growth at the threshold's edges, packing of odd sizes, nothing, and much. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fusion/fusion.h"

/* Under the sanitizers, too, an allocation that cannot be must return NULL. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void) {
    return "allocator_may_return_null=1";
}

static hora_world_t world; /* without an arena */

static void grows_up_to_the_threshold(void **state) {
    static const struct {
        size_t bytes, most, room;
    } cases[] = {
        {1, 1 << 20, 65536},         {65536, 1 << 20, 65536},     {65537, 1 << 20, 131072},
        {600000, 1 << 20, 1 << 20},  {600000, 700000, 700032},    {1 << 20, 1 << 20, 1 << 20},
        {(1 << 20) + 1, 1 << 20, (1 << 20) + 64}, {100, 64, 128},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        hora_fusion_t fusion;
        hora_fusion_init(&fusion, &world, NULL);
        assert_int_equal(hora_fusion_reserve(&fusion, cases[i].bytes, cases[i].most), HORA_OK);
        assert_int_equal(fusion.bytes, cases[i].room);
        assert_int_equal((uintptr_t)fusion.data % 64, 0);
        memset(fusion.data, 1, fusion.bytes);
        hora_fusion_destroy(&fusion);
    }
}

static void keeps_a_buffer_that_is_large_enough(void **state) {
    hora_fusion_t fusion;
    uint8_t      *data;
    (void)state;
    hora_fusion_init(&fusion, &world, NULL);
    assert_int_equal(hora_fusion_reserve(&fusion, 0, 1000), HORA_OK);
    assert_null(fusion.data);
    assert_int_equal(hora_fusion_reserve(&fusion, 100000, 1 << 20), HORA_OK);
    data = fusion.data;
    assert_int_equal(hora_fusion_reserve(&fusion, 100000, 1 << 20), HORA_OK);
    assert_int_equal(hora_fusion_reserve(&fusion, 131072, 1 << 20), HORA_OK);
    assert_ptr_equal(fusion.data, data);
    assert_int_equal(hora_fusion_reserve(&fusion, 131073, 1 << 20), HORA_OK);
    assert_int_equal(fusion.bytes, 262144);
    hora_fusion_destroy(&fusion);
    assert_null(fusion.data);
}

static void no_memory_is_an_error(void **state) {
    hora_fusion_t fusion;
    (void)state;
    hora_fusion_init(&fusion, &world, NULL);
    assert_int_equal(hora_fusion_reserve(&fusion, (size_t)1 << 62, 1), HORA_ERR_NO_MEMORY);
    assert_int_equal(hora_fusion_reserve(&fusion, 64, 1), HORA_OK);
    hora_fusion_destroy(&fusion);
}

#define PIECES 200

static void packs_and_unpacks(void **state) {
    hora_fusion_t fusion;
    hora_piece_t  pieces[PIECES];
    size_t        total = 0, at = 0;
    (void)state;
    srand(3);
    hora_fusion_init(&fusion, &world, NULL);
    for (int i = 0; i < PIECES; i++) {
        size_t bytes = i % 9 == 0 ? 0 : i % 50 == 7 ? 100001 : (size_t)(rand() % 300);
        uint8_t *in = bytes ? malloc(bytes) : NULL;
        for (size_t k = 0; k < bytes; k++)
            in[k] = (uint8_t)rand();
        pieces[i] = (hora_piece_t){in, bytes ? malloc(bytes) : NULL, bytes, 0};
        total += bytes;
    }
    assert_int_equal(hora_fusion_reserve(&fusion, total, total), HORA_OK);
    hora_fusion_pack(&fusion, 0, pieces, PIECES);
    for (int i = 0; i < PIECES; i++) { /* one after the other, without gaps */
        if (pieces[i].bytes > 0)
            assert_memory_equal(fusion.data + at, pieces[i].in, pieces[i].bytes);
        at += pieces[i].bytes;
    }
    for (size_t k = 0; k < total; k++)
        fusion.data[k] ^= 0xff;
    hora_fusion_unpack(&fusion, 0, pieces, PIECES);
    for (int i = 0; i < PIECES; i++) {
        for (size_t k = 0; k < pieces[i].bytes; k++)
            assert_int_equal(((uint8_t *)pieces[i].out)[k],
                             (uint8_t)~((const uint8_t *)pieces[i].in)[k]);
        free((void *)pieces[i].in);
        free(pieces[i].out);
    }
    hora_fusion_pack(&fusion, 0, NULL, 0);
    hora_fusion_unpack(&fusion, 0, NULL, 0);
    hora_fusion_destroy(&fusion);
}

#define RANKS 5

/* By rank, then by piece; and back to where they came from. One piece is not packed, one not
 * unpacked. */
static void blocks_lie_by_rank(void **state) {
    hora_fusion_t fusion;
    hora_piece_t  pieces[PIECES];
    size_t        lens[PIECES * RANKS], total = 0, at = 0, before[PIECES] = {0};
    (void)state;
    srand(4);
    hora_fusion_init(&fusion, &world, NULL);
    for (int i = 0; i < PIECES; i++) {
        pieces[i] = (hora_piece_t){.bytes = 0};
        for (int r = 0; r < RANKS; r++)
            pieces[i].bytes += lens[i * RANKS + r] = i % 7 ? (size_t)(rand() % 90) : 0;
        uint8_t *in = malloc(pieces[i].bytes + 1);
        for (size_t k = 0; k < pieces[i].bytes; k++)
            in[k] = (uint8_t)rand();
        pieces[i].in = in;
        pieces[i].out = calloc(1, pieces[i].bytes + 1);
        total += pieces[i].bytes;
    }
    assert_int_equal(hora_fusion_reserve(&fusion, total, total), HORA_OK);
    memset(fusion.data, 0x55, total);
    const void *in = pieces[5].in;
    pieces[5].in = NULL;
    hora_fusion_pack_blocks(&fusion, pieces, PIECES, lens, RANKS);
    pieces[5].in = in;
    for (int r = 0; r < RANKS; r++)
        for (int i = 0; i < PIECES; i++) {
            size_t len = lens[i * RANKS + r];
            if (i != 5)
                assert_memory_equal(fusion.data + at,
                                    (const uint8_t *)pieces[i].in + before[i], len);
            for (size_t k = 0; i == 5 && k < len; k++)
                assert_int_equal(fusion.data[at + k], 0x55);
            before[i] += len;
            at += len;
        }
    assert_int_equal(at, total);
    void *out = pieces[6].out;
    pieces[6].out = NULL;
    hora_fusion_unpack_blocks(&fusion, pieces, PIECES, lens, RANKS);
    pieces[6].out = out;
    for (int i = 0; i < PIECES; i++) {
        for (size_t k = 0; k < pieces[i].bytes && i >= 5 && i <= 6; k++)
            assert_int_equal(((uint8_t *)pieces[i].out)[k], i == 5 ? 0x55 : 0);
        if (i != 5 && i != 6)
            assert_memory_equal(pieces[i].out, pieces[i].in, pieces[i].bytes);
        free((void *)pieces[i].in);
        free(pieces[i].out);
    }
    hora_fusion_destroy(&fusion);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grows_up_to_the_threshold),
        cmocka_unit_test(keeps_a_buffer_that_is_large_enough),
        cmocka_unit_test(no_memory_is_an_error),
        cmocka_unit_test(packs_and_unpacks),
        cmocka_unit_test(blocks_lie_by_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
