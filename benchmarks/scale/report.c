/*
 * Tables and JSON (report.h).
 */
#include "report.h"

#include "common/text.h"

#include <hora/hora.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define TREE 64 /* ranks that report to one, where reports go up a tree */

static const char *const ways[] = {"auto", "full", "orbit", "formula", "none"};
static const char        marks[] = {' ', ' ', '~', '*', ' '};
static const char *const steps[] = {"cold", "warm", "frozen"};

/* "12.3 us" */
static void time_text(char *text, size_t size, double seconds) {
    if (seconds < 1e-3)
        snprintf(text, size, "%.3g us", seconds * 1e6);
    else if (seconds < 1)
        snprintf(text, size, "%.3g ms", seconds * 1e3);
    else
        snprintf(text, size, "%.*f s", seconds < 10 ? 2 : seconds < 100 ? 1 : 0, seconds);
}

static void print_time(int width, double seconds) {
    char text[32];
    time_text(text, sizeof(text), seconds);
    printf(" %*s", width, text);
}

static void print_bytes(int width, double bytes) {
    char text[32];
    text_bytes(text, sizeof(text), bytes < 1024 ? floor(bytes) : bytes);
    printf(" %*s", width, text);
}

static void print_net(const scale_net_t *net) {
    if (net->host == 1)
        printf("every rank has a host of its own");
    else
        printf("hosts of %d ranks with one network card; inside %g us, %.3g GB/s", net->host,
               net->inside_a * 1e6, 1e-9 / net->inside_b);
    printf("; between %g us, %.3g GB/s; %.3g GB/s reduced\n", net->a * 1e6, 1e-9 / net->b,
           1e-9 / net->g);
}

/* ---- Schedules ------------------------------------------------------------------------------ */

static void print_names(const scale_options_t *o) {
    printf("%8s", "ranks");
    for (int a = 0; a < o->nalgos; a++)
        printf(" %11s", o->algos[a]->name);
    printf("\n");
}

static void print_times(const scale_options_t *o, int net, int bytes, scale_results_t *results) {
    char text[32];
    text_bytes(text, sizeof(text), (double)o->bytes[bytes]);
    printf("\nallreduce of %s, ", text);
    print_net(&o->nets[net]);
    print_names(o);
    for (int s = 0; s < o->nsizes; s++) {
        printf("%8d", o->sizes[s]);
        for (int a = 0; a < o->nalgos; a++) {
            const scale_result_t *r = &(*results)[net][bytes][s][a];
            bool one_wire = net == 1 && r->way == SCALE_FORMULA && !o->algos[a]->two_level;
            if (one_wire || r->way == SCALE_NONE)
                printf(" %10s", "-");
            else
                print_time(10, r->seconds);
            printf("%c", r->error[0] ? '!' : marks[r->way]);
        }
        printf("\n");
    }
}

/* Of vectors that are long enough for bytes to count. */
static void print_between(const scale_options_t *o, int bytes, scale_results_t *results) {
    char text[32];
    text_bytes(text, sizeof(text), (double)o->bytes[bytes]);
    printf("\nallreduce of %s, bytes that the first of hosts of %d ranks sends to others\n", text,
           o->nets[1].host);
    print_names(o);
    for (int s = 0; s < o->nsizes; s++) {
        printf("%8d", o->sizes[s]);
        for (int a = 0; a < o->nalgos; a++) {
            const scale_result_t *r = &(*results)[1][bytes][s][a];
            if (r->way == SCALE_FORMULA || r->way == SCALE_NONE || r->error[0])
                printf(" %11s", "-");
            else
                print_bytes(11, (double)r->between);
        }
        printf("\n");
    }
}

void scale_print_schedules(const scale_options_t *o, scale_results_t *results) {
    printf("Schedules. Completion time by the model (simulate.h); chunks of %zu bytes.\n"
           "  no mark: every rank's plan was emitted, compared with the formulas, and run\n"
           "  ~ one host's plans were run, and stand for the others by symmetry, with equal blocks:\n"
           "    for fewer elements than ranks an upper bound, with direct up to twice the time; six\n"
           "    ranks' plans were compared with the formulas\n"
           "  * nothing was run; six plans were compared; the time is the algorithm's own cost(),\n"
           "    which there is only where all wires are alike, and for two levels\n", o->chunk);
    for (int net = 0; net < 2; net++)
        for (int b = 0; b < o->nbytes; b++)
            print_times(o, net, b, results);
    for (int b = 0; b < o->nbytes; b++)
        if (o->bytes[b] >= 1 << 20)
            print_between(o, b, results);
}

