/*
 * Autotune's files (tune_file.h). Nothing in the cache is believed: every value's range is checked.
 */
#include "controller/tune_file.h"

#include "util/locale.h"
#include "util/log.h"
#include "util/record.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define FORMAT    "hora-autotune"
#define VERSION   1
#define KEYS      17

/* ---- The cache ------------------------------------------------------------------------------- */

/* The contents of a file, as they are written. */
typedef struct cache {
    char   format[32], wire[16], machine[160], algo[16];
    double version, ranks, hosts, gain;
    double values[8]; /* of the result, then of the defaults: threshold, pack, alone, oneshot */
    char   default_algo[16];
} cache_t;

static void make_fields(cache_t *c, hora_record_field_t *fields) {
    hora_record_field_t all[KEYS] = {
        {"format", c->format, sizeof(c->format), NULL, false},
        {"version", NULL, 0, &c->version, false},
        {"ranks", NULL, 0, &c->ranks, false},
        {"hosts", NULL, 0, &c->hosts, false},
        {"wire", c->wire, sizeof(c->wire), NULL, false},
        {"machine", c->machine, sizeof(c->machine), NULL, false},
        {"gain_permille", NULL, 0, &c->gain, false},
        {"fusion_threshold", NULL, 0, &c->values[0], false},
        {"pack", NULL, 0, &c->values[1], false},
        {"alone", NULL, 0, &c->values[2], false},
        {"oneshot_limit", NULL, 0, &c->values[3], false},
        {"algorithm", c->algo, sizeof(c->algo), NULL, false},
        {"default_fusion_threshold", NULL, 0, &c->values[4], false},
        {"default_pack", NULL, 0, &c->values[5], false},
        {"default_alone", NULL, 0, &c->values[6], false},
        {"default_oneshot_limit", NULL, 0, &c->values[7], false},
        {"default_algorithm", c->default_algo, sizeof(c->default_algo), NULL, false},
    };
    memcpy(fields, all, sizeof(all));
}

static bool to_bytes(double number, uint64_t *bytes_p) {
    if (!(number >= 0 && number <= (double)HORA_TUNING_BYTES_MAX) ||
        number != (double)(uint64_t)number)
        return false;
    *bytes_p = (uint64_t)number;
    return true;
}

static bool to_tuning(const double *values, const char *algo, hora_tuning_t *tuning) {
    for (tuning->algo = 0; tuning->algo < HORA_TUNING_ALGO_COUNT; tuning->algo++)
        if (strcmp(algo, hora_tuning_algo_name(tuning->algo)) == 0)
            break;
    return to_bytes(values[0], &tuning->fusion_threshold) && to_bytes(values[1], &tuning->pack) &&
           to_bytes(values[2], &tuning->alone) && to_bytes(values[3], &tuning->oneshot_limit) &&
           hora_tuning_is_sane(tuning);
}

/* What differs between where it was made and here; NULL: nothing. */
static const char *difference(const cache_t *c, const hora_tuning_t *defaults,
                              const hora_tune_place_t *place) {
    if (c->ranks != place->ranks)
        return "number of ranks";
    if (c->hosts != place->hosts)
        return "number of hosts";
    if (strcmp(c->wire, place->wire) != 0)
        return "transport";
    if (strcmp(c->machine, place->machine) != 0)
        return "machine";
    return hora_tuning_equal(defaults, &place->defaults) ? NULL : "choice of settings";
}

