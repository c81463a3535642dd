/*
 * The background thread: drives while tasks are pending and nobody waits for them (engine.h). It
 * lets a moment pass before it begins, so that tensors gather and whoever is about to wait can
 * drive itself. It sleeps without a timeout when there is nothing to do.
 */
#include "background/engine.h"

#include "util/log.h"
#include "util/thread.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool has_work_locked(const hora_engine_t *engine) {
    if (engine->driven || engine->sleepers != NULL || atomic_load(&engine->closing))
        return false;
    return atomic_load(&engine->pending) > 0 || atomic_load(&engine->poked);
}

static void nap_locked(hora_engine_t *engine) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += HORA_LINGER_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    while (!atomic_load(&engine->closing) &&
           pthread_cond_timedwait(&engine->thread_wake, &engine->lock, &until) != ETIMEDOUT)
        ;
}

/* While tensors go on coming, a later start makes fewer and larger batches, and leaves the core to
 * the thread that makes the tensors. */
static void linger_locked(hora_engine_t *engine) {
    size_t seen;
    int    naps = 0;
    engine->thread_state = HORA_THREAD_LINGERING;
    do {
        seen = engine->enqueued;
        nap_locked(engine);
    } while (engine->enqueued != seen && ++naps < HORA_LINGERS && has_work_locked(engine));
}

static void drive_locked(hora_engine_t *engine) {
    engine->thread_state = HORA_THREAD_DRIVING;
    engine->driven = true;
    pthread_mutex_unlock(&engine->lock);
    hora_engine_drive(engine, NULL);
    pthread_mutex_lock(&engine->lock);
    engine->thread_state = HORA_THREAD_LINGERING; /* awake: looks for work before it sleeps */
    hora_engine_leave_locked(engine);
}

/* Number `index` of a list such as "0,4,8"; false: there is none. */
static bool pick_core(const char *list, int index, unsigned *core_p) {
    char         *end;
    unsigned long core;
    for (; index > 0 && list != NULL; index--)
        list = (list = strchr(list, ',')) != NULL ? list + 1 : NULL;
    if (list == NULL || *list < '0' || *list > '9')
        return false;
    core = strtoul(list, &end, 10);
    *core_p = (unsigned)core;
    return (*end == ',' || *end == '\0') && core < CPU_SETSIZE;
}

static void bind_to_core(const hora_engine_t *engine) {
    const hora_world_t *world = engine->world;
    const char         *list = world->settings.thread_affinity;
    unsigned            core;
    cpu_set_t           set;
    if (*list == '\0')
        return;
    CPU_ZERO(&set);
    if (pick_core(list, world->local_rank, &core)) {
        CPU_SET(core, &set);
        if (pthread_setaffinity_np(pthread_self(), sizeof(set), &set) == 0)
            return;
    }
    hora_log(HORA_LOG_WARNING, "HORA_THREAD_AFFINITY=\"%s\" has no core for local rank %d that this "
             "process may use; its engine's thread runs on any", list, world->local_rank);
}

static void *thread_main(void *arg) {
    hora_engine_t *engine = arg;
    hora_wait_patiently();
    bind_to_core(engine);
    pthread_mutex_lock(&engine->lock);
    while (!atomic_load(&engine->closing)) {
        if (!has_work_locked(engine)) {
            engine->thread_state = HORA_THREAD_ASLEEP;
            pthread_cond_wait(&engine->thread_wake, &engine->lock);
            continue;
        }
        linger_locked(engine);
        if (has_work_locked(engine))
            drive_locked(engine);
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/* On the watch thread of the world. */
static void poked(hora_world_t *world, void *arg) {
    (void)world;
    for (hora_engine_t *engine = arg; engine != NULL; engine = engine->next_poked) {
        pthread_mutex_lock(&engine->lock);
        atomic_store(&engine->poked, true);
        hora_engine_pass_on_locked(engine);
        pthread_mutex_unlock(&engine->lock);
    }
}

static void begin_listening(hora_engine_t *engine) {
    hora_world_t *world = engine->world;
    pthread_mutex_lock(&world->poke_lock);
    engine->next_poked = world->poked_arg;
    world->poked = poked;
    world->poked_arg = engine;
    pthread_mutex_unlock(&world->poke_lock);
}

static void end_listening(hora_engine_t *engine) {
    hora_world_t *world = engine->world;
    pthread_mutex_lock(&world->poke_lock);
    if (world->poked_arg == engine) {
        world->poked_arg = engine->next_poked;
    } else {
        hora_engine_t *other = world->poked_arg;
        while (other->next_poked != engine)
            other = other->next_poked;
        other->next_poked = engine->next_poked;
    }
    pthread_mutex_unlock(&world->poke_lock);
}

hora_status_t hora_thread_start(hora_engine_t *engine) {
    hora_status_t st;
    engine->thread_state = HORA_THREAD_LINGERING;
    st = hora_thread_spawn("hora-engine", 0, thread_main, engine, "the engine's background thread",
                           &engine->thread);
    if (st != HORA_OK) {
        engine->thread_state = HORA_THREAD_NONE;
        return st;
    }
    begin_listening(engine);
    return HORA_OK;
}

void hora_thread_stop(hora_engine_t *engine) {
    if (engine->thread_state == HORA_THREAD_NONE)
        return;
    end_listening(engine);
    pthread_join(engine->thread, NULL);
}