/* Where the choice of an algorithm goes by a cost that the plan does not have. */
static void print_ratios(const scale_options_t *o, int algo, scale_results_t *results) {
    const scale_result_t *low = NULL, *high = NULL;
    int                   at[2][2] = {{0}};
    for (int b = 0; b < o->nbytes; b++)
        for (int s = 0; s < o->nsizes; s++) {
            const scale_result_t *r = &(*results)[o->algos[algo]->two_level][b][s][algo];
            double                ratio = r->seconds / r->formula;
            if (r->way == SCALE_FORMULA || r->way == SCALE_NONE)
                continue;
            if (low == NULL || ratio < low->seconds / low->formula)
                low = r, at[0][0] = s, at[0][1] = b;
            if (high == NULL || ratio > high->seconds / high->formula)
                high = r, at[1][0] = s, at[1][1] = b;
        }
    if (low == NULL)
        return;
    printf("%-10s %.2f (%d ranks,", o->algos[algo]->name, low->seconds / low->formula,
           o->sizes[at[0][0]]);
    print_bytes(0, (double)o->bytes[at[0][1]]);
    printf(") to %.2f (%d ranks,", high->seconds / high->formula, o->sizes[at[1][0]]);
    print_bytes(0, (double)o->bytes[at[1][1]]);
    printf(")\n");
}

/* The table of plans is long. */
static bool is_shown(const scale_options_t *o, int s) {
    return s == o->nsizes - 1 || o->sizes[s] == 1024 || o->sizes[s] == 8192;
}

void scale_print_plans(const scale_options_t *o, scale_results_t *results) {
    printf("\nTime of what was run, in the first network (two levels: in the second), by the algorithm's "
           "own cost()\n");
    for (int a = 0; a < o->nalgos; a++)
        print_ratios(o, a, results);
    printf("\nThe largest plan of one rank: steps and memory of the plan, TMP, time to emit it\n"
           "%8s %-9s %11s", "ranks", "algorithm", "bytes");
    printf(" %9s %8s %8s %9s\n", "steps", "plan", "TMP", "emit");
    for (int s = 0; s < o->nsizes; s++)
        for (int a = 0; a < o->nalgos; a++)
            for (int b = 0; b < o->nbytes && is_shown(o, s); b++) {
                const scale_result_t *r = &(*results)[o->algos[a]->two_level][b][s][a];
                if (r->way == SCALE_NONE)
                    continue;
                printf("%8d %-9s", o->sizes[s], o->algos[a]->name);
                print_bytes(11, (double)o->bytes[b]);
                printf(" %9zu", r->steps);
                print_bytes(8, (double)r->plan_bytes);
                print_bytes(8, (double)r->tmp_bytes);
                print_time(9, r->plan_seconds);
                printf("\n");
            }
}

/* ---- Controller ----------------------------------------------------------------------------- */

/* Levels of a tree in which each rank hears TREE others. */
static int levels_of(int size) {
    int    levels = 1;
    double reach = TREE;
    for (; reach < size; reach *= TREE)
        levels++;
    return levels;
}

/* One level after the other: the processor of a rank that hears TREE - 1 others, and the wire both
 * ways. */
static double tree_seconds(const scale_options_t *o, int size, const scale_control_t *base,
                           double frame_us) {
    double frames = (size < TREE ? size : TREE) - 1;
    return levels_of(size) * (base->seconds[SCALE_FROZEN] + frames * frame_us * 1e-6 +
                              2 * o->nets[0].a);
}