bool hora_tune_load(const char *path, const hora_tune_place_t *place, hora_tuning_t *tuning_p) {
    cache_t              cache;
    hora_record_field_t  fields[KEYS];
    hora_record_result_t result;
    hora_tuning_t        tuning, defaults;
    const char          *other;
    bool                 good;
    memset(&cache, 0, sizeof(cache));
    make_fields(&cache, fields);
    result = hora_record_read(path, fields, KEYS);
    if (result == HORA_RECORD_ABSENT)
        return false;
    good = result == HORA_RECORD_OK && strcmp(cache.format, FORMAT) == 0 && cache.version == VERSION &&
           to_tuning(cache.values, cache.algo, &tuning) &&
           to_tuning(cache.values + 4, cache.default_algo, &defaults);
    if (!good) {
        hora_log(HORA_LOG_WARNING, "autotune: %s is no cache of this version of hora, or damaged; it "
                 "is not used", path);
        return false;
    }
    other = difference(&cache, &defaults, place);
    if (other != NULL) {
        hora_log(HORA_LOG_WARNING, "autotune: %s was made with another %s; it is not used", path,
                 other);
        return false;
    }
    *tuning_p = tuning;
    return true;
}

static void print_tuning(FILE *file, const char *prefix, const hora_tuning_t *t) {
    fprintf(file,
            "  \"%sfusion_threshold\": %" PRIu64 ",\n  \"%spack\": %" PRIu64
            ",\n  \"%salone\": %" PRIu64 ",\n  \"%soneshot_limit\": %" PRIu64
            ",\n  \"%salgorithm\": \"%s\"",
            prefix, t->fusion_threshold, prefix, t->pack, prefix, t->alone, prefix,
            t->oneshot_limit, prefix, hora_tuning_algo_name(t->algo));
}

/* What is written. */
typedef struct result {
    const hora_tune_place_t *place;
    const hora_tuning_t     *tuning;
    double                   gain;
} result_t;

static bool print_cache(FILE *file, const void *arg) {
    const result_t          *result = arg;
    const hora_tune_place_t *place = result->place;
    fprintf(file,
            "{\n  \"format\": \"" FORMAT "\",\n  \"version\": %d,\n  \"ranks\": %d,\n"
            "  \"hosts\": %d,\n  \"wire\": \"%s\",\n  \"machine\": \"%s\",\n  \"gain_permille\": %d,\n",
            VERSION, place->ranks, place->hosts, place->wire, place->machine,
            (int)(result->gain * 1000 + 0.5));
    print_tuning(file, "", result->tuning);
    fprintf(file, ",\n");
    print_tuning(file, "default_", &place->defaults);
    return fprintf(file, "\n}\n") > 0;
}

bool hora_tune_save(const char *path, const hora_tune_place_t *place, const hora_tuning_t *tuning,
                    double gain) {
    result_t result = {place, tuning, gain};
    if (hora_record_write(path, print_cache, &result))
        return true;
    hora_log(HORA_LOG_WARNING, "autotune: the result could not be written to %s: %s", path,
             strerror(errno));
    return false;
}

/* ---- The log --------------------------------------------------------------------------------- */

FILE *hora_tune_log_open(const char *path) {
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        hora_log(HORA_LOG_WARNING, "autotune: %s cannot be written: %s", path,
                 strerror(errno));
        return NULL;
    }
    fprintf(file, "sample,phase,setting,fusion_threshold_mb,pack,alone,oneshot_limit,algorithm,bytes,"
                  "microseconds,score,gain\n");
    fflush(file);
    return file;
}

void hora_tune_log_row(FILE *file, const hora_tune_row_t *row) {
    static const char *const phases[] = {"warmup", "search", "final", "done"};
    const hora_tuning_t     *t = row->tuning;
    bool                     done = row->phase == HORA_TUNE_DONE;
    locale_t                 before = hora_locale_begin();
    const char              *setting = row->contender ? "contender" : "champion";
    if (done)
        setting = row->contender ? "tuned" : "defaults";
    fprintf(file, "%u,%s,%s,%g,%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%s,", row->number,
            phases[row->phase], setting, (double)t->fusion_threshold / 1048576.0, t->pack, t->alone,
            t->oneshot_limit, hora_tuning_algo_name(t->algo));
    if (done)
        fprintf(file, ",,,%.4f\n", row->gain);
    else
        fprintf(file, "%.0f,%.1f,%.3f,\n", row->bytes, row->us, row->bytes / row->us);
    hora_locale_end(before);
    fflush(file);
}
