/*
 * The mpi transport without MPI: what the loader refuses, and what the transport does when MPI
 * fails. Arguments: a plug-in of another interface, one for another MPI, a library that is no plug-
 * in, and the fake (fake_mpi.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake_mpi.h"

#include "transport/match.h"
#include "transport/mpi/internal.h"
#include "transport/mpi/loader.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static char      **paths; /* see above, from 1 */
static fake_mpi_t *fake;

typedef struct pair {
    hora_world_t     *world[2];
    hora_transport_t *t[2];
    hora_link_t      *link[2];
} pair_t;

/* ---- The loader ---- */

static void refuse(const char *path, const char *says) {
    const hora_mpi_plugin_t *plugin = NULL;
    assert_int_equal(hora_mpi_load(path, &plugin), HORA_ERR_UNSUPPORTED);
    assert_null(plugin);
    assert_non_null(strstr(hora_last_error(), says));
    assert_string_equal(hora_mpi_path(), "");
}

static void test_refuses(void **state) {
    refuse("/nowhere/libhora_mpi.so", "/nowhere/libhora_mpi.so");
    refuse("", "HORA_MPI_LIBRARY"); /* none lies beside this test */
    refuse(paths[1], "another version of hora");
    refuse(paths[2], "fake fails");
    refuse(paths[3], "not a hora MPI plug-in");
}

static void test_probe(void **state) {
    hora_backend_t backend = HORA_BACKEND_INIT;
    setenv("HORA_MPI_LIBRARY", "/nowhere/libhora_mpi.so", 1);
    assert_false(hora_mpi_probe(&backend));
    assert_non_null(strstr(backend.detail, "/nowhere/libhora_mpi.so"));
    assert_non_null(strstr(backend.remedy, "pip install"));
    setenv("HORA_MPI_LIBRARY", paths[4], 1);
    memset(&backend, 0, sizeof(backend));
    assert_true(hora_mpi_probe(&backend));
    assert_non_null(strstr(backend.detail, "Fake MPI 1.0"));
    assert_string_equal(backend.remedy, "");
    assert_string_equal(hora_mpi_path(), paths[4]);
}

static void test_keeps_the_first(void **state) {
    const hora_mpi_plugin_t *plugin = NULL;
    assert_int_equal(hora_mpi_load("/nowhere/else.so", &plugin), HORA_OK);
    assert_string_equal(hora_mpi_path(), paths[4]);
    fake = dlsym(dlopen(paths[4], RTLD_NOW | RTLD_NOLOAD), "fake_mpi");
    assert_non_null(fake);
}

/* ---- Two ranks over the fake ---- */

static int set_up(void **state) {
    pair_t *p = calloc(1, sizeof(*p));
    uint8_t address[2][HORA_ADDRESS_MAX];
    size_t  len[2];
    *fake = (fake_mpi_t){.size = 2};
    for (int r = 0; r < 2; r++) {
        len[r] = HORA_ADDRESS_MAX;
        assert_int_equal(hora_world_create(r, 2, &p->world[r]), HORA_OK);
        assert_int_equal(hora_settings_load(&p->world[r]->settings), HORA_OK);
        assert_int_equal(hora_transport_mpi.open(p->world[r], &p->t[r]), HORA_OK);
        assert_int_equal(hora_transport_mpi.address(p->t[r], address[r], &len[r]), HORA_OK);
    }
    for (int r = 0; r < 2; r++)
        assert_int_equal(hora_transport_mpi.connect(p->t[r], !r, address[!r], len[!r], &p->link[r]),
                         HORA_OK);
    *state = p;
    return 0;
}

static int tear_down(void **state) {
    pair_t *p = *state;
    for (int r = 0; r < 2; r++) {
        hora_transport_mpi.close(p->t[r]);
        hora_world_destroy(p->world[r]);
    }
    free(p);
    return 0;
}

static void turn(pair_t *p) {
    for (int i = 0; i < 10; i++)
        hora_transport_mpi.progress(p->t[i % 2], NULL);
}

static hora_xfer_t xfer_of(void *buf, size_t len) {
    return (hora_xfer_t){.buf = buf, .len = len, .tag = 3};
}