void scale_print_controller(const scale_options_t *o, const scale_control_t *controls,
                            const scale_control_t *base, double frame_us) {
    printf("\nController. Rank 0 in a step of %d tensors that every rank reports at once.\n"
           "  processor: the coordinator alone, measured; cold: names and signatures, the first "
           "step;\n  warm: ids; frozen: one position per rank.\n"
           "  frames: + %.2f us for each of 2(p-1) frames over TCP, measured on loopback with %d "
           "connections;\n  tree: the frozen step where each rank hears %d others, computed.\n",
           o->tensors, frame_us / 2, TREE - 1, TREE - 1);
    printf("%8s %30s %30s %30s %10s %10s %10s\n", "", "bytes in (all ranks)", "bytes out",
           "processor", "find", "frames", "tree");
    printf("%8s", "ranks");
    for (int i = 0; i < 3; i++)
        printf(" %10s %9s %9s", steps[0], steps[1], steps[2]);
    printf(" %10s %10s %10s\n", "", "", "frozen");
    for (int s = 0; s < o->nsizes; s++) {
        const scale_control_t *c = &controls[s];
        double                 others = o->sizes[s] - 1;
        printf("%8d", o->sizes[s]);
        for (int k = 0; k < SCALE_STEPS; k++)
            print_bytes(k == 0 ? 10 : 9, others * c->in[k]);
        for (int k = 0; k < SCALE_STEPS; k++)
            print_bytes(k == 0 ? 10 : 9, others * c->out[k]);
        for (int k = 0; k < SCALE_STEPS; k++)
            print_time(k == 0 ? 10 : 9, c->seconds[k]);
        print_time(10, c->find_seconds);
        print_time(10, others * frame_us * 1e-6);
        print_time(10, tree_seconds(o, o->sizes[s], base, frame_us));
        printf("\n");
    }
}

/* ---- Start ---------------------------------------------------------------------------------- */

/* Rank 0's processor for each other rank, by the largest join that was measured. */
static double join_seconds(const scale_options_t *o, const scale_join_t *joins) {
    int last = o->njoins - 1;
    return last < 0 ? 0 : joins[last].cpu / (o->joins[last] - 1);
}

static void print_joins(const scale_options_t *o, const scale_join_t *joins) {
    if (o->njoins == 0)
        return;
    printf("\nJoins on this machine (%ld cores) over TCP, and the descriptors of rank 0 after a step "
           "of an engine,\nmeasured, and by the formula\n%8s %10s %16s %12s %9s\n",
           sysconf(_SC_NPROCESSORS_ONLN), "ranks", "all in", "rank 0's CPU", "descriptors", "formula");
    for (int i = 0; i < o->njoins; i++) {
        printf("%8d", o->joins[i]);
        print_time(10, joins[i].wall);
        print_time(16, joins[i].cpu);
        printf(" %12d %9.0f\n", joins[i].descriptors, scale_descriptors(o->joins[i], o->joins[i]));
    }
}

