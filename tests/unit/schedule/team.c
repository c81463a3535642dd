/*
 * Ranks as threads (team.h). cmocka's own checks must not be used in the threads.
 */
#include "team.h"

#include "transport/p2p.h"
#include "transport/shm/arena.h"
#include "transport/shm/pads.h"
#include "transport/transport.h"
#include "transport/wait.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static team_t     *current; /* for announce */
static team_main_t current_main;

bool team_complain(member_t *member, const char *format, ...) {
    va_list args;
    if (member->error[0] != 0)
        return false;
    va_start(args, format);
    vsnprintf(member->error, sizeof(member->error), format, args);
    va_end(args);
    return false;
}

/* The bootstrap's part: tells the other ranks. */
static void announce(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                     const char *text) {
    for (int r = 0; r < current->size; r++)
        if (r != world->rank)
            hora_world_raise(current->members[r].comm->world, channel, status, rank, text);
}

static hora_world_t *make_world(team_t *team, int rank, int *fd_p) {
    hora_world_t *world;
    assert_int_equal(hora_world_create(rank, team->size, &world), HORA_OK);
    assert_int_equal(hora_settings_load(&world->settings), HORA_OK);
    snprintf(world->settings.algo, sizeof(world->settings.algo), "%s",
             team->algo ? team->algo : "auto");
    if (team->chunk > 0)
        world->settings.chunk_size = team->chunk;
    world->settings.deterministic = team->deterministic;
    world->local_rank = rank;
    world->local_size = team->size;
    world->cross_size = 1;
    world->announce = announce;
    for (int r = 0; r < team->size; r++) {
        world->peers[r].local = world->peers[r].local_rank = r;
        snprintf(world->peers[r].host, sizeof(world->peers[r].host), "host%d", r);
    }
    assert_int_equal(hora_arena_create(world, rank, team->size, 64u << 20, &world->arena, fd_p),
                     HORA_OK);
    hora_wait_setup(world);
    return world;
}

static void link_worlds(team_t *team, hora_world_t **worlds, const int *fds) {
    for (int r = 0; r < team->size; r++) {
        hora_world_t *world = worlds[r];
        world->bell = hora_arena_bell(world->arena, r);
        for (int p = 0; p < team->size; p++) {
            if (p != r)
                assert_int_equal(hora_arena_map(world->arena, p, dup(fds[p])), HORA_OK);
            world->peers[p].bell = hora_arena_bell(world->arena, p);
            world->peers[p].eventfd = worlds[p]->eventfd;
        }
        assert_int_equal(hora_transport_shm.open(world, &world->transports[0]), HORA_OK);
        world->ntransports = 1;
        for (int p = 0; p < team->size; p++)
            if (p != r)
                assert_int_equal(hora_transport_shm.connect(world->transports[0], p, NULL, 0,
                                                            &world->peers[p].link), HORA_OK);
    }
}

static hora_comm_t *make_comm(team_t *team, hora_world_t *world) {
    hora_comm_t *comm = calloc(1, sizeof(*comm));
    comm->world = world;
    comm->rank = world->rank;
    comm->size = team->size;
    comm->world_ranks = calloc((size_t)team->size, sizeof(*comm->world_ranks));
    for (int r = 0; r < team->size; r++)
        comm->world_ranks[r] = r;
    comm->local_rank = world->rank;
    comm->local_size = team->size;
    comm->cross_size = 1;
    comm->channel = 1;
    comm->tiny_allowed = comm->boards_allowed = team->algo == NULL;
    comm->timeout = team->timeout > 0 ? team->timeout : 20;
    world->comms = comm;
    return comm;
}

static void *run_member(void *arg) {
    member_t *member = arg;
    if (member->team->pads && hora_pads_create(member->comm, 0) != HORA_OK)
        team_complain(member, "no pads: %s", hora_last_error());
    else
        current_main(member);
    return NULL;
}

static void free_member(member_t *member) {
    hora_world_t *world = member->comm->world;
    hora_exec_forget(member->comm);
    hora_pads_give_up(member->comm->pads);
    world->comms = NULL;
    free(member->comm->world_ranks);
    free(member->comm);
    hora_transport_shm.close(world->transports[0]);
    world->ntransports = 0;
    hora_arena_destroy(world->arena);
    world->arena = NULL;
    hora_world_destroy(world);
}

void team_run(team_t *team, team_main_t main) {
    hora_world_t *worlds[TEAM_MAX];
    pthread_t     threads[TEAM_MAX];
    int           fds[TEAM_MAX];
    current = team;
    current_main = main;
    for (int r = 0; r < team->size; r++)
        worlds[r] = make_world(team, r, &fds[r]);
    link_worlds(team, worlds, fds);
    for (int r = 0; r < team->size; r++)
        team->members[r] = (member_t){.team = team, .comm = make_comm(team, worlds[r]), .rank = r,
                                      .size = team->size, .arg = team->arg};
    for (int r = 0; r < team->size; r++)
        assert_int_equal(pthread_create(&threads[r], NULL, run_member, &team->members[r]), 0);
    for (int r = 0; r < team->size; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < team->size; r++)
        free_member(&team->members[r]);
    for (int r = 0; r < team->size; r++)
        if (team->members[r].error[0] != 0)
            fail_msg("rank %d of %d (%s, %s): %s", r, team->size, team->pads ? "pads" : "messages",
                     team->algo ? team->algo : "auto", team->members[r].error);
}
