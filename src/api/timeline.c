/*
 * The timeline's door: which file each rank writes, and the clocks of other hosts (hora.h). Any
 * thread.
 */
#include "api/timeline.h"

#include "bootstrap/copies.h"
#include "transport/comm.h"
#include "util/clock.h"
#include "util/fork.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLOCK_NS 1000000000u /* how long the end waits for another look at rank 0's clock */

static hora_status_t check(const hora_comm_t *comm, const char *what) {
    if (comm == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: comm is NULL", what);
    if (comm->world->fork_generation != hora_fork_generation)
        return hora_fail(HORA_ERR_UNSUPPORTED, "%s: called in the child of a fork", what);
    return HORA_OK;
}

static bool is_folder(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* PATH, PATH.rank<r>, or PATH/timeline.<r>.json. Another copy of the library in this process
 * follows the same HORA_TIMELINE and knows nothing of this one's files, so all but the first put
 * their number into the name. */
static char *file_of(const char *path, unsigned copy, int rank) {
    char  mark[24] = "";
    char *file = NULL;
    int   n;
    if (copy != 0)
        snprintf(mark, sizeof(mark), ".copy%x", copy);
    if (is_folder(path))
        n = asprintf(&file, "%s/timeline%s.%d.json", path, mark, rank);
    else if (rank > 0)
        n = asprintf(&file, "%s%s.rank%d", path, mark, rank);
    else
        n = asprintf(&file, "%s%s", path, mark);
    return n >= 0 ? file : NULL;
}

/* Ranks of one host have one clock. */
static bool knows_clock(const hora_world_t *world) {
    return world->peers[0].cross_rank == world->peers[world->rank].cross_rank;
}

static hora_status_t start(hora_world_t *world, const char *path, bool mark_cycles) {
    hora_timeline_options_t options = {.mark_cycles = mark_cycles,
                                       .copy = hora_copy_number(),
                                       .rank = world->rank,
                                       .size = world->size,
                                       .host = world->peers[world->rank].host,
                                       .clock_known = knows_clock(world)};
    char                   *file = file_of(path, options.copy, world->rank);
    hora_status_t           st;
    if (file == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "timeline %s", path);
    options.path = file;
    st = hora_timeline_begin(&world->timeline, &options);
    if (st == HORA_OK)
        hora_log(HORA_LOG_INFO, "timeline: recording into %s", file);
    if (st == HORA_OK && !options.clock_known && world->sync_clock != NULL)
        world->sync_clock(world);
    free(file);
    return st;
}

void hora_timeline_auto(hora_comm_t *comm) {
    hora_world_t          *world = comm->world;
    const hora_settings_t *settings = &world->settings;
    hora_status_t          st;
    if (settings->timeline[0] == '\0' || strcasecmp(settings->timeline, "DYNAMIC") == 0)
        return;
    st = start(world, settings->timeline, settings->timeline_mark_cycles);
    if (st != HORA_OK)
        hora_log(st == HORA_ERR_INVALID_ARGUMENT ? HORA_LOG_INFO : HORA_LOG_WARNING,
                 "%s; HORA_TIMELINE is left aside", hora_last_error());
}

hora_status_t hora_timeline_start(hora_comm_t *comm, const char *path, int mark_cycles) {
    hora_status_t st = check(comm, "timeline_start");
    if (st != HORA_OK)
        return st;
    if (path == NULL || path[0] == '\0')
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "timeline_start: no path");
    return start(comm->world, path, mark_cycles != 0);
}

/* Clocks drift apart, so they are compared at the end as well. */
static void compare_clocks(hora_world_t *world) {
    unsigned before = atomic_load(&world->timeline.clocks);
    uint64_t deadline = hora_clock_ns() + CLOCK_NS;
    if (!hora_timeline_on(&world->timeline) || knows_clock(world) || world->sync_clock == NULL)
        return;
    world->sync_clock(world);
    while (atomic_load(&world->timeline.clocks) == before && hora_clock_ns() < deadline &&
           !atomic_load(&world->peers[0].gone))
        usleep(1000);
}

hora_status_t hora_timeline_stop(hora_comm_t *comm) {
    hora_status_t st = check(comm, "timeline_stop");
    if (st != HORA_OK)
        return st;
    compare_clocks(comm->world);
    return hora_timeline_end(&comm->world->timeline);
}
