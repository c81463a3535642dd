/*
 * What a rank that has joined does with responses. The engine has one rank, and the test is its
 * coordinator, so that frames can be anything; best under a sanitizer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "background/engine.h"

static hora_comm_t   *comm;
static hora_engine_t *engine;
static hora_work_t    join;

static int begin(void **state) {
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    (void)state;
    options.rank = 0;
    options.nranks = 1;
    if (hora_comm_create(&options, &comm) != HORA_OK ||
        hora_engine_create(comm, NULL, &engine) != HORA_OK)
        return -1;
    engine->has_joined = true;
    engine->join = &join;
    return 0;
}

static int end(void **state) {
    (void)state;
    engine->has_joined = false;
    engine->join = NULL;
    return hora_engine_free(engine) == HORA_OK && hora_comm_free(comm) == HORA_OK ? 0 : -1;
}

/* ---- Frames --------------------------------------------------------------------------------- */

typedef struct ref {
    uint32_t    id;
    const char *name; /* NULL: by id */
} ref_t;

static hora_status_t execute_some(const ref_t *refs, uint32_t n) {
    static uint8_t      buf[HORA_FRAME_MAX];
    hora_frame_writer_t w;
    size_t              bytes = 0;
    hora_signature_t    sig = {.kind = HORA_TASK_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                               .ndim = 1, .shape = {5}, .prescale = 1, .postscale = 1,
                               .group_size = 1};
    for (uint32_t i = 0; i < n; i++)
        bytes += hora_frame_ref_bytes(refs[i].name != NULL ? strlen(refs[i].name) : 0, &sig);
    hora_frame_begin(&w, buf, HORA_FRAME_RESPONSES, 0);
    assert_true(hora_frame_put_execute(&w, n, bytes, 1));
    for (uint32_t i = 0; i < n; i++)
        hora_frame_put_ref(&w, refs[i].id, refs[i].name,
                           refs[i].name != NULL ? strlen(refs[i].name) : 0, &sig);
    return hora_response_handle(engine, buf, hora_frame_end(&w));
}

#define ID(generation, slot) ((uint32_t)(generation) << 16 | (slot))

/* ---- Tests ---------------------------------------------------------------------------------- */

/* The coordinator has so many names that a task of the batch takes the id of one before it. */
static void an_id_is_taken_over_within_a_batch(void **state) {
    static const ref_t old = {ID(1, 7), "old"};
    static const ref_t by_id[] = {{ID(1, 7), NULL}, {ID(2, 7), "new"}};
    static const ref_t by_name[] = {{ID(3, 7), "old"}, {ID(4, 7), "new"}};
    (void)state;
    assert_int_equal(execute_some(&old, 1), HORA_OK);
    assert_int_equal(engine->records.count, 1);
    assert_int_equal(execute_some(by_id, 2), HORA_OK);
    assert_int_equal(engine->records.count, 1); /* the old one went after the batch */
    assert_null(hora_response_find_id(engine, ID(1, 7)));
    assert_non_null(hora_response_find_id(engine, ID(2, 7)));
    assert_int_equal(execute_some(by_name, 2), HORA_OK);
    assert_int_equal(engine->records.count, 1);
    assert_string_equal(hora_response_find_id(engine, ID(4, 7))->name.text, "new");
}

static void a_second_mention_is_malformed(void **state) {
    static const ref_t without_id[] = {{0, "a"}, {0, "a"}};
    static const ref_t with_id[] = {{ID(1, 3), "a"}, {ID(1, 3), NULL}};
    const ref_t       *lists[] = {without_id, with_id};
    (void)state;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(execute_some(lists[i], 2), HORA_ERR_PROTOCOL);
        pthread_mutex_lock(&engine->lock); /* as hora_engine_fail */
        engine->nbatch = 0;
        hora_ghosts_free_locked(engine);
        pthread_mutex_unlock(&engine->lock);
        assert_int_equal(engine->records.count, (size_t)i);
    }
}

/* Another thread's enqueueing of the name comes to nothing while the ghost is in the batch. */
static void a_ghost_keeps_its_record(void **state) {
    hora_work_t   *work;
    hora_record_t *record;
    (void)state;
    record = hora_record_make_locked(engine, "a", 1);
    record->has_ghost = true;
    hora_record_drop_locked(engine, record);
    assert_ptr_equal(hora_record_find_locked(engine, "a", 1), record);
    assert_int_equal(hora_ghost_make(engine, record, &work), HORA_OK);
    hora_ghosts_free_locked(engine);
    assert_null(hora_record_find_locked(engine, "a", 1));
}

/* ---- Errors of others ----------------------------------------------------------------------- */

static void hear_of_errors(int first, int n) {
    static uint8_t      buf[HORA_FRAME_MAX];
    hora_frame_writer_t w;
    char                name[32];
    hora_frame_begin(&w, buf, HORA_FRAME_RESPONSES, 0);
    for (int i = 0; i < n; i++) {
        int len = snprintf(name, sizeof(name), "failed.%d", first + i);
        assert_true(hora_frame_put_error(&w, name, (size_t)len, HORA_ERR_MISMATCH, "they differ"));
    }
    assert_int_equal(hora_response_handle(engine, buf, hora_frame_end(&w)), HORA_OK);
}

static void errors_leave_nothing_while_joined(void **state) {
    (void)state;
    hear_of_errors(0, 100);
    assert_int_equal(engine->records.count, 0);
}

/* What failed before the join is forgotten by it, and so are the names. */
static void a_join_drops_what_was_late(void **state) {
    hora_task_t    task = HORA_TASK_INIT;
    hora_handle_t *handle;
    int32_t        last = -1;
    (void)state;
    engine->has_joined = false;
    engine->join = NULL;
    for (int i = 0; i < 1000; i += 100) /* many, so that they move in the table */
        hear_of_errors(i, 100);
    assert_int_equal(engine->records.count, 1000);
    task.kind = HORA_TASK_JOIN;
    task.out = &last;
    assert_int_equal(hora_engine_enqueue(engine, &task, 1, 0, &handle), HORA_OK);
    assert_int_equal(hora_handle_wait(handle), HORA_OK);
    hora_handle_release(handle);
    assert_int_equal(last, 0);
    assert_int_equal(engine->records.count, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_id_is_taken_over_within_a_batch, begin, end),
        cmocka_unit_test_setup_teardown(a_second_mention_is_malformed, begin, end),
        cmocka_unit_test_setup_teardown(a_ghost_keeps_its_record, begin, end),
        cmocka_unit_test_setup_teardown(errors_leave_nothing_while_joined, begin, end),
        cmocka_unit_test_setup_teardown(a_join_drops_what_was_late, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
