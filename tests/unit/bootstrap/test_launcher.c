/*
 * Which variables win, what is said of bad ones, and Slurm's short forms.
 */
#include "bootstrap/launcher.h"
#include "bootstrap/place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

/* "A=1 B=2" as an environment. */
static const char *lookup(void *arg, const char *name) {
    static char     values[64][256]; /* the code under test keeps several at a time */
    static unsigned turn;
    char           *value = values[turn++ % 64];
    size_t      len = strlen(name);
    for (const char *p = arg; *p != '\0'; p += strcspn(p, " "), p += *p == ' ')
        if (strncmp(p, name, len) == 0 && p[len] == '=') {
            size_t n = strcspn(p + len + 1, " ");
            memcpy(value, p + len + 1, n);
            value[n] = '\0';
            return value;
        }
    return NULL;
}

static hora_status_t detect(const char *text, hora_job_t *job) {
    hora_env_t env = {lookup, (void *)(uintptr_t)text};
    memset(job, 0x55, sizeof(*job));
    return hora_launcher_detect(&env, -1, -1, job);
}

static void expect(const char *text, hora_family_t family, int rank, int size, int lrank,
                   int lsize) {
    hora_job_t job;
    assert_int_equal(detect(text, &job), HORA_OK);
    assert_int_equal(job.family, family);
    assert_int_equal(job.rank, rank);
    assert_int_equal(job.size, size);
    assert_int_equal(job.local_rank, lrank);
    assert_int_equal(job.local_size, lsize);
}

static void expect_error(const char *text, const char *a, const char *b) {
    hora_job_t job;
    assert_int_equal(detect(text, &job), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), a));
    assert_non_null(strstr(hora_last_error(), b));
    assert_int_equal(job.rank, 0x55555555); /* nothing was written */
}

#define OMPI                                                                                      \
    "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 "                 \
    "OMPI_COMM_WORLD_LOCAL_SIZE=2"
#define SLURM                                                                                     \
    "SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x3),1 "    \
    "SLURM_NODEID=2"

static void test_families(void **state) {
    (void)state;
    expect("", HORA_FAMILY_ALONE, 0, 1, 0, 1);
    expect("HORA_RANK=1 HORA_SIZE=2 HORA_LOCAL_RANK=1 HORA_LOCAL_SIZE=2", HORA_FAMILY_HORA, 1, 2, 1,
           2);
    expect("HORA_RANK=1 HORA_SIZE=2", HORA_FAMILY_HORA, 1, 2, -1, 0);
    expect("HOROVOD_RANK=0 HOROVOD_SIZE=2 HOROVOD_LOCAL_RANK=0 HOROVOD_LOCAL_SIZE=1",
           HORA_FAMILY_HOROVOD, 0, 2, 0, 1);
    expect("RANK=2 WORLD_SIZE=4 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", HORA_FAMILY_TORCHRUN, 2, 4, 0, 2);
    expect("RANK=2 WORLD_SIZE=4 LOCAL_RANK=0", HORA_FAMILY_TORCHRUN, 2, 4, 0, 0);
    expect(OMPI, HORA_FAMILY_OPENMPI, 3, 8, 1, 2);
    expect("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", HORA_FAMILY_MPICH, 1, 2, 1,
           2);
    expect("MV2_COMM_WORLD_RANK=1 MV2_COMM_WORLD_SIZE=2 MV2_COMM_WORLD_LOCAL_RANK=0 "
           "MV2_COMM_WORLD_LOCAL_SIZE=1", HORA_FAMILY_MVAPICH2, 1, 2, 0, 1);
    expect(SLURM, HORA_FAMILY_SLURM, 5, 7, 1, 2);
    expect("JSM_NAMESPACE_RANK=1 JSM_NAMESPACE_SIZE=2 JSM_NAMESPACE_LOCAL_RANK=1",
           HORA_FAMILY_JSRUN, 1, 2, 1, 0);
}

