/*
 * The closed forms (formulas.h). n elements over p ranks; block i has len(i) of them and travels in
 * pieces(i) messages. K is lg p rounded down, and p = 2^K + extra (src/schedule/fold.h).
 */
#include "formulas.h"

#include <string.h>

static uint64_t len(const scale_case_t *c, int i) {
    return hora_part_count(c->count, c->size, (i + c->size) % c->size);
}

static uint64_t cut(uint64_t count, uint64_t chunk) {
    return (count + chunk - 1) / chunk;
}

/* A planner makes its chunk no longer than the longest block. */
static uint64_t pieces(const scale_case_t *c, int i) {
    return cut(len(c, i), hora_chunk_fit(c->chunk, len(c, 0)));
}

/* The first ones of the blocks are longer by an element. */
static uint64_t all_pieces(const scale_case_t *c) {
    uint64_t longer = c->count % (size_t)c->size;
    return longer * pieces(c, 0) + ((uint64_t)c->size - longer) * pieces(c, c->size - 1);
}

/* 2(p-1)/p n: rank r sends every block but r, then every block but r + 1; it receives every block
 * but r - 1 and sums it, then every block but r. */
static scale_load_t of_ring(const scale_case_t *c, int r) {
    uint64_t n = c->count;
    return (scale_load_t){.messages = 2 * all_pieces(c) - pieces(c, r) - pieces(c, r + 1),
                          .sent = 2 * n - len(c, r) - len(c, r + 1),
                          .received = 2 * n - len(c, r - 1) - len(c, r),
                          .reduced = n - len(c, r - 1)};
}

/* The same bytes: every other rank's block goes there, and my sum to every other rank. */
static scale_load_t of_direct(const scale_case_t *c, int r) {
    uint64_t others = (uint64_t)c->size - 1, n = c->count;
    return (scale_load_t){.messages = all_pieces(c) - pieces(c, r) + others * pieces(c, r),
                          .sent = n - len(c, r) + others * len(c, r),
                          .received = n - len(c, r) + others * len(c, r),
                          .reduced = others * len(c, r)};
}

typedef struct folded {
    int rounds, ranks, extra, number; /* number -1: sits out */
} folded_t;

static folded_t fold(const scale_case_t *c, int r) {
    folded_t f = {.ranks = 1};
    for (; 2 * f.ranks <= c->size; f.ranks *= 2)
        f.rounds++;
    f.extra = c->size - f.ranks;
    f.number = r >= 2 * f.extra ? r - f.extra : r % 2 ? r / 2 : -1;
    return f;
}

/* A rank that sits out sends its vector and receives the result; its pair does the opposite. */
static bool add_fold(const scale_case_t *c, const folded_t *f, scale_load_t *load) {
    uint64_t n = c->count, messages = cut(n, c->chunk < n ? c->chunk : n);
    if (f->number < 0) {
        *load = (scale_load_t){.messages = messages, .sent = n, .received = n};
        return false;
    }
    if (f->number < f->extra) {
        load->messages++;
        load->sent += n;
        load->received += n;
        load->reduced += n;
    }
    return true;
}

/* lg p n. */
static scale_load_t of_doubling(const scale_case_t *c, int r) {
    folded_t     f = fold(c, r);
    uint64_t     n = c->count, k = (uint64_t)f.rounds;
    scale_load_t load = {.messages = k * cut(n, c->chunk < n ? c->chunk : n), .sent = k * n,
                         .received = k * n, .reduced = k * n};
    add_fold(c, &f, &load);
    return load;
}

/* Elements of parts first .. first + parts - 1 of 2^K. */
static uint64_t span(const scale_case_t *c, int ranks, int first, int parts) {
    size_t end = first + parts < ranks ? hora_part_begin(c->count, ranks, first + parts) : c->count;
    return end - hora_part_begin(c->count, ranks, first);
}

/* 2(p-1)/p n: halving sends all but my part; what is kept in each round is sent when doubling, where
 * it is one message. */
static scale_load_t of_halving(const scale_case_t *c, int r) {
    folded_t     f = fold(c, r);
    uint64_t     chunk = c->chunk < c->count ? c->chunk : c->count;
    scale_load_t load = {0};
    int          first = 0, parts = f.ranks;
    for (int k = 0; f.number >= 0 && k < f.rounds; k++) {
        bool     low = !(f.number >> k & 1);
        uint64_t kept, sent;
        parts /= 2;
        kept = span(c, f.ranks, low ? first : first + parts, parts);
        sent = span(c, f.ranks, low ? first + parts : first, parts);
        first += low ? 0 : parts;
        load.messages += cut(sent, chunk) + (kept > 0);
        load.sent += sent + kept;
        load.received += kept + sent;
        load.reduced += kept;
    }
    add_fold(c, &f, &load);
    return load;
}

/* n up, and n down to each child. */
static scale_load_t of_tree(const scale_case_t *c, int r) {
    uint64_t n = c->count, messages = cut(n, hora_chunk_fit(c->chunk, n)), children = 0;
    uint64_t parents = r != 0;
    for (int mask = 1; mask < c->size && !(r & mask); mask *= 2)
        children += r + mask < c->size;
    return (scale_load_t){.messages = (parents + children) * messages, .sent = (parents + children) * n,
                          .received = (parents + children) * n, .reduced = children * n};
}

bool scale_formula(const scale_case_t *what, int rank, scale_load_t *load_p) {
    static const struct {
        const char    *algo;
        scale_load_t (*load)(const scale_case_t *, int);
    } formulas[] = {{"ring", of_ring}, {"direct", of_direct}, {"doubling", of_doubling},
                    {"halving", of_halving}, {"tree", of_tree}};
    for (size_t i = 0; i < sizeof(formulas) / sizeof(formulas[0]); i++)
        if (strcmp(formulas[i].algo, what->algo->name) == 0) {
            *load_p = formulas[i].load(what, rank);
            load_p->sent *= what->elem;
            load_p->received *= what->elem;
            load_p->reduced *= what->elem;
            return true;
        }
    return false;
}

int scale_formula_rounds(const scale_case_t *what) {
    folded_t f = fold(what, 0);
    int      folds = f.extra > 0 ? 2 : 0;
    /* Doubling leads from a rank to the one with all bits flipped; both have a pair, or one has. */
    int      pairs = f.extra > f.ranks / 2 ? 2 : f.extra > 0 ? 1 : 0;
    if (what->algo == &hora_algo_ring)
        return 2 * (what->size - 1);
    if (what->algo == &hora_algo_direct)
        return 2;
    if (what->algo == &hora_algo_doubling)
        return f.rounds + pairs;
    if (what->algo == &hora_algo_halving)
        return 2 * f.rounds + folds;
    /* Ranks below p have at most K bits set: so many edges lead to rank 0. */
    return what->algo == &hora_algo_tree ? 2 * f.rounds : 0;
}