static void test_carries(void **state) {
    pair_t        *p = *state;
    static uint8_t in[100000], out[100000];
    static size_t  lens[] = {0, 1, PACKET_BODY, PACKET_BODY + 1, sizeof(out)};
    memset(out, 9, sizeof(out));
    ((mpi_transport_t *)p->t[0])->part = ((mpi_transport_t *)p->t[1])->part = 30000;
    for (int i = 0; i < 10; i++) {
        size_t      len = lens[i / 2];
        hora_xfer_t s = xfer_of(out, len), r = xfer_of(in, len);
        memset(in, 0, sizeof(in));
        if (i % 2)
            hora_transport_mpi.recv(p->link[1], &r);
        hora_transport_mpi.send(p->link[0], &s);
        turn(p);
        if (!(i % 2))
            hora_transport_mpi.recv(p->link[1], &r);
        turn(p);
        assert_int_equal(s.status, HORA_OK);
        assert_int_equal(r.status, HORA_OK);
        assert_int_equal(r.moved, len);
        assert_memory_equal(in, out, len);
    }
}

/* The receive is posted while MPI already writes the body into memory of our own. */
static void test_joins_half_way(void **state) {
    pair_t        *p = *state;
    static uint8_t in[50000], out[50000];
    hora_xfer_t    s = xfer_of(out, sizeof(out)), r = xfer_of(in, sizeof(in));
    memset(out, 5, sizeof(out));
    fake->hold_bodies = true;
    hora_transport_mpi.send(p->link[0], &s);
    turn(p);
    hora_transport_mpi.recv(p->link[1], &r);
    turn(p);
    assert_int_equal(r.status, HORA_IN_PROGRESS);
    fake->hold_bodies = false;
    turn(p);
    assert_int_equal(r.status, HORA_OK);
    assert_memory_equal(in, out, sizeof(out));
}

static void expect_dead(pair_t *p, hora_status_t status) {
    uint8_t     byte = 0;
    hora_xfer_t s = xfer_of(&byte, 1), r = xfer_of(&byte, 1);
    int         calls = fake->calls;
    hora_transport_mpi.send(p->link[0], &s);
    hora_transport_mpi.recv(p->link[0], &r);
    assert_int_equal(s.status, status);
    assert_int_equal(r.status, status);
    assert_int_equal(hora_transport_mpi.progress(p->t[0], NULL), 0);
    assert_int_equal(fake->calls, calls); /* MPI is left alone from then on */
}

static void test_send_fails(void **state) {
    pair_t     *p = *state;
    uint8_t     byte = 0;
    hora_xfer_t s = xfer_of(&byte, 1), r = xfer_of(&byte, 1);
    hora_transport_mpi.recv(p->link[0], &r);
    fake->fail_send = true;
    hora_transport_mpi.send(p->link[0], &s);
    assert_int_equal(s.status, HORA_ERR_PEER_FAILED);
    assert_int_equal(r.status, HORA_ERR_PEER_FAILED);
    assert_non_null(strstr(hora_last_error(), "rank 1"));
    assert_non_null(strstr(hora_last_error(), "as asked"));
    expect_dead(p, HORA_ERR_PEER_FAILED);
    fake->fail_send = false;
}

static void test_progress_fails(void **state) {
    pair_t        *p = *state;
    static uint8_t body[9000];
    hora_xfer_t    s = xfer_of(body, sizeof(body)), r = xfer_of(body, sizeof(body));
    hora_transport_mpi.send(p->link[0], &s);
    hora_transport_mpi.recv(p->link[0], &r);
    fake->fail_test = true;
    hora_transport_mpi.progress(p->t[0], NULL);
    assert_int_equal(s.status, HORA_ERR_PEER_FAILED);
    assert_int_equal(r.status, HORA_ERR_PEER_FAILED);
    expect_dead(p, HORA_ERR_PEER_FAILED);
    fake->fail_test = false;
}

