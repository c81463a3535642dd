/*
 * Autotune in an engine: results stay right while it switches in the midst of traffic, although the
 * ranks' environments differ; a job that has tuned leaves a cache, which the next one uses; what is no
 * cache is ignored. `test_tune shm 4`.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tasks.h"

#define TENSORS 16

static const char *transport;
static int         nranks;
static char        folder[] = "/tmp/hora-tune-XXXXXX";
static char        cache[64], log_path[64];

static int count_lines(const char *path, const char *word) {
    char  line[512];
    int   lines = 0;
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        lines += strstr(line, word) != NULL;
    if (file != NULL)
        fclose(file);
    return lines;
}

/* Rank 0 tunes. The others have other defaults, or do not know of autotune. */
static void set_environment(int rank, const char *path) {
    setenv("HORA_AUTOTUNE_CACHE", path, 1);
    setenv("HORA_LOG_LEVEL", "warning", 1);
    if (rank == 0) {
        setenv("HOROVOD_AUTOTUNE", "1", 1);
        setenv("HOROVOD_AUTOTUNE_LOG", log_path, 1);
        setenv("HOROVOD_AUTOTUNE_WARMUP_SAMPLES", "1", 1);
        setenv("HOROVOD_AUTOTUNE_STEPS_PER_SAMPLE", "1", 1);
        setenv("HOROVOD_AUTOTUNE_BAYES_OPT_MAX_SAMPLES", "6", 1);
    } else if (rank % 2) {
        setenv("HORA_FUSION_THRESHOLD", "4096", 1);
    } else {
        setenv("HORA_AUTOTUNE", "0", 1);
        setenv("HORA_AUTOTUNE_STEPS_PER_SAMPLE", "1", 1);
    }
}

/* Sizes on both sides of all limits. */
static void make_tensors(tensor_t *tensors, hora_comm_t *comm) {
    static const hora_task_kind_t kinds[] = {HORA_TASK_ALLREDUCE, HORA_TASK_ALLREDUCE,
                                             HORA_TASK_BROADCAST};
    for (int i = 0; i < TENSORS; i++) {
        char    name[32];
        int64_t row = i < 12 ? 5 + 900 * i : i < 15 ? 40000 : 300000;
        snprintf(name, sizeof(name), "tensor.%d", i);
        tensor_make(&tensors[i], comm, kinds[i % 3], i % 5 == 4 ? HORA_BFLOAT16 : HORA_FLOAT32, name,
                    1 + i % 2, row);
        tensors[i].task.root = 0;
    }
}

static void run_step(hora_engine_t *engine, hora_comm_t *comm, tensor_t *tensors, int step) {
    int turn = step + hora_comm_rank(comm);
    for (int k = 0; k < TENSORS; k++) {
        int i = turn % 2 ? TENSORS - 1 - k : k;
        tensor_fill(&tensors[i], comm);
        tensor_enqueue(engine, &tensors[i], step % 3 ? HORA_ENQUEUE_WILL_WAIT : 0);
    }
    for (int i = 0; i < TENSORS; i++)
        tensor_finish(&tensors[i], comm);
}

/* Rank 0 looks at the log; all stop together. */
static bool is_done(hora_comm_t *comm) {
    int32_t done = hora_comm_rank(comm) == 0 && count_lines(log_path, ",done,") > 0;
    harness_ok(hora_broadcast(comm, &done, &done, 1, HORA_INT32, 0, NULL));
    return done != 0;
}

static void tune_main(hora_comm_t *none, int rank, int size, void *arg) {
    static tensor_t tensors[TENSORS];
    hora_comm_t    *comm;
    hora_engine_t  *engine;
    (void)none, (void)arg, (void)size;
    set_environment(rank, cache);
    comm = harness_join();
    harness_ok(hora_engine_create(comm, NULL, &engine));
    make_tensors(tensors, comm);
    for (int step = 0; step < 20 || (step < 3000 && !is_done(comm)); step++)
        run_step(engine, comm, tensors, step);
    for (int step = 0; step < 10; step++)
        run_step(engine, comm, tensors, step);
    if (rank == 0) {
        harness_check(count_lines(log_path, ",done,") == 1, "it has not come to an end");
        harness_check(count_lines(log_path, ",contender,") > 3, "nothing was tried");
        harness_check(access(cache, R_OK) == 0, "there is no cache");
    }
    for (int i = 0; i < TENSORS; i++)
        tensor_free(&tensors[i]);
    harness_ok(hora_engine_free(engine));
    harness_ok(hora_barrier(comm, NULL));
    harness_ok(hora_comm_free(comm));
}