void scale_print_start(const scale_options_t *o, const scale_start_t *starts,
                       const scale_join_t *joins) {
    double each = join_seconds(o, joins);
    print_joins(o, joins);
    printf("\nStart, with hosts of %d ranks.\n"
           "  to each, to all: bytes that rank 0 sends; wire: how long that takes at %.3g GB/s\n"
           "  descriptors: of rank 0 with an engine over TCP; each rank, rank 0, buffers: memory of\n"
           "    every rank, more of rank 0 while the job starts, its TCP receive buffers\n"
           "  who is where, choice: a rank's own work, once, and in each call over TCP; measured\n"
           "  CPU: of rank 0, extrapolated from the largest join above: %.3g ms per rank\n",
           o->nets[1].host, 1e-9 / o->nets[1].b, each * 1e3);
    printf("%8s %9s %9s %9s %12s %10s %9s %9s %13s %9s %9s\n", "ranks", "to each", "to all", "wire",
           "descriptors", "each rank", "rank 0", "buffers", "who is where", "choice", "CPU");
    for (int s = 0; s < o->nsizes; s++) {
        const scale_start_t *st = &starts[s];
        printf("%8d", o->sizes[s]);
        print_bytes(9, st->roster);
        print_bytes(9, st->sent);
        print_time(9, st->sent * o->nets[1].b);
        printf(" %12.0f", st->descriptors);
        print_bytes(10, st->rank_memory);
        print_bytes(9, st->root_memory);
        print_bytes(9, st->root_buffers);
        print_time(13, st->roster_seconds);
        print_time(9, st->select_seconds);
        print_time(9, each * (o->sizes[s] - 1));
        printf("\n");
    }
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void write_result(FILE *file, const scale_options_t *o, int net, int b, int s, int a,
                         const scale_result_t *r) {
    fprintf(file,
            "{\"algorithm\": \"%s\", \"ranks\": %d, \"bytes\": %zu, \"host\": %d, \"way\": \"%s\", "
            "\"seconds\": %.9g, \"cost\": %.9g, \"rounds\": %d, \"between\": %lu, \"messages\": %lu, \"sent\": %lu, "
            "\"received\": %lu, \"reduced\": %lu, \"steps\": %zu, \"plan_bytes\": %zu, "
            "\"tmp_bytes\": %zu, \"emit_seconds\": %.6g, \"plans_checked\": %d, \"error\": ",
            o->algos[a]->name, o->sizes[s], o->bytes[b], o->nets[net].host, ways[r->way], r->seconds,
            r->formula, r->rounds, (unsigned long)r->between, (unsigned long)r->most.messages,
            (unsigned long)r->most.sent, (unsigned long)r->most.received, (unsigned long)r->most.reduced, r->steps,
            r->plan_bytes, r->tmp_bytes, r->plan_seconds, r->plans);
    text_json(file, r->error);
    fprintf(file, "}");
}

static void write_results(FILE *file, const scale_options_t *o, scale_results_t *results) {
    const char *comma = "";
    fprintf(file, ",\n\"schedules\": [\n");
    for (int net = 0; net < 2; net++)
        for (int b = 0; b < o->nbytes; b++)
            for (int s = 0; s < o->nsizes; s++)
                for (int a = 0; a < o->nalgos; a++) {
                    fprintf(file, "%s", comma);
                    write_result(file, o, net, b, s, a, &(*results)[net][b][s][a]);
                    comma = ",\n";
                }
    fprintf(file, "]");
}

static void write_controls(FILE *file, const scale_options_t *o, const scale_control_t *controls,
                           double frame_us) {
    fprintf(file, ",\n\"frame_us\": %.4g,\n\"controller\": [\n", frame_us);
    for (int s = 0; s < o->nsizes; s++) {
        const scale_control_t *c = &controls[s];
        fprintf(file, "%s{\"ranks\": %d, \"tensors\": %d, \"find_seconds\": %.6g",
                s > 0 ? ",\n" : "", o->sizes[s], o->tensors, c->find_seconds);
        for (int k = 0; k < SCALE_STEPS; k++)
            fprintf(file, ", \"%s\": {\"in\": %.0f, \"out\": %.0f, \"seconds\": %.6g}", steps[k],
                    c->in[k], c->out[k], c->seconds[k]);
        fprintf(file, "}");
    }
    fprintf(file, "]");
}

static void write_starts(FILE *file, const scale_options_t *o, const scale_start_t *starts,
                         const scale_join_t *joins) {
    fprintf(file, ",\n\"joins\": [\n");
    for (int i = 0; i < o->njoins; i++)
        fprintf(file,
                "%s{\"ranks\": %d, \"seconds\": %.6g, \"cpu_seconds\": %.6g, \"descriptors\": %d}",
                i > 0 ? ",\n" : "", o->joins[i], joins[i].wall, joins[i].cpu, joins[i].descriptors);
    fprintf(file, "],\n\"start\": [\n");
    for (int s = 0; s < o->nsizes; s++) {
        const scale_start_t *st = &starts[s];
        fprintf(file,
                "%s{\"ranks\": %d, \"to_each\": %.0f, \"to_all\": %.0f, \"handshake\": %.0f, "
                "\"descriptors\": %.0f, \"rank_memory\": %.0f, \"root_memory\": %.0f, "
                "\"root_buffers\": %.0f, \"roster_seconds\": %.6g, \"select_seconds\": %.6g}",
                s > 0 ? ",\n" : "", o->sizes[s], st->roster, st->sent, st->handshake,
                st->descriptors, st->rank_memory, st->root_memory, st->root_buffers,
                st->roster_seconds, st->select_seconds);
    }
    fprintf(file, "]");
}

void scale_write_json(FILE *file, const scale_options_t *o, scale_results_t *results,
                      const scale_control_t *controls, double frame_us, const scale_start_t *starts,
                      const scale_join_t *joins) {
    const scale_net_t *net = &o->nets[1];
    fprintf(file,
            "{\"benchmark\": \"scale\", \"hora\": \"%s\", \"cores\": %ld, \"chunk\": %zu,\n"
            "\"a\": %g, \"b\": %g, \"inside_a\": %g, \"inside_b\": %g, \"g\": %g", hora_version(),
            sysconf(_SC_NPROCESSORS_ONLN), o->chunk, net->a, net->b, net->inside_a, net->inside_b,
            net->g);
    if (o->schedules)
        write_results(file, o, results);
    if (o->controller)
        write_controls(file, o, controls, frame_us);
    if (o->start)
        write_starts(file, o, starts, joins);
    fprintf(file, "\n}\n");
}
