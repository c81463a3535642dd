/*
 * The search (tune.h). Pure code; rank 0's driving thread.
 *
 * Invariant: `current` is the champion, or the contender while it is its turn; in the final the
 * champion is the defaults. `news` is set whenever `current` gets another value.
 */
#include "controller/tune.h"

#include <stdlib.h>
#include <string.h>

#define KB ((uint64_t)1 << 10)
#define MB ((uint64_t)1 << 20)

#define SEARCH_PAIRS 5
#define SEARCH_WINS  4
#define FINAL_PAIRS  9
#define FINAL_WINS   8    /* by luck alone: 2 %, and then the gain must be there too */
#define SEARCH_GAIN  1.02 /* median ratio from which a contender becomes the champion */
#define FINAL_GAIN   1.02
#define HOPELESS     0.93 /* a first ratio below which it is given up at once */

typedef enum knob { PACK, ALONE, ONESHOT, THRESHOLD, ALGO, KNOBS } knob_t;

#define VALUES_MAX 4
typedef struct range {
    knob_t   knob;
    uint64_t values[VALUES_MAX]; /* to be tried; 0 ends them */
} range_t;

/* In the order in which they are tried: what matters most comes first. */
static const range_t shared_ranges[] = {
    {PACK, {256 * KB, 512 * KB, 4 * MB, 0}},
    {ALONE, {64 * KB, 128 * KB, 1 * MB, 0}},
    {ONESHOT, {8 * KB, 128 * KB, 0, 0}},
    {THRESHOLD, {64 * MB, 16 * MB, 4 * MB, 0}},
    {KNOBS, {0}},
};
static const range_t link_ranges[] = {
    {THRESHOLD, {64 * MB, 16 * MB, 4 * MB, 1 * MB}},
    {ALGO, {HORA_TUNING_RING, HORA_TUNING_DIRECT, HORA_TUNING_HALVING, 0}},
    {ALONE, {1 * MB, 4 * MB, 64 * MB, 0}},
    {KNOBS, {0}},
};

struct hora_tune {
    hora_tune_options_t options;
    hora_tune_phase_t   phase;
    hora_tuning_t       champion, contender, current;
    bool                news;
    const range_t      *range;
    int                 value;      /* next to be tried */
    int                 contenders; /* so far */
    int                 samples;    /* warm-up: so far. Else: of this comparison */
    double              scores[2];  /* of the pair that is being taken: champion, contender */
    double              ratios[FINAL_PAIRS];
    unsigned            rows;
    /* The sample that is being taken. */
    uint32_t            sample; /* its number; marks of other samples are old */
    bool                settled;
    uint64_t            start;
    double              bytes;
};

const char *hora_tuning_algo_name(uint32_t algo) {
    static const char *const names[HORA_TUNING_ALGO_COUNT] = {
        [HORA_TUNING_AUTO] = "auto", [HORA_TUNING_RING] = "ring",
        [HORA_TUNING_DIRECT] = "direct", [HORA_TUNING_HALVING] = "halving",
    };
    return algo < HORA_TUNING_ALGO_COUNT ? names[algo] : NULL;
}

hora_status_t hora_tune_create(const hora_tune_options_t *options, hora_tune_t **tune_p) {
    hora_tune_t *tune = calloc(1, sizeof(*tune));
    if (tune == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "autotune");
    tune->options = *options;
    tune->champion = tune->current = options->defaults;
    tune->range = options->shared ? shared_ranges : link_ranges;
    tune->sample = 1;
    tune->news = true; /* the ranks may have other defaults */
    if (options->loaded != NULL) {
        tune->champion = tune->current = *options->loaded;
        tune->phase = HORA_TUNE_DONE;
    }
    tune->options.loaded = NULL;
    *tune_p = tune;
    return HORA_OK;
}

void hora_tune_destroy(hora_tune_t *tune) {
    free(tune);
}

const hora_tuning_t *hora_tune_current(const hora_tune_t *tune) {
    return &tune->current;
}

hora_tune_phase_t hora_tune_phase(const hora_tune_t *tune) {
    return tune->phase;
}

bool hora_tune_take_news(hora_tune_t *tune) {
    bool news = tune->news;
    tune->news = false;
    return news;
}

/* ---- Contenders ------------------------------------------------------------------------------ */

static bool is_fixed(const hora_tune_t *tune, knob_t knob) {
    const hora_tune_options_t *o = &tune->options;
    return (knob == THRESHOLD && (o->fixed_threshold || o->defaults.fusion_threshold == 0)) ||
           (knob == ONESHOT && o->fixed_oneshot) || (knob == ALGO && o->fixed_algo);
}

static void set(hora_tuning_t *tuning, knob_t knob, uint64_t value) {
    switch (knob) {
    case PACK: tuning->pack = value; break;
    case ALONE: tuning->alone = value; break;
    case ONESHOT: tuning->oneshot_limit = value; break;
    case THRESHOLD: tuning->fusion_threshold = value; break;
    case ALGO: tuning->algo = (uint32_t)value; break;
    case KNOBS: break;
    }
}

/* The next one that makes sense; false: there are no more. */
static bool next_contender(hora_tune_t *tune) {
    for (; tune->range->knob != KNOBS; tune->range++, tune->value = 0)
        while (!is_fixed(tune, tune->range->knob) && tune->value < VALUES_MAX &&
               tune->range->values[tune->value] != 0) {
            uint64_t value = tune->range->values[tune->value++];
            if (tune->contenders >= tune->options.most)
                return false;
            if (tune->range->knob == THRESHOLD && value > tune->options.defaults.fusion_threshold)
                continue;
            tune->contender = tune->champion;
            set(&tune->contender, tune->range->knob, value);
            if (hora_tuning_equal(&tune->contender, &tune->champion) ||
                !hora_tuning_is_sane(&tune->contender))
                continue;
            tune->contenders++;
            return true;
        }
    return false;
}

