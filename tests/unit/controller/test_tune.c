/*
 * src/controller/tune.c and tune_file.c: the search with simulated costs and noise, the counting of
 * steps, the cache and the log.
 */
#include "../comma.h"
#include "controller/tune.h"
#include "controller/tune_file.h"
#include "util/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KB ((uint64_t)1 << 10)
#define MB ((uint64_t)1 << 20)

static const hora_tuning_t shared = {128 * MB, 1 * MB, 256 * KB, 32 * KB, HORA_TUNING_AUTO};
static const hora_tuning_t links = {128 * MB, HORA_TUNING_BYTES_MAX, 8 * MB, 32 * KB,
                                    HORA_TUNING_AUTO};

/* ---- A job with a known cost ------------------------------------------------------------------ */

typedef double (*speed_t)(const hora_tuning_t *); /* 1: that of the defaults */

static uint32_t random_state;

static double uniform(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return ((random_state >> 8) + 0.5) / (1 << 24);
}

static double normal(void) {
    return sqrt(-2 * log(uniform())) * cos(6.283185307 * uniform());
}

static uint64_t no_clock(void *arg) {
    (void)arg;
    return 0;
}

static hora_tune_t *make(hora_tuning_t defaults, bool is_shared) {
    hora_tune_options_t options = {.defaults = defaults, .shared = is_shared, .warmup = 3,
                                   .steps = 10, .most = 20, .clock = no_clock};
    hora_tune_t        *tune;
    assert_int_equal(hora_tune_create(&options, &tune), HORA_OK);
    return tune;
}

/* Tunes to the end; returns the true speed of what it chose. noise: relative, of each sample; now and
 * then a sample takes three times as long; and the job gets slower and slower. */
static double outcome(hora_tuning_t defaults, bool is_shared, speed_t speed, double noise,
                      unsigned seed, int *samples_p) {
    hora_tune_t *tune = make(defaults, is_shared);
    double       result;
    int          n = 0;
    random_state = seed * 2654435761u + 1;
    for (; hora_tune_phase(tune) != HORA_TUNE_DONE; n++) {
        double us = 1e4 / speed(hora_tune_current(tune)) * exp(noise * normal()) * (1 + n * 1e-3);
        if (noise > 0 && uniform() < 0.05)
            us *= 3;
        assert_true(n < 2000);
        hora_tune_sample(tune, 1e6, us);
    }
    result = speed(hora_tune_current(tune));
    hora_tune_destroy(tune);
    if (samples_p != NULL)
        *samples_p = n;
    return result;
}

static double flat(const hora_tuning_t *t) {
    (void)t;
    return 1;
}

/* Everything but the defaults is worse, by 3 % a knob. */
static double defaults_are_best(const hora_tuning_t *t) {
    const hora_tuning_t *d = t->pack == HORA_TUNING_BYTES_MAX ? &links : &shared;
    int changed = (t->pack != d->pack) + (t->alone != d->alone) +
                  (t->oneshot_limit != d->oneshot_limit) +
                  (t->fusion_threshold != d->fusion_threshold) + (t->algo != d->algo);
    return pow(0.97, changed);
}

static double packs_want_to_be_small(const hora_tuning_t *t) {
    double speed = t->pack == 256 * KB ? 1.2 : t->pack == 512 * KB ? 1.1 : t->pack > MB ? 0.7 : 1;
    return speed * (t->alone == 64 * KB ? 1.15 : t->alone == 128 * KB ? 1.1 : 1);
}

static double ring_and_small_batches(const hora_tuning_t *t) {
    double speed = t->algo == HORA_TUNING_RING ? 1.3 : t->algo == HORA_TUNING_DIRECT ? 0.8 : 1;
    return speed * (t->fusion_threshold == 16 * MB ? 1.1 : t->fusion_threshold < 8 * MB ? 0.6 : 1);
}

static void search__finds_what_is_faster(void **state) {
    int samples;
    (void)state;
    assert_true(outcome(shared, true, packs_want_to_be_small, 0, 1, &samples) > 1.37);
    assert_true(samples < 200);
    assert_true(outcome(links, false, ring_and_small_batches, 0, 1, &samples) > 1.42);
    assert_true(samples < 200);
    assert_true(outcome(shared, true, flat, 0, 1, &samples) == 1);
}

