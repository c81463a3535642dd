/* The table of names: found, gone, and still found when others in the same run go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "util/names.h"

#define COUNT 5000

typedef struct thing {
    hora_name_t name;
    char        text[24];
    bool        there;
} thing_t;

static thing_t *things_new(unsigned hash_mask) {
    thing_t *things = calloc(COUNT, sizeof(*things));
    for (int i = 0; i < COUNT; i++) {
        thing_t *t = &things[i];
        snprintf(t->text, sizeof(t->text), "thing.%d", i);
        t->name = (hora_name_t){hora_name_hash(t->text, strlen(t->text)), strlen(t->text), t->text};
        t->name.hash &= hash_mask; /* a small mask: long runs */
    }
    return things;
}

static void check_all(const hora_names_t *names, thing_t *things) {
    size_t count = 0;
    for (int i = 0; i < COUNT; i++) {
        hora_name_t *n = &things[i].name;
        assert_ptr_equal(hora_names_find(names, n->hash, n->text, n->len),
                         things[i].there ? n : NULL);
        count += things[i].there;
    }
    assert_int_equal(names->count, count);
}

static void come_and_go(unsigned hash_mask, int turns) {
    hora_names_t names;
    thing_t     *things = things_new(hash_mask);
    srand(1);
    hora_names_init(&names);
    assert_null(hora_names_find(&names, 0, "x", 1));
    for (int i = 0; i < turns; i++) {
        thing_t *t = &things[rand() % COUNT];
        if (t->there)
            hora_names_remove(&names, &t->name);
        else
            assert_int_equal(hora_names_add(&names, &t->name), HORA_OK);
        t->there = !t->there;
        if (i % (turns / 8) == 0)
            check_all(&names, things);
    }
    check_all(&names, things);
    hora_names_destroy(&names);
    free(things);
}

static void spread(void **state) {
    (void)state;
    come_and_go(~0u, 100000);
}

static void in_long_runs(void **state) {
    (void)state;
    come_and_go(0x1f, 8000);
}

static void names_that_begin_alike_have_other_hashes(void **state) {
    char   text[64];
    size_t same = 0;
    (void)state;
    for (int i = 0; i < 4096; i++) {
        int n = snprintf(text, sizeof(text), "module.layer.%d.weight", i);
        same += (hora_name_hash(text, (size_t)n) & 4095) == (unsigned)(i * 31 & 4095);
        assert_int_equal(hora_name_hash(text, (size_t)n), hora_name_hash(text, (size_t)n));
        assert_true(hora_name_hash(text, (size_t)n) != hora_name_hash(text, (size_t)n - 1));
    }
    assert_true(same < 32);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spread),
        cmocka_unit_test(in_long_runs),
        cmocka_unit_test(names_that_begin_alike_have_other_hashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