static void test_malformed(void **state) {
    pair_t     *p = *state;
    uint8_t     byte = 0;
    hora_xfer_t s = xfer_of(&byte, 1), r = xfer_of(&byte, 1);
    hora_transport_mpi.recv(p->link[0], &r);
    fake->corrupt = true;
    hora_transport_mpi.send(p->link[1], &s);
    turn(p);
    assert_int_equal(r.status, HORA_ERR_PROTOCOL);
    expect_dead(p, HORA_ERR_PROTOCOL);
}

/* MPI holds on to a buffer: the transfer ends, and MPI is not called again. */
static void withdraw_in_vain(pair_t *p, bool sends) {
    static uint8_t out[9000], in[9000];
    hora_xfer_t    s = xfer_of(out, sizeof(out)), r = xfer_of(in, sizeof(in));
    hora_xfer_t   *mine = sends ? &s : &r;
    fake->hold_bodies = true;
    hora_transport_mpi.recv(p->link[sends ? 1 : 0], &r);
    hora_transport_mpi.send(p->link[sends ? 0 : 1], &s);
    turn(p);
    assert_int_equal(mine->status, HORA_IN_PROGRESS);
    hora_transport_mpi.cancel(p->link[0], mine);
    assert_int_equal(mine->status, HORA_ERR_PEER_FAILED);
    expect_dead(p, HORA_ERR_PEER_FAILED);
    hora_transport_mpi.cancel(p->link[1], sends ? &r : &s);
    fake->hold_bodies = false;
}

static void test_holds_a_receive(void **state) {
    withdraw_in_vain(*state, false);
}

static void test_holds_a_send(void **state) {
    withdraw_in_vain(*state, true);
}

static void test_cancel_in_time(void **state) {
    pair_t        *p = *state;
    static uint8_t out[9000], in[9000];
    hora_xfer_t    s = xfer_of(out, sizeof(out)), r = xfer_of(in, sizeof(in));
    memset(out, 1, sizeof(out));
    hora_transport_mpi.recv(p->link[0], &r);
    hora_transport_mpi.cancel(p->link[0], &r); /* before anything came */
    assert_int_equal(r.status, HORA_ERR_ABORTED);
    hora_transport_mpi.send(p->link[1], &s);
    turn(p);
    assert_int_equal(s.status, HORA_OK); /* taken into memory of the receiver's own */
    assert_int_equal(in[0] | in[sizeof(in) - 1], 0);
    r = xfer_of(in, sizeof(in));
    hora_transport_mpi.recv(p->link[0], &r);
    assert_int_equal(r.status, HORA_OK);
    assert_memory_equal(in, out, sizeof(in));
}

static void test_open_errors(void **state) {
    hora_world_t     *world;
    hora_transport_t *t = NULL;
    assert_int_equal(hora_world_create(0, 2, &world), HORA_OK);
    assert_int_equal(hora_settings_load(&world->settings), HORA_OK);
    *fake = (fake_mpi_t){.size = 1}; /* another MPI's mpirun: each process is a job of one */
    assert_int_equal(hora_transport_mpi.open(world, &t), HORA_ERR_UNSUPPORTED);
    assert_non_null(strstr(hora_last_error(), "mpirun"));
    *fake = (fake_mpi_t){.size = 2, .never_ready = true};
    world->settings.start_timeout = 0.1;
    assert_int_equal(hora_transport_mpi.open(world, &t), HORA_ERR_TIMEOUT);
    assert_int_equal(fake->closed[HORA_MPI_DIRTY], 1);
    assert_null(t);
    hora_world_destroy(world);
}

int main(int argc, char **argv) {
    const struct CMUnitTest loader[] = {
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_keeps_the_first),
        cmocka_unit_test(test_open_errors),
    };
    const struct CMUnitTest transport[] = {
        cmocka_unit_test_setup_teardown(test_carries, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_joins_half_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_send_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_progress_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_malformed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_holds_a_receive, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_holds_a_send, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cancel_in_time, set_up, tear_down),
    };
    if (argc != 5)
        return 2;
    paths = argv;
    unsetenv("HORA_MPI_LIBRARY");
    int failed = cmocka_run_group_tests(loader, NULL, NULL);
    return failed || cmocka_run_group_tests(transport, NULL, NULL);
}