static void search__finds_it_in_noise(void **state) {
    double sum = 0, least = 9;
    (void)state;
    for (unsigned seed = 0; seed < 200; seed++) {
        double speed = outcome(links, false, ring_and_small_batches, 0.08, seed, NULL);
        least = speed < least ? speed : least;
        sum += speed;
    }
    assert_true(sum / 200 > 1.2);
    assert_true(least >= 0.99);
}

static void search__keeps_the_defaults_where_all_else_is_worse(void **state) {
    static const double noises[] = {0, 0.02, 0.08, 0.3};
    (void)state;
    for (size_t k = 0; k < 4; k++)
        for (unsigned seed = 0, kept = 0; seed < 200; seed++) {
            bool is_shared = seed % 2;
            kept += outcome(is_shared ? shared : links, is_shared, defaults_are_best, noises[k],
                            seed, NULL) == 1;
            if (seed == 199 && kept < 197)
                fail_msg("with noise of %g it kept the defaults in %u of 200 jobs", noises[k], kept);
        }
}

static void search__leaves_alone_what_the_user_has_set(void **state) {
    hora_tune_options_t options = {.defaults = links, .warmup = 0, .steps = 1, .most = 20,
                                   .fixed_threshold = true, .fixed_algo = true, .clock = no_clock};
    hora_tune_t        *tune;
    (void)state;
    assert_int_equal(hora_tune_create(&options, &tune), HORA_OK);
    while (hora_tune_phase(tune) != HORA_TUNE_DONE) {
        const hora_tuning_t *t = hora_tune_current(tune);
        assert_true(t->fusion_threshold == links.fusion_threshold && t->algo == links.algo);
        hora_tune_sample(tune, 1000, t->alone == 8 * MB ? 2 : 1);
    }
    assert_true(hora_tune_current(tune)->alone == MB);
    hora_tune_destroy(tune);
}

static void search__tries_no_more_than_asked(void **state) {
    hora_tune_options_t options = {.defaults = shared, .shared = true, .warmup = 2, .steps = 1,
                                   .most = 0, .clock = no_clock};
    hora_tune_t        *tune;
    (void)state;
    assert_int_equal(hora_tune_create(&options, &tune), HORA_OK);
    hora_tune_sample(tune, 1, 1);
    assert_int_equal(hora_tune_phase(tune), HORA_TUNE_WARMUP);
    hora_tune_sample(tune, 1, 1);
    assert_int_equal(hora_tune_phase(tune), HORA_TUNE_DONE);
    hora_tune_destroy(tune);
}

/* Settings change only between samples, and each change is news exactly once. */
static void news__come_with_each_change(void **state) {
    hora_tune_t  *tune = make(shared, true);
    hora_tuning_t known = *hora_tune_current(tune);
    (void)state;
    assert_true(hora_tune_take_news(tune)); /* the ranks' own defaults may be others */
    assert_false(hora_tune_take_news(tune));
    random_state = 7;
    while (hora_tune_phase(tune) != HORA_TUNE_DONE) {
        bool changed;
        hora_tune_sample(tune, 1000, 1 + 0.1 * uniform());
        assert_true(hora_tuning_is_sane(hora_tune_current(tune)));
        changed = !hora_tuning_equal(&known, hora_tune_current(tune));
        assert_true(hora_tune_take_news(tune) == changed);
        known = *hora_tune_current(tune);
    }
    assert_false(hora_tune_take_news(tune));
    hora_tune_destroy(tune);
}

/* ---- Steps ------------------------------------------------------------------------------------ */

typedef struct job {
    uint64_t now;
    int      rows;
    double   bytes, us;
} job_t;

static uint64_t job_clock(void *arg) {
    return ((job_t *)arg)->now;
}

static void job_note(void *arg, const hora_tune_row_t *row) {
    job_t *job = arg;
    job->rows++;
    job->bytes = row->bytes;
    job->us = row->us;
}

/* Three tensors a step, 4000 bytes, 30 us; the third comes every other step only. */
static void run_steps(hora_tune_t *tune, job_t *job, hora_tune_mark_t *marks, int first, int last) {
    for (int step = first; step < last; step++)
        for (int i = 0; i < (step % 2 ? 3 : 2); i++) {
            job->now += 10000;
            hora_tune_tensor(tune, &marks[i], i == 2 ? 2000 : 1000);
        }
}

