/*
 * Binomial tree: reduce to a root, broadcast from it, and both for allreduce. Planner: pure, any
 * thread.
 *
 * Four ranks, root 0 (ranks are numbered from the root on):
 *
 *     reduce:     1 -> 0   3 -> 2        0: [01]  2: [23]
 *                 2 -> 0                 0: [0123]
 *     broadcast:  0 -> 2;  0 -> 1  2 -> 3
 *
 * Vectors travel in chunks: a rank sums one chunk of all its children in one pass while the next
 * ones arrive. Only the root has the whole sum, and all get it from there, so bits are equal.
 *
 * Cost: reduce lg p (a + nb + ng), broadcast lg p (a + nb), allreduce both.
 *
 * Source: the binomial trees of MPICH; Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005.
 */
#include "schedule/algos.h"

#define CHILDREN_MAX 31
#define LEAD         2 /* chunks received ahead; LEAD + 1 in TMP for each child */

typedef struct tree {
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    size_t             chunk, chunks;
    int                parent; /* -1: I am the root */
    int                nchildren;
    int                child[CHILDREN_MAX]; /* nearest first */
    hora_buf_t         source; /* broadcast: where the root has the vector */
} tree_t;

static tree_t tree_make(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan,
                        int root) {
    tree_t tree = {.coll = coll, .plan = plan, .parent = -1, .source = HORA_BUF_IN};
    int    number = (coll->rank - root + coll->size) % coll->size;
    tree.chunk = hora_chunk_fit(hint->chunk, coll->count);
    tree.chunks = (coll->count + tree.chunk - 1) / tree.chunk;
    for (int mask = 1; mask < coll->size; mask *= 2) {
        if (number & mask) {
            tree.parent = (number - mask + root) % coll->size;
            break;
        }
        if (number + mask < coll->size)
            tree.child[tree.nchildren++] = (number + mask + root) % coll->size;
    }
    return tree;
}

static size_t chunk_count(const tree_t *tree, size_t c) {
    return hora_chunk_count(tree->chunk, tree->coll->count, c);
}

/* TMP: LEAD + 1 slots, each with a chunk per child, and one with my own sum. */
static size_t slot_of(const tree_t *tree, size_t c, int child) {
    return (c % (LEAD + 1) * (size_t)(tree->nchildren + 1) + (size_t)child) * tree->chunk;
}

static void post_children(tree_t *tree, size_t c, uint32_t *recvs) {
    for (int i = 0; i < tree->nchildren; i++)
        recvs[i] = hora_plan_recv(tree->plan, tree->child[i], HORA_BUF_TMP, slot_of(tree, c, i),
                                  chunk_count(tree, c));
}

/* Sums chunk c of my children's and mine: on the root into OUT, else into TMP. */
static hora_ref_t sum_chunk(tree_t *tree, size_t c, const uint32_t *recvs) {
    hora_ref_t   src[CHILDREN_MAX + 1], dst = hora_own(HORA_BUF_OUT, c * tree->chunk);
    hora_step_t *step;
    src[0] = hora_own(HORA_BUF_IN, c * tree->chunk);
    if (tree->nchildren == 0)
        return src[0];
    if (tree->parent >= 0)
        dst = hora_own(HORA_BUF_TMP, slot_of(tree, c, tree->nchildren));
    for (int i = 0; i < tree->nchildren; i++) {
        hora_plan_wait(tree->plan, recvs[i]);
        src[i + 1] = hora_own(HORA_BUF_TMP, slot_of(tree, c, i));
    }
    step = hora_plan_reduce(tree->plan, src, tree->nchildren + 1, &dst, 1, chunk_count(tree, c));
    if (step != NULL)
        step->finish = tree->parent < 0;
    return dst;
}

static void plan_up(tree_t *tree) {
    uint32_t recvs[LEAD + 1][CHILDREN_MAX], sends[LEAD + 1];
    size_t   posted = 0;
    for (int i = 0; i <= LEAD; i++)
        sends[i] = HORA_NO_XFER;
    for (size_t c = 0; c < tree->chunks; c++) {
        size_t     slot = c % (LEAD + 1);
        hora_ref_t sum;
        for (; posted <= c + LEAD && posted < tree->chunks; posted++)
            post_children(tree, posted, recvs[posted % (LEAD + 1)]);
        hora_plan_wait(tree->plan, sends[slot]);
        sum = sum_chunk(tree, c, recvs[slot]);
        if (tree->parent >= 0)
            sends[slot] = hora_plan_send(tree->plan, tree->parent, (hora_buf_t)sum.buf, sum.off,
                                         chunk_count(tree, c));
    }
    for (int i = 0; i <= LEAD; i++) /* in place, the result comes to where leaves send from */
        hora_plan_wait(tree->plan, sends[i]);
    tree->plan->tmp = (LEAD + 1) * (size_t)(tree->nchildren + 1) * tree->chunk;
}

static void plan_down(tree_t *tree) {
    hora_buf_t buf = tree->parent < 0 ? tree->source : HORA_BUF_OUT;
    size_t     posted = 0;
    uint32_t   recvs[LEAD + 1];
    for (size_t c = 0; c < tree->chunks; c++) {
        for (; tree->parent >= 0 && posted <= c + LEAD && posted < tree->chunks; posted++)
            recvs[posted % (LEAD + 1)] =
                hora_plan_recv(tree->plan, tree->parent, HORA_BUF_OUT, posted * tree->chunk,
                               chunk_count(tree, posted));
        if (tree->parent >= 0)
            hora_plan_wait(tree->plan, recvs[c % (LEAD + 1)]);
        for (int i = tree->nchildren; i-- > 0;) /* the deepest subtree first */
            hora_plan_send(tree->plan, tree->child[i], buf, c * tree->chunk, chunk_count(tree, c));
    }
}

static void plan_tree(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    tree_t tree = tree_make(coll, hint, plan, coll->kind == HORA_COLL_ALLREDUCE ? 0 : coll->root);
    if (coll->kind != HORA_COLL_BROADCAST)
        plan_up(&tree);
    if (coll->kind == HORA_COLL_ALLREDUCE)
        tree.source = HORA_BUF_OUT;
    if (coll->kind != HORA_COLL_REDUCE)
        plan_down(&tree);
    if (coll->kind == HORA_COLL_BROADCAST && tree.parent < 0)
        hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_OUT, 0), coll->count);
}

static double cost_tree(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double n = (double)coll->count * (double)elem_size;
    double depth = hora_log2_ceil(coll->size);
    if (coll->kind == HORA_COLL_BROADCAST)
        return depth * (a + n * b);
    if (coll->kind == HORA_COLL_REDUCE)
        return depth * (a + n * (b + g));
    return depth * (2 * a + n * (2 * b + g));
}

const hora_algo_t hora_algo_tree = {
    .size = sizeof(hora_algo_t),
    .name = "tree",
    .colls = 1u << HORA_COLL_ALLREDUCE | 1u << HORA_COLL_REDUCE | 1u << HORA_COLL_BROADCAST,
    .applies = hora_algo_always,
    .cost = cost_tree,
    .plan = plan_tree,
};