/* ---- Comparing ------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n) {
    double sorted[FINAL_PAIRS];
    memcpy(sorted, values, (size_t)n * sizeof(*values));
    qsort(sorted, (size_t)n, sizeof(*sorted), by_value);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static int count_above(const double *values, int n, double limit) {
    int count = 0;
    for (int i = 0; i < n; i++)
        count += values[i] > limit;
    return count;
}

typedef enum verdict { OPEN, WON, LOST } verdict_t;

/* Gives up as soon as it can no longer win. */
static verdict_t judge(const hora_tune_t *tune, int pairs) {
    bool   final = tune->phase == HORA_TUNE_FINAL;
    int    all = final ? FINAL_PAIRS : SEARCH_PAIRS, needed = final ? FINAL_WINS : SEARCH_WINS;
    int    lost = pairs - count_above(tune->ratios, pairs, 1.0);
    double gain = final ? FINAL_GAIN : SEARCH_GAIN;
    if (lost > all - needed || (!final && pairs == 1 && tune->ratios[0] < HOPELESS))
        return LOST;
    if (pairs < all)
        return OPEN;
    return median(tune->ratios, pairs) >= gain ? WON : LOST;
}

/* ---- Moving on ------------------------------------------------------------------------------- */

static void use(hora_tune_t *tune, const hora_tuning_t *tuning) {
    if (!hora_tuning_equal(&tune->current, tuning)) {
        tune->news = true;
        tune->settled = false;
    }
    tune->current = *tuning;
}

static void note(hora_tune_t *tune, bool contender, double bytes, double us, double gain) {
    hora_tune_row_t row = {.phase = tune->phase, .contender = contender, .tuning = &tune->current,
                           .bytes = bytes, .us = us, .gain = gain, .number = ++tune->rows};
    if (tune->options.note != NULL)
        tune->options.note(tune->options.arg, &row);
}

static void end(hora_tune_t *tune, bool is_better) {
    use(tune, is_better ? &tune->contender : &tune->options.defaults);
    tune->champion = tune->current;
    tune->phase = HORA_TUNE_DONE;
    note(tune, is_better, 0, 0, is_better ? median(tune->ratios, FINAL_PAIRS) : 1.0);
}

/* Pairs begin with the champion, then with the contender, in turn. */
static bool is_contenders_turn(const hora_tune_t *tune) {
    return tune->samples % 4 == 1 || tune->samples % 4 == 2;
}

static void begin_comparison(hora_tune_t *tune) {
    tune->samples = 0;
    use(tune, &tune->champion);
}

static void begin_final(hora_tune_t *tune) {
    if (hora_tuning_equal(&tune->champion, &tune->options.defaults)) {
        end(tune, false);
        return;
    }
    tune->phase = HORA_TUNE_FINAL;
    tune->contender = tune->champion;
    tune->champion = tune->options.defaults;
    begin_comparison(tune);
}

static void begin_next(hora_tune_t *tune) {
    tune->phase = HORA_TUNE_SEARCH;
    if (next_contender(tune))
        begin_comparison(tune);
    else
        begin_final(tune);
}

static void compare(hora_tune_t *tune, double score) {
    int       pairs = (tune->samples + 1) / 2;
    verdict_t verdict;
    tune->scores[is_contenders_turn(tune)] = score;
    tune->samples++;
    if (tune->samples % 2 == 0) {
        tune->ratios[pairs - 1] = tune->scores[1] / tune->scores[0];
        verdict = judge(tune, pairs);
        if (verdict != OPEN && tune->phase == HORA_TUNE_FINAL) {
            end(tune, verdict == WON);
            return;
        }
        if (verdict == WON)
            tune->champion = tune->contender;
        if (verdict != OPEN) {
            begin_next(tune);
            return;
        }
    }
    use(tune, is_contenders_turn(tune) ? &tune->contender : &tune->champion);
}

void hora_tune_sample(hora_tune_t *tune, double bytes, double us) {
    bool compares = tune->phase == HORA_TUNE_SEARCH || tune->phase == HORA_TUNE_FINAL;
    if (tune->phase == HORA_TUNE_DONE || !(bytes > 0) || !(us > 0))
        return;
    note(tune, compares && is_contenders_turn(tune), bytes, us, 0);
    if (compares)
        compare(tune, bytes / us);
    else if (++tune->samples >= tune->options.warmup)
        begin_next(tune);
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static void begin_sample(hora_tune_t *tune, hora_tune_mark_t *mark, uint64_t now, size_t bytes) {
    tune->sample++;
    tune->start = now;
    tune->bytes = (double)bytes;
    *mark = (hora_tune_mark_t){tune->sample, 1};
}

void hora_tune_tensor(hora_tune_t *tune, hora_tune_mark_t *mark, size_t bytes) {
    const hora_tune_options_t *o = &tune->options;
    uint64_t                   now;
    if (tune->phase == HORA_TUNE_DONE)
        return;
    if (mark->sample != tune->sample)
        *mark = (hora_tune_mark_t){tune->sample, 0};
    mark->count++;
    if (mark->count <= (tune->settled ? (uint32_t)o->steps : 1)) {
        tune->bytes += (double)bytes;
        return;
    }
    now = o->clock(o->arg);
    if (tune->settled && now - tune->start < o->sample_ns) {
        tune->bytes += (double)bytes;
        return;
    }
    if (tune->settled)
        hora_tune_sample(tune, tune->bytes, (double)(now - tune->start) * 1e-3);
    else
        tune->settled = true;
    begin_sample(tune, mark, now, bytes);
}