static void sample__is_some_whole_steps_after_one_that_settles(void **state) {
    job_t               job = {.now = 5};
    hora_tune_mark_t    marks[3] = {{0, 0}};
    hora_tune_options_t options = {.defaults = shared, .shared = true, .warmup = 2, .steps = 4,
                                   .most = 5, .clock = job_clock, .note = job_note, .arg = &job};
    hora_tune_t        *tune;
    (void)state;
    assert_int_equal(hora_tune_create(&options, &tune), HORA_OK);
    run_steps(tune, &job, marks, 0, 5);
    assert_int_equal(job.rows, 0); /* step 0 settles, 1 to 4 are the sample, 5 ends it */
    run_steps(tune, &job, marks, 5, 6);
    assert_int_equal(job.rows, 1);
    assert_true(job.bytes == 2 * 4000 + 2 * 2000);
    assert_true(fabs(job.us - 100) < 1e-6);
    run_steps(tune, &job, marks, 6, 10); /* no change in between: the next one begins at once */
    assert_int_equal(job.rows, 2);
    hora_tune_destroy(tune);
}

static void sample__lasts_long_enough(void **state) {
    job_t               job = {.now = 5};
    hora_tune_mark_t    marks[3] = {{0, 0}};
    hora_tune_options_t options = {.defaults = shared, .shared = true, .warmup = 2, .steps = 1,
                                   .most = 5, .sample_ns = 1000000, .clock = job_clock,
                                   .note = job_note, .arg = &job};
    hora_tune_t        *tune;
    (void)state;
    assert_int_equal(hora_tune_create(&options, &tune), HORA_OK);
    run_steps(tune, &job, marks, 0, 40);
    assert_int_equal(job.rows, 0);
    run_steps(tune, &job, marks, 40, 43);
    assert_int_equal(job.rows, 1);
    assert_true(job.us >= 1000);
    hora_tune_destroy(tune);
}

/* ---- Files ------------------------------------------------------------------------------------ */

static char folder[] = "/tmp/hora-tune-XXXXXX";
static char path[64];

static const hora_tune_place_t here = {4, 2, "tcp", "x86_64, 8 cores, Some CPU @ 2.1 GHz",
                                       {128 * MB, HORA_TUNING_BYTES_MAX, 8 * MB, 32 * KB, 0}};
static const hora_tuning_t found = {16 * MB, HORA_TUNING_BYTES_MAX, 1 * MB, 32 * KB,
                                    HORA_TUNING_RING};

static int make_folder(void **state) {
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/cache.json", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static char *slurp(const char *name) {
    char  *text = calloc(1, 8192);
    FILE  *file = fopen(name, "r");
    size_t n = file != NULL ? fread(text, 1, 8191, file) : 0;
    if (file != NULL)
        fclose(file);
    text[n] = '\0';
    return text;
}

static void spill(const char *text, size_t len) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    fclose(file);
}

static bool loads(const hora_tune_place_t *place) {
    hora_tuning_t tuning = {1, 2, 3, 4, 5};
    bool          good = hora_tune_load(path, place, &tuning);
    if (good)
        assert_true(hora_tuning_equal(&tuning, &found));
    else
        assert_true(tuning.pack == 2); /* written only on success */
    return good;
}

static void cache__comes_back_as_it_was_written(void **state) {
    (void)state;
    assert_false(loads(&here)); /* there is none yet */
    assert_true(hora_tune_save(path, &here, &found, 1.0734));
    assert_true(loads(&here));
    assert_true(hora_tune_save(path, &here, &found, 1.2)); /* over the old one */
    assert_true(loads(&here));
}

static void cache__of_another_place_is_refused(void **state) {
    hora_tune_place_t other;
    (void)state;
    assert_true(hora_tune_save(path, &here, &found, 1.1));
#define REFUSED(change) (other = here, change, assert_false(loads(&other)))
    REFUSED(other.ranks = 5);
    REFUSED(other.hosts = 1);
    REFUSED(strcpy(other.wire, "shm"));
    REFUSED(strcpy(other.machine, "x86_64, 4 cores, Some CPU @ 2.1 GHz"));
    REFUSED(other.defaults.fusion_threshold = MB);
#undef REFUSED
    assert_true(loads(&here));
}

