/*
 * A rank that dies in any phase is named by every survivor within a second, and nothing of the job
 * is left. `test_kill shm 4`: one test per phase, each for several victims and moments.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "fault.h"

#define PHASES_MAX 40
#define SWEEP      6 /* calls before the death, in the phases that are cheap */

static const char *transport;
static int         nranks;

static int victims(int *list) {
    int n = 0;
    list[n++] = 0;
    if (nranks > 2)
        list[n++] = nranks / 2;
    list[n++] = nranks - 1;
    return n;
}

/* For each victim: once between two calls, once at any moment. Which call it is, and now and then
 * an exit instead of a signal, differs from victim to victim and from phase to phase. */
static void dies(void **state) {
    const phase_t *phase = *state;
    int            list[3], n = victims(list), turn = (int)(phase - work_phases), complaints = 0;
    for (int i = 0; i < n; i++, turn++) {
        fault_case_t c = {.transport = transport, .nranks = nranks, .victim = list[i],
                          .phase = phase};
        c.call = turn % 4;
        c.how = turn % 5 == 4 ? FAULT_EXIT : FAULT_KILL;
        complaints += fault_run(&c);
        c.how = FAULT_TIMER;
        c.call = 0;
        c.delay = fault_random() * phase->duration;
        complaints += fault_run(&c);
    }
    assert_int_equal(complaints, 0);
}

/* Every call in turn is the last one before the victim's death. */
static void sweep(void **state) {
    static const char *const names[] = {"8 bytes", "64 KB", "ring", "requests", "engine, waiting"};
    int                      complaints = 0, turn = 0;
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const phase_t *phase = work_find(names[i]);
        for (int call = 0; call < SWEEP; call++, turn++) {
            fault_case_t c = {.transport = transport, .nranks = nranks, .victim = turn % nranks,
                              .phase = phase, .call = call, .how = FAULT_KILL};
            complaints += fault_run(&c);
        }
    }
    assert_int_equal(complaints, 0);
}

/* ---- While the others leave ------------------------------------------------------------------ */

typedef struct departure {
    int         victim;
    fault_how_t how;
    useconds_t  delays[FAULT_RANKS_MAX];
} departure_t;

static void departure_main(hora_comm_t *none, int rank, int size, void *arg) {
    const departure_t *d = arg;
    fault_traces_t     before = fault_traces();
    (void)none, (void)size;
    hora_comm_t *comm = harness_join();
    hora_status_t st = hora_barrier(comm, NULL);
    harness_check(st == HORA_OK || st == HORA_ERR_PEER_FAILED, "%s", hora_last_error());
    usleep(d->delays[rank]);
    if (rank == d->victim)
        fault_die(comm, d->how);
    double begin = harness_now();
    harness_ok(hora_comm_free(comm));
    harness_check(harness_now() - begin < fault_bound(), "leaving took %.2f s",
                  harness_now() - begin);
    fault_check_traces(&before);
}

static void dies_while_others_leave(void **state) {
    int complaints = 0;
    (void)state;
    for (int i = 0; i < 6; i++) {
        departure_t   d = {.victim = i % nranks, .how = i % 3 == 2 ? FAULT_EXIT : FAULT_KILL};
        harness_job_t job = {.nranks = nranks, .main = departure_main, .arg = &d,
                             .transport = transport, .deadline = 30, .bare = true};
        char          what[64];
        for (int r = 0; r < nranks; r++)
            d.delays[r] = (useconds_t)(fault_random() * 2000);
        snprintf(what, sizeof(what), "rank %d dies while the others leave", d.victim);
        complaints += fault_run_job(&job, d.victim, d.how, what);
    }
    assert_int_equal(complaints, 0);
}

int main(int argc, char **argv) {
    struct CMUnitTest tests[PHASES_MAX + 2];
    size_t            n = 0;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s shm|tcp RANKS [PHASE]\n", argv[0]);
        return 2;
    }
    transport = argv[1];
    nranks = atoi(argv[2]);
    for (const phase_t *phase = work_phases; phase->name != NULL && n < PHASES_MAX; phase++)
        if (argc == 3 || strcmp(argv[3], phase->name) == 0)
            tests[n++] = (struct CMUnitTest){phase->name, dies, NULL, NULL, (void *)phase};
    if (argc == 3) {
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(sweep);
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(dies_while_others_leave);
    }
    return _cmocka_run_group_tests(transport, tests, n, NULL, NULL);
}
