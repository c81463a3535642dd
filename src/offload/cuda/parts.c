/*
 * Cutting a collective into parts (parts.h). Pure code.
 */
#include "offload/cuda/parts.h"

#include "schedule/algos.h"

#define LINE_BYTES 64

static hora_side_t whole(const void *at, size_t count) {
    return (hora_side_t){.at = (uint64_t)(uintptr_t)at, .n = 1, .count = count};
}

static hora_side_t equal(const void *at, size_t count, int n) {
    return (hora_side_t){.at = (uint64_t)(uintptr_t)at, .n = n, .count = count};
}

static hora_side_t uneven(const void *at, const size_t *counts, const size_t *displs, int n) {
    return (hora_side_t){.at = (uint64_t)(uintptr_t)at, .n = n, .counts = counts, .displs = displs};
}

static void set_sides(const hora_coll_t *coll, hora_parts_t *parts) {
    const void *in = coll->in, *out = coll->out;
    int         n = coll->size, at_root = coll->rank == coll->root;
    switch (coll->kind) {
    case HORA_COLL_ALLREDUCE:
        parts->in = whole(in, coll->count);
        parts->out = whole(out, coll->count);
        return;
    case HORA_COLL_REDUCE:
        parts->in = whole(in, coll->count);
        parts->out = equal(out, coll->count, at_root);
        return;
    case HORA_COLL_BROADCAST:
        parts->in = equal(in, coll->count, at_root);
        parts->out = whole(out, coll->count);
        return;
    case HORA_COLL_REDUCE_SCATTER:
        parts->in = uneven(in, coll->counts, coll->displs, n);
        parts->out = whole(out, coll->counts[coll->rank]);
        return;
    case HORA_COLL_ALLGATHER:
        parts->in = whole(in, coll->counts[coll->rank]);
        parts->out = uneven(out, coll->counts, coll->displs, n);
        return;
    case HORA_COLL_ALLTOALL:
        parts->in = uneven(in, coll->counts, coll->displs, n);
        parts->out = uneven(out, coll->other_counts, coll->other_displs, n);
        return;
    case HORA_COLL_GATHER:
        parts->in = whole(in, coll->count);
        parts->out = equal(out, coll->count, at_root ? n : 0);
        return;
    case HORA_COLL_SCATTER:
        parts->in = equal(in, coll->count, at_root ? n : 0);
        parts->out = whole(out, coll->count);
        return;
    default: return;
    }
}

/* Adasum looks at whole vectors; of an uneven alltoall nobody knows the longest block. */
static bool is_one_part(const hora_coll_t *coll) {
    return coll->op == HORA_ADASUM ||
           (coll->kind == HORA_COLL_ALLTOALL && !hora_coll_is_even(coll));
}

static bool has_blocks(const hora_coll_t *coll) {
    return coll->counts != NULL || coll->kind == HORA_COLL_GATHER ||
           coll->kind == HORA_COLL_SCATTER;
}

void hora_parts_cut(const hora_coll_t *coll, size_t bytes, hora_parts_t *parts_p) {
    size_t elem = hora_dtype_size(coll->dtype), line = LINE_BYTES / elem;
    size_t blocks = has_blocks(coll) ? (size_t)coll->size : 1;
    size_t step = bytes / elem / blocks, longest = coll->count;
    *parts_p = (hora_parts_t){.step = SIZE_MAX, .n = 1};
    set_sides(coll, parts_p);
    if (is_one_part(coll))
        return;
    if (coll->counts != NULL && coll->kind != HORA_COLL_ALLTOALL)
        longest = hora_block_longest(coll);
    if (step >= line)
        step = step / line * line;
    parts_p->step = step > 0 ? step : 1;
    if (longest > 0)
        parts_p->n = longest / parts_p->step + (longest % parts_p->step != 0);
}

size_t hora_parts_count(const hora_parts_t *parts, const hora_side_t *side, int b, size_t p) {
    return hora_chunk_count(parts->step, hora_side_count(side, b), p);
}

/* The blocks one after the other; returns their sum. */
static size_t lay_out(const hora_parts_t *parts, const hora_side_t *side, size_t p, size_t *counts,
                      size_t *displs) {
    size_t at = 0;
    for (int b = 0; b < side->n; b++) {
        counts[b] = hora_parts_count(parts, side, b, p);
        displs[b] = at;
        at += counts[b];
    }
    return at;
}

void hora_parts_coll(const hora_coll_t *coll, const hora_parts_t *parts, size_t p, size_t *lists,
                     hora_coll_t *part_p, size_t *in_p, size_t *out_p, size_t *room_p) {
    size_t  n = (size_t)coll->size, line = LINE_BYTES / hora_dtype_size(coll->dtype);
    size_t *lengths = lists, *displs = lists + n, *out_lengths = lists + 2 * n;
    size_t *out_displs = lists + 3 * n;
    size_t  in = lay_out(parts, &parts->in, p, lengths, displs);
    size_t  out = lay_out(parts, &parts->out, p, out_lengths, out_displs);
    *part_p = *coll;
    part_p->gpu = NULL;
    part_p->staged = true;
    part_p->count = hora_chunk_count(parts->step, coll->count, p);
    *in_p = *out_p = 0;
    *room_p = in > out ? in : out;
    switch (coll->kind) {
    case HORA_COLL_ALLREDUCE: /* in place, as far as that goes */
    case HORA_COLL_REDUCE:
    case HORA_COLL_BROADCAST: return;
    case HORA_COLL_REDUCE_SCATTER:
        part_p->counts = lengths;
        part_p->displs = displs;
        *out_p = displs[coll->rank];
        return;
    case HORA_COLL_ALLGATHER:
        part_p->counts = out_lengths;
        part_p->displs = out_displs;
        *in_p = out_displs[coll->rank];
        return;
    case HORA_COLL_ALLTOALL:
        part_p->counts = lengths;
        part_p->displs = displs;
        part_p->other_counts = out_lengths;
        part_p->other_displs = out_displs;
        break;
    default: break;
    }
    *out_p = (in + line - 1) / line * line;
    *room_p = *out_p + out;
}