/* Cut anywhere, or with any byte changed: refused, or (in the numbers) a result in range. */
static void cache__that_is_damaged_is_refused(void **state) {
    char         *text;
    hora_tuning_t tuning;
    (void)state;
    assert_true(hora_tune_save(path, &here, &found, 1.1));
    text = slurp(path);
    hora_log_setup("off", false);
    for (size_t len = 0; len < strlen(text) - 2; len++) {
        spill(text, len);
        assert_false(loads(&here));
    }
    for (size_t i = 0, length = strlen(text); i < length; i++) {
        char kept = text[i];
        text[i] = (char)(i % 3 == 0 ? '"' : i % 3 == 1 ? '9' : 0);
        spill(text, length);
        if (hora_tune_load(path, &here, &tuning))
            assert_true(hora_tuning_is_sane(&tuning));
        text[i] = kept;
    }
    static const char *const bad[] = {
        "", "{}", "[]", "null", "{\"format\": \"hora-autotune\"}", "{\"format\": 1}",
        "{\"format\": \"hora-autotune\", \"version\": 1, \"version\": 1}", "{\"ranks\": nan}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        spill(bad[i], strlen(bad[i]));
        assert_false(loads(&here));
    }
    char *longer = calloc(1, 20000);
    memset(longer, ' ', 19999);
    memcpy(longer, text, strlen(text));
    spill(longer, 19999);
    assert_false(loads(&here));
    free(longer);
    free(text);
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0); /* no plain file */
    assert_false(loads(&here));
    assert_int_equal(rmdir(path), 0);
    hora_log_setup("warning", false);
}

static void cache__that_cannot_be_written_is_no_error(void **state) {
    (void)state;
    assert_false(hora_tune_save("/nowhere/at/all/cache.json", &here, &found, 1.1));
    assert_null(hora_tune_log_open("/nowhere/at/all/log.csv"));
}

static void log__has_a_line_for_each_sample(void **state) {
    hora_tune_row_t row = {.phase = HORA_TUNE_SEARCH, .contender = true, .tuning = &found,
                           .bytes = 1e6, .us = 500, .number = 1};
    FILE           *file = hora_tune_log_open(path);
    char           *text;
    (void)state;
    assert_non_null(file);
    hora_tune_log_row(file, &row);
    row.phase = HORA_TUNE_DONE;
    row.number = 2;
    row.gain = 1.05;
    hora_tune_log_row(file, &row);
    text = slurp(path); /* before it is closed */
    fclose(file);
    assert_non_null(strstr(text, "sample,phase,setting,fusion_threshold_mb,"));
    assert_non_null(strstr(text, "\n1,search,contender,16,1099511627776,1048576,32768,ring,1000000,"
                                 "500.0,2000.000,\n"));
    assert_non_null(strstr(text, "\n2,done,tuned,16,1099511627776,1048576,32768,ring,,,,1.0500\n"));
    free(text);
}

/* In none with a comma, above all: the files are JSON and CSV. */
static void files__are_the_same_in_every_locale(void **state) {
    bool comma = comma_begin();
    if (!comma)
        skip();
    unlink(path);
    cache__comes_back_as_it_was_written(state);
    log__has_a_line_for_each_sample(state);
    comma_end();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(search__finds_what_is_faster),
        cmocka_unit_test(search__finds_it_in_noise),
        cmocka_unit_test(search__keeps_the_defaults_where_all_else_is_worse),
        cmocka_unit_test(search__leaves_alone_what_the_user_has_set),
        cmocka_unit_test(search__tries_no_more_than_asked),
        cmocka_unit_test(news__come_with_each_change),
        cmocka_unit_test(sample__is_some_whole_steps_after_one_that_settles),
        cmocka_unit_test(sample__lasts_long_enough),
        cmocka_unit_test(cache__comes_back_as_it_was_written),
        cmocka_unit_test(cache__of_another_place_is_refused),
        cmocka_unit_test(cache__that_is_damaged_is_refused),
        cmocka_unit_test(cache__that_cannot_be_written_is_no_error),
        cmocka_unit_test(log__has_a_line_for_each_sample),
        cmocka_unit_test(files__are_the_same_in_every_locale),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