/* mpirun inside sbatch, torchrun inside srun: the first complete one, and nothing of the others. */
static void test_order(void **state) {
    (void)state;
    expect(SLURM " " OMPI, HORA_FAMILY_OPENMPI, 3, 8, 1, 2);
    expect(OMPI " RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", HORA_FAMILY_TORCHRUN, 0, 1,
           0, 1);
    expect(OMPI " HORA_RANK=0 HORA_SIZE=3", HORA_FAMILY_HORA, 0, 3, -1, 0);
    expect("RANK=1 WORLD_SIZE=2 " OMPI, HORA_FAMILY_OPENMPI, 3, 8, 1, 2); /* those count nodes */
    expect("HORA_RANK=1 " OMPI, HORA_FAMILY_OPENMPI, 3, 8, 1, 2);
    expect("PMI_RANK=0 PMI_SIZE=9 " SLURM, HORA_FAMILY_SLURM, 5, 7, 1, 2); /* srun --mpi=pmi2 */
    expect("SLURM_PROCID=0 SLURM_LOCALID=0", HORA_FAMILY_ALONE, 0, 1, 0, 1); /* in sbatch */
    expect("RANK=0 WORLD_SIZE=1", HORA_FAMILY_ALONE, 0, 1, 0, 1);
}

static void test_bad_values(void **state) {
    (void)state;
    expect_error("HORA_RANK=x HORA_SIZE=2", "HORA_RANK", "\"x\"");
    expect_error("HORA_RANK=-1 HORA_SIZE=2", "HORA_RANK", "-1");
    expect_error("HORA_RANK=1 HORA_SIZE=99999999999", "HORA_SIZE", "99999999999");
    expect_error("HORA_RANK=2 HORA_SIZE=2", "HORA_RANK=2", "HORA_SIZE=2");
    expect_error("HORA_RANK=0 HORA_SIZE=0", "HORA_SIZE=0", "at least 1");
    expect_error("HORA_RANK=0 HORA_SIZE=2 HORA_LOCAL_RANK=1 HORA_LOCAL_SIZE=1", "HORA_LOCAL_RANK=1",
                 "HORA_LOCAL_SIZE=1");
    expect_error("HORA_RANK=0 HORA_SIZE=2 HORA_LOCAL_RANK=0 HORA_LOCAL_SIZE=3", "HORA_LOCAL_SIZE=3",
                 "HORA_SIZE=2");
    expect_error("HORA_RANK=0", "HORA_RANK", "HORA_SIZE is not");
    expect_error("RANK=0 WORLD_SIZE=2", "WORLD_SIZE", "LOCAL_RANK is not");
    expect_error("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 "
                 "SLURM_STEP_TASKS_PER_NODE=2(x SLURM_NODEID=0", "SLURM_STEP_TASKS_PER_NODE",
                 "2(x");
}