/* With a good cache nothing is sampled; the log is not even begun. */
static void cached_main(hora_comm_t *none, int rank, int size, void *arg) {
    static tensor_t tensors[TENSORS];
    hora_comm_t    *comm;
    hora_engine_t  *engine;
    bool            good = *(const bool *)arg;
    (void)none, (void)size;
    set_environment(rank, cache);
    if (rank == 0)
        unlink(log_path);
    comm = harness_join();
    harness_ok(hora_engine_create(comm, NULL, &engine));
    make_tensors(tensors, comm);
    for (int step = 0; step < 20; step++)
        run_step(engine, comm, tensors, step);
    if (rank == 0)
        harness_check((access(log_path, R_OK) != 0) == good, "the cache was%s used",
                      good ? " not" : "");
    for (int i = 0; i < TENSORS; i++)
        tensor_free(&tensors[i]);
    harness_ok(hora_engine_free(engine));
    harness_ok(hora_barrier(comm, NULL));
    harness_ok(hora_comm_free(comm));
}

/* A second engine on all ranks leaves the first one's log alone, also when it works and ends. */
static void second_main(hora_comm_t *none, int rank, int size, void *arg) {
    static tensor_t tensors[TENSORS];
    hora_comm_t    *comm;
    hora_engine_t  *engines[2];
    int             lines = 0;
    (void)none, (void)arg, (void)size;
    set_environment(rank, "");
    comm = harness_join();
    make_tensors(tensors, comm);
    harness_ok(hora_engine_create(comm, NULL, &engines[0]));
    for (int step = 0; step < 3000 && !is_done(comm); step++)
        run_step(engines[0], comm, tensors, step);
    if (rank == 0)
        lines = count_lines(log_path, ",");
    harness_ok(hora_engine_create(comm, NULL, &engines[1]));
    for (int step = 0; step < 20; step++)
        for (int k = 0; k < 2; k++)
            run_step(engines[k], comm, tensors, step);
    harness_ok(hora_engine_free(engines[1]));
    run_step(engines[0], comm, tensors, 0);
    if (rank == 0)
        harness_check(lines > 4 && count_lines(log_path, ",") == lines,
                      "the log had %d lines, now %d", lines, count_lines(log_path, ","));
    for (int i = 0; i < TENSORS; i++)
        tensor_free(&tensors[i]);
    harness_ok(hora_engine_free(engines[0]));
    harness_ok(hora_barrier(comm, NULL));
    harness_ok(hora_comm_free(comm));
}

static void run(harness_main_t rank_main, void *arg) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = arg, .transport = transport,
                         .bare = true, .timeout = 60, .deadline = 110};
    assert_int_equal(harness_run(&job), 0);
}

static void results_stay_right_while_it_tunes(void **state) {
    (void)state;
    run(tune_main, NULL);
}

static void cache_is_used_by_the_next_job(void **state) {
    bool good = true;
    (void)state;
    run(cached_main, &good);
}

static void what_is_no_cache_is_ignored(void **state) {
    bool  good = false;
    FILE *file = fopen(cache, "w");
    (void)state;
    assert_non_null(file);
    fprintf(file, "{\"format\": \"hora-autotune\", \"version\": 1, \"ranks\": 1e9");
    fclose(file);
    run(cached_main, &good);
}

static void only_the_first_engine_is_tuned(void **state) {
    (void)state;
    run(second_main, NULL);
}

static int make_folder(void **state) {
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(cache, sizeof(cache), "%s/cache.json", folder);
    snprintf(log_path, sizeof(log_path), "%s/log.csv", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(cache);
    unlink(log_path);
    return rmdir(folder);
}

int main(int argc, char **argv) {
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_stay_right_while_it_tunes),
        cmocka_unit_test(cache_is_used_by_the_next_job),
        cmocka_unit_test(what_is_no_cache_is_ignored),
        cmocka_unit_test(only_the_first_engine_is_tuned),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
