/*
 * Autotune in the engine: how it begins by the settings, on rank 0, and how every rank takes up what
 * rank 0 says. The thread that creates the engine, then the driving thread.
 *
 * Only an engine on all ranks of the job is tuned: a result must be one that the next job can use.
 * Of several such engines only the first is: there is one log, and one cache.
 */
#include "background/engine.h"

#include "controller/tune.h"
#include "controller/tune_file.h"
#include "transport/machine.h"
#include "util/clock.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PACK_SHARED  ((uint64_t)1 << 20)
#define ALONE_SHARED ((uint64_t)256 << 10)
#define ALONE_LINKS  ((uint64_t)8 << 20)
#define SAMPLE_NS    20000000u /* shorter samples say more about the machine's mood */

struct hora_tuner {
    hora_tune_t      *tune;
    FILE             *log; /* NULL: none */
    hora_tune_place_t place;
    hora_engine_t    *engine;
};

/* ---- Taking up -------------------------------------------------------------------------------- */

void hora_tuning_apply(hora_engine_t *engine, const hora_tuning_t *tuning) {
    hora_comm_t *comm = engine->comm;
    engine->tuning = *tuning;
    engine->fusion_threshold = tuning->fusion_threshold;
    comm->tuned_oneshot = tuning->oneshot_limit;
    comm->tuned_large = HORA_TUNING_LARGE;
    comm->tuned_algo = tuning->algo != HORA_TUNING_AUTO ? hora_tuning_algo_name(tuning->algo) : NULL;
}

static uint64_t at_most(uint64_t bytes) {
    return bytes < HORA_TUNING_BYTES_MAX ? bytes : HORA_TUNING_BYTES_MAX;
}

static hora_tuning_t defaults_of(const hora_engine_t *engine) {
    bool shared = engine->comm->pads != NULL;
    return (hora_tuning_t){.fusion_threshold = at_most(engine->fusion_threshold),
                           .pack = shared ? PACK_SHARED : HORA_TUNING_BYTES_MAX,
                           .alone = shared ? ALONE_SHARED : ALONE_LINKS,
                           .oneshot_limit = at_most(engine->world->settings.oneshot_limit),
                           .algo = HORA_TUNING_AUTO};
}

/* ---- Where we are ------------------------------------------------------------------------------ */

static void describe_place(const hora_engine_t *engine, hora_tune_place_t *place) {
    *place = (hora_tune_place_t){.ranks = engine->size, .hosts = engine->comm->cross_size,
                                 .defaults = engine->tuning};
    snprintf(place->wire, sizeof(place->wire), "%s", hora_machine_wire(engine->world));
    hora_machine_describe(place->machine, sizeof(place->machine));
}

/* ---- Rank 0 ------------------------------------------------------------------------------------ */

static uint64_t read_clock(void *arg) {
    (void)arg;
    return hora_clock_ns();
}

static void say_end(const hora_tune_row_t *row) {
    const hora_tuning_t *t = row->tuning;
    if (!row->contender) {
        hora_log(HORA_LOG_INFO, "autotune: nothing is clearly faster than the defaults; they stay");
        return;
    }
    hora_log(HORA_LOG_INFO, "autotune: %.1f %% more bytes per second than with the defaults by fusion "
             "threshold %llu, pack %llu, alone %llu, oneshot limit %llu, algorithm %s",
             100 * (row->gain - 1), (unsigned long long)t->fusion_threshold,
             (unsigned long long)t->pack, (unsigned long long)t->alone,
             (unsigned long long)t->oneshot_limit, hora_tuning_algo_name(t->algo));
}

static void note(void *arg, const hora_tune_row_t *row) {
    struct hora_tuner *tuner = arg;
    const char        *cache = tuner->engine->world->settings.autotune_cache;
    if (tuner->log != NULL)
        hora_tune_log_row(tuner->log, row);
    if (row->phase != HORA_TUNE_DONE)
        return;
    say_end(row);
    if (cache[0] != '\0')
        hora_tune_save(cache, &tuner->place, row->tuning, row->gain);
}

static bool is_set(const char *name, const char *other) {
    return getenv(name) != NULL || (other != NULL && getenv(other) != NULL);
}

static int limited(int64_t value, int least, int most) {
    return value < least ? least : value > most ? most : (int)value;
}

static hora_tune_options_t options_of(hora_engine_t *engine, struct hora_tuner *tuner) {
    const hora_settings_t *settings = &engine->world->settings;
    bool                   forced = strcmp(settings->algo, "auto") != 0;
    return (hora_tune_options_t){
        .defaults = engine->tuning,
        .shared = engine->comm->pads != NULL,
        .fixed_threshold = is_set("HORA_FUSION_THRESHOLD", "HOROVOD_FUSION_THRESHOLD") ||
                           engine->fusion_threshold != settings->fusion_threshold,
        .fixed_oneshot = forced || is_set("HORA_ONESHOT_LIMIT", NULL),
        .fixed_algo = forced || settings->deterministic,
        .warmup = limited(settings->autotune_warmup_samples, 0, 1000000),
        .steps = limited(settings->autotune_steps_per_sample, 1, 1000000),
        .most = limited(settings->autotune_max_candidates, 0, 1000),
        .sample_ns = SAMPLE_NS,
        .clock = read_clock,
        .note = note,
        .arg = tuner,
    };
}

static hora_status_t create_tune(hora_engine_t *engine, struct hora_tuner *tuner) {
    const hora_settings_t *settings = &engine->world->settings;
    hora_tune_options_t    options = options_of(engine, tuner);
    hora_tuning_t          loaded;
    describe_place(engine, &tuner->place);
    if (settings->autotune_cache[0] != '\0' &&
        hora_tune_load(settings->autotune_cache, &tuner->place, &loaded)) {
        options.loaded = &loaded;
        hora_log(HORA_LOG_INFO, "autotune: %s is used", settings->autotune_cache);
    } else if (!settings->autotune) {
        return HORA_OK;
    } else if (settings->autotune_log[0] != '\0') {
        tuner->log = hora_tune_log_open(settings->autotune_log);
    }
    return hora_tune_create(&options, &tuner->tune);
}

/* Every rank remembers it, since the next engine may have another rank as its rank 0. */
static bool is_first(hora_engine_t *engine) {
    void *none = NULL;
    return engine->size == engine->world->size &&
           atomic_compare_exchange_strong(&engine->world->tuned, &none, engine);
}

hora_status_t hora_tuner_create(hora_engine_t *engine) {
    const hora_settings_t *settings = &engine->world->settings;
    engine->tuning = defaults_of(engine);
    if (!is_first(engine) || engine->rank != 0 || engine->size == 1 ||
        (!settings->autotune && settings->autotune_cache[0] == '\0'))
        return HORA_OK;
    engine->tuner = calloc(1, sizeof(*engine->tuner));
    if (engine->tuner == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "autotune");
    engine->tuner->engine = engine;
    return create_tune(engine, engine->tuner);
}

void hora_tuner_destroy(hora_engine_t *engine) {
    void *self = engine;
    atomic_compare_exchange_strong(&engine->world->tuned, &self, NULL);
    if (engine->tuner == NULL)
        return;
    hora_tune_destroy(engine->tuner->tune);
    if (engine->tuner->log != NULL)
        fclose(engine->tuner->log);
    free(engine->tuner);
    engine->tuner = NULL;
}

struct hora_tune *hora_tuner_tune(const hora_engine_t *engine) {
    return engine->tuner != NULL ? engine->tuner->tune : NULL;
}