static void test_options(void **state) {
    (void)state;
    hora_env_t env = {lookup, (void *)(uintptr_t)OMPI};
    hora_job_t job;
    assert_int_equal(hora_launcher_detect(&env, 1, 2, &job), HORA_OK);
    assert_int_equal(job.family, HORA_FAMILY_OPTIONS);
    assert_int_equal(job.rank, 1);
    assert_int_equal(job.size, 2);
    assert_int_equal(hora_launcher_detect(&env, 1, -1, &job), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(hora_launcher_detect(&env, -1, 2, &job), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(hora_launcher_detect(&env, 2, 2, &job), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(hora_launcher_detect(&env, 0, 0, &job), HORA_ERR_INVALID_ARGUMENT);
}

static void test_slurm_tasks(void **state) {
    (void)state;
    assert_int_equal(hora_slurm_tasks_on_node("4", 0), 4);
    assert_int_equal(hora_slurm_tasks_on_node("4", 1), 0);
    assert_int_equal(hora_slurm_tasks_on_node("2(x3),1", 2), 2);
    assert_int_equal(hora_slurm_tasks_on_node("2(x3),1", 3), 1);
    assert_int_equal(hora_slurm_tasks_on_node("2(x3),1", 4), 0);
    assert_int_equal(hora_slurm_tasks_on_node("1,2,3", 1), 2);
    assert_int_equal(hora_slurm_tasks_on_node("", 0), 0);
    assert_int_equal(hora_slurm_tasks_on_node("2(x0)", 0), 0);
    assert_int_equal(hora_slurm_tasks_on_node("2(x", 0), 0);
    assert_int_equal(hora_slurm_tasks_on_node("-2", 0), 0);
    assert_int_equal(hora_slurm_tasks_on_node("2;3", 1), 0);
}

static void expect_host(const char *list, const char *host) {
    char text[16];
    assert_int_equal(hora_slurm_first_host(list, text, sizeof(text)), host != NULL);
    if (host != NULL)
        assert_string_equal(text, host);
}

static void test_slurm_hosts(void **state) {
    (void)state;
    expect_host("n1", "n1");
    expect_host("n1,n2", "n1");
    expect_host("n[07-09,11],m1", "n07");
    expect_host("n[3]", "n3");
    expect_host("n[1,2]-ib,x", "n1-ib");
    expect_host("n[1-2]r[3-4]", NULL);
    expect_host("n[", NULL);
    expect_host("n[]", NULL);
    expect_host("", NULL);
    expect_host("a-name-that-is-too-long", NULL);
}

/* ---- place ----------------------------------------------------------------------------------- */

static hora_status_t find(const char *text, const char *rendezvous, hora_place_t *place) {
    hora_env_t env = {lookup, (void *)(uintptr_t)text};
    hora_job_t job;
    assert_int_equal(hora_launcher_detect(&env, -1, -1, &job), HORA_OK);
    return hora_place_find(&env, &job, rendezvous, place);
}

static void test_places(void **state) {
    (void)state;
    hora_place_t p, q;
    assert_int_equal(find("HORA_RANK=0 HORA_SIZE=2", "unix:abc", &p), HORA_OK);
    assert_true(p.local);
    assert_string_equal(p.name, "abc");
    assert_int_equal(find("HORA_RANK=0 HORA_SIZE=2", "tcp:h1:77", &p), HORA_OK);
    assert_false(p.local);
    assert_string_equal(p.host, "h1");
    assert_int_equal(p.port, 77);
    assert_int_equal(p.nports, 1);
    assert_int_equal(find("HORA_RANK=0 HORA_SIZE=2", "tcp:[::1]:77", &q), HORA_OK);
    assert_string_equal(q.host, "::1");
    assert_true(p.key == q.key); /* ranks may name the host differently */
    /* torchrun on one host, then on two */
    assert_int_equal(find("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h1 "
                          "MASTER_PORT=29500", NULL, &p), HORA_OK);
    assert_true(p.local);
    assert_int_equal(find("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h1 "
                          "MASTER_PORT=29500", "", &q), HORA_OK);
    assert_string_equal(p.name, q.name);
    assert_true(p.key == q.key);
    assert_int_equal(find("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h1 "
                          "MASTER_PORT=29501", "", &q), HORA_OK);
    assert_string_not_equal(p.name, q.name);
    assert_int_equal(find("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=h1 "
                          "MASTER_PORT=29500", NULL, &p), HORA_OK);
    assert_false(p.local);
    assert_int_equal(p.port, 29501);
    assert_int_equal(p.nports, 64);
    assert_int_equal(find("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=h1 "
                          "MASTER_PORT=65530", NULL, &p), HORA_OK);
    assert_int_equal(p.port + p.nports, 65536);
}

static void test_places_between_hosts(void **state) {
    (void)state;
    hora_place_t p, q;
    assert_int_equal(find(SLURM " SLURM_JOB_ID=12 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=n[1-4]", NULL,
                          &p), HORA_OK);
    assert_string_equal(p.host, "n1");
    assert_true(p.port >= 15000 && p.port + p.nports < 32768);
    assert_int_equal(find(SLURM " SLURM_JOB_ID=12 SLURM_STEP_ID=1 SLURM_STEP_NODELIST=n[1-4]", NULL,
                          &q), HORA_OK);
    assert_true(p.key != q.key);
    assert_int_equal(find(OMPI " PMIX_NAMESPACE=ns AZ_BATCH_MASTER_NODE=10.0.0.4:6000", NULL, &p),
                     HORA_OK);
    assert_string_equal(p.host, "10.0.0.4");
    assert_int_equal(find(OMPI, NULL, &p), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "HORA_RENDEZVOUS=tcp:HOST:PORT"));
    assert_int_equal(find(OMPI " MASTER_ADDR=h MASTER_PORT=x", NULL, &p),
                     HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "MASTER_PORT=\"x\""));
}

static void test_bad_places(void **state) {
    (void)state;
    static const char *const bad[] = {"unix:", "abc", "tcp:", "tcp:h", "tcp:h:", "tcp::80",
                                      "tcp:h:0", "tcp:h:65536", "tcp:h:8x", "udp:h:80"};
    hora_place_t p;
    char         name[160] = "unix:";
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(find("", bad[i], &p), HORA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(hora_last_error(), bad[i]));
    }
    memset(name + 5, 'x', 100);
    assert_int_equal(find("", name, &p), HORA_ERR_INVALID_ARGUMENT);
}

