/*
 * The closed forms (formulas.h). n elements over p ranks; block i has len(i) of them and travels in
 * pieces(i) messages. K is lg p rounded down, and p = 2^K + extra (src/schedule/fold.h).
 */
#include "formulas.h"

#include "program.h"
#include "schedule/exec.h"

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

/* ---- Two levels ----------------------------------------------------------------------------- */

#define LINE_BYTES  64
#define SMALL_BYTES 65536 /* of a vector that takes no rings */

typedef struct span {
    uint64_t at, count;
} span_t;

/* Part i of a span, in whole cache lines. */
static span_t line_part(const scale_case_t *c, span_t whole, int parts, int i) {
    uint64_t line = LINE_BYTES / c->elem, lines = (whole.count + line - 1) / line;
    uint64_t begin = hora_part_begin(lines, parts, i) * line;
    uint64_t end = begin + hora_part_count(lines, parts, i) * line;
    begin = begin < whole.count ? begin : whole.count;
    end = end < whole.count ? end : whole.count;
    return (span_t){whole.at + begin, end - begin};
}

/* Block b of h of a lane. */
static uint64_t lane_block(const scale_case_t *c, int lane, int b) {
    int h = c->hosts->count;
    return line_part(c, line_part(c, (span_t){0, c->count}, c->hosts->least, lane), h,
                     (b % h + h) % h).count;
}

static uint64_t at_most(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* An eighth of the longest block, 16 to 64 KB, as far as a slot has room for four of each lane's and four
 * of what is finished. */
static uint64_t lane_piece(const scale_case_t *c) {
    uint64_t line = LINE_BYTES / c->elem, longest = lane_block(c, 0, 0);
    uint64_t room = hora_twolevel_slot_bytes(c->hosts) / c->elem / (4 * ((uint64_t)c->hosts->least + 1));
    uint64_t least = at_most(16384 / c->elem, longest);
    uint64_t most = at_most(at_most(room, 65536 / c->elem), c->chunk) / line * line;
    uint64_t piece = (longest / 8 + line - 1) / line * line;
    if (piece < least)
        piece = (least + line - 1) / line * line;
    return piece <= most ? piece : most > 0 ? most : line;
}

/* All blocks of a lane of `all` elements once. The first ones are longer by a line, and the last one that is
 * not empty may end within one. */
static uint64_t lane_messages(const scale_case_t *c, uint64_t all) {
    uint64_t line = LINE_BYTES / c->elem, lines = (all + line - 1) / line, piece = lane_piece(c);
    uint64_t h = (uint64_t)c->hosts->count, base = lines / h, longer = lines % h;
    uint64_t last = (base > 0 ? base : longer > 0) * line;
    return longer * cut((base + 1) * line, piece) + (h - longer) * cut(base * line, piece) -
           cut(last, piece) + cut(last - (lines * line - all), piece);
}

/* A rank in a lane of L elements: 2(h-1)/h L, so a host sends 2(h-1)/h n. It sends blocks host - 1, host -
 * 2, ... twice round but for the last two, receives all but the first and the last; sums come from its
 * host's ranks and from the left. */
static scale_load_t of_rings(const scale_case_t *c, int host, int lane, uint64_t locals) {
    uint64_t     all = line_part(c, (span_t){0, c->count}, c->hosts->least, lane).count;
    uint64_t     messages = lane_messages(c, all), piece = lane_piece(c);
    scale_load_t load = {0};
    load.messages = 2 * messages - cut(lane_block(c, lane, host), piece) -
                    cut(lane_block(c, lane, host + 1), piece);
    load.sent = 2 * all - lane_block(c, lane, host) - lane_block(c, lane, host + 1);
    load.received = 2 * all - lane_block(c, lane, host) - lane_block(c, lane, host - 1);
    load.reduced = locals * all - lane_block(c, lane, host - 1);
    return load;
}

/* The first rank of a host sums it, and exchanges whole vectors with one other host, parts with more. */
static scale_load_t of_leaders(const scale_case_t *c, int host, uint64_t locals) {
    uint64_t n = c->count, others = (uint64_t)c->hosts->count - 1, own, parts;
    span_t   whole = {0, n};
    if (others == 1)
        return (scale_load_t){.messages = 1, .sent = n, .received = n, .reduced = locals * n};
    own = line_part(c, whole, c->hosts->count, host).count;
    parts = at_most((n * c->elem + LINE_BYTES - 1) / LINE_BYTES, others + 1) - (own > 0);
    return (scale_load_t){.messages = parts + (own > 0 ? others : 0), .sent = n - own + others * own,
                          .received = n - own + others * own,
                          .reduced = (locals - 1) * n + others * own};
}

bool scale_is_ringed(const scale_case_t *what) {
    return what->count * what->elem > SMALL_BYTES;
}

static scale_load_t of_twolevel(const scale_case_t *c, int r) {
    int      host = c->hosts->host[r], number = c->hosts->number[r];
    uint64_t locals = (uint64_t)hora_hosts_size(c->hosts, host);
    if (scale_is_ringed(c))
        return number < c->hosts->least ? of_rings(c, host, number, locals) : (scale_load_t){0};
    return number == 0 ? of_leaders(c, host, locals) : (scale_load_t){0};
}

/* ---- */

typedef scale_load_t (*formula_t)(const scale_case_t *what, int rank);

static formula_t formula_of(const hora_algo_t *algo) {
    static const struct {
        const char *algo;
        formula_t   load;
    } formulas[] = {{"ring", of_ring}, {"direct", of_direct}, {"doubling", of_doubling},
                    {"halving", of_halving}, {"tree", of_tree}, {"twolevel", of_twolevel}};
    for (size_t i = 0; i < sizeof(formulas) / sizeof(formulas[0]); i++)
        if (strcmp(formulas[i].algo, algo->name) == 0)
            return formulas[i].load;
    return NULL;
}

bool scale_has_formula(const hora_algo_t *algo) {
    return formula_of(algo) != NULL;
}

bool scale_formula(const scale_case_t *what, int rank, scale_load_t *load_p) {
    formula_t formula = formula_of(what->algo);
    if (formula == NULL)
        return false;
    *load_p = formula(what, rank);
    load_p->sent *= what->elem;
    load_p->received *= what->elem;
    load_p->reduced *= what->elem;
    return true;
}

static int rounds_of_twolevel(const scale_case_t *what) {
    int hosts = what->hosts->count;
    if (scale_is_ringed(what)) /* where pieces follow each other, so do the chains */
        return lane_piece(what) >= lane_block(what, 0, 0) ? 2 * (hosts - 1) : 0;
    return hosts == 2 ? 1 : 2;
}

int scale_formula_rounds(const scale_case_t *what) {
    folded_t f = fold(what, 0);
    int      folds = f.extra > 0 ? 2 : 0;
    /* Doubling leads from a rank to the one with all bits flipped; both have a pair, or one has. */
    int      pairs = f.extra > f.ranks / 2 ? 2 : f.extra > 0 ? 1 : 0;
    if (what->algo == &hora_algo_twolevel)
        return rounds_of_twolevel(what);
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