static void test_place_count(void **state) {
    (void)state;
    hora_place_t a, b, other;
    assert_int_equal(find("", "unix:count", &a), HORA_OK);
    assert_int_equal(find("", "unix:elsewhere", &other), HORA_OK);
    b = a;
    assert_int_equal(hora_place_count(&a, 7), HORA_OK);
    assert_string_equal(a.name, "count.0");
    a = b;
    assert_int_equal(hora_place_count(&a, 7), HORA_OK);
    assert_string_equal(a.name, "count.1");
    a = b;
    assert_int_equal(hora_place_count(&a, 8), HORA_OK); /* another rank, in a thread */
    assert_string_equal(a.name, "count.0");
    assert_int_equal(hora_place_count(&other, 7), HORA_OK);
    assert_string_equal(other.name, "elsewhere.0");
    a = b;
    assert_int_equal(hora_place_count(&a, 7), HORA_OK);
    assert_string_equal(a.name, "count.0");
}

/* Worlds of one job that are made at one time: by name, and by copy of the library. */
static void test_place_name(void **state) {
    (void)state;
    hora_place_t plain, named, again, copied, both, port;
    assert_int_equal(find("", "unix:worlds", &plain), HORA_OK);
    named = copied = both = plain;
    hora_place_name(&plain, NULL, 0);
    hora_place_name(&plain, "", 0);
    assert_string_equal(plain.name, "worlds");
    again = plain;
    hora_place_name(&named, "loader", 0);
    hora_place_name(&again, "loader", 0);
    hora_place_name(&copied, NULL, 1);
    hora_place_name(&both, "loader", 1);
    assert_string_equal(named.name, again.name);
    assert_true(named.key == again.key);
    assert_string_equal(plain.text, "unix:worlds");
    assert_non_null(strstr(named.text, "unix:worlds, name \"loader\""));
    assert_non_null(strstr(both.text, "loader"));
    assert_non_null(strstr(both.text, "copy 1 of libhora"));
    assert_true(named.key != plain.key && copied.key != plain.key && both.key != plain.key);
    assert_true(named.key != copied.key && named.key != both.key && copied.key != both.key);
    assert_string_not_equal(named.name, plain.name);
    assert_string_not_equal(named.name, copied.name);
    assert_int_equal(find("", "tcp:node1:4000", &port), HORA_OK);
    uint64_t key = port.key;
    hora_place_name(&port, "loader", 0);
    assert_int_equal(port.port, 4000);
    assert_true(port.key != key);
}

/* However the joinings of two worlds fall between each other, each is counted by itself. */
static void test_worlds_count(void **state) {
    (void)state;
    hora_place_t plain, named, a;
    assert_int_equal(find("", "unix:mixed", &plain), HORA_OK);
    named = plain;
    hora_place_name(&named, "loader", 0);
    for (unsigned i = 0; i < 3; i++) {
        char end[8];
        snprintf(end, sizeof(end), ".%u", i);
        a = plain;
        assert_int_equal(hora_place_count(&a, 9), HORA_OK);
        assert_string_equal(strrchr(a.name, '.'), end);
        a = named;
        assert_int_equal(hora_place_count(&a, 9), HORA_OK);
        assert_string_equal(strrchr(a.name, '.'), end);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),    cmocka_unit_test(test_order),
        cmocka_unit_test(test_bad_values),  cmocka_unit_test(test_options),
        cmocka_unit_test(test_slurm_tasks), cmocka_unit_test(test_slurm_hosts),
        cmocka_unit_test(test_places),      cmocka_unit_test(test_places_between_hosts),
        cmocka_unit_test(test_bad_places),  cmocka_unit_test(test_place_count),
        cmocka_unit_test(test_place_name),  cmocka_unit_test(test_worlds_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
