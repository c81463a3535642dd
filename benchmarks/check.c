/*
 * hora-check: does hora compute the right thing here? Every collective with every type, operation
 * and algorithm, over each transport that this machine has, over the public C ABI only.
 *
 * The parent never calls hora; it forks ranks for each transport, and these leave their results in
 * memory shared with it. Under a launcher, each rank checks with the others and reports for itself.
 */
#include "check_cases.h"
#include "common/ranks.h"
#include "common/text.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define TRANSPORTS_MAX 8

typedef struct transport {
    char name[32];
    bool available;
    char detail[256], remedy[256];
} transport_t;

/* Everything that ranks and parent share. */
typedef struct board {
    int         ntransports;
    transport_t transports[TRANSPORTS_MAX];
    int         transport; /* index of the one that is being checked */
    check_rank_t ranks[];
} board_t;

typedef struct check_options {
    int         nranks; /* 0: a launcher made us */
    const char *transport, *algo, *json;
    bool        cuda, verbose;
} check_options_t;

typedef struct check_context {
    const check_options_t *options;
    board_t               *board;
} check_context_t;

static const char help[] =
    "usage: hora-check [options]\n"
    "\n"
    "Runs every collective with every type, operation and algorithm over each transport of this\n"
    "machine and compares every bit of the results. Prints one PASS line, or what failed.\n"
    "Forks its own ranks, or takes part as one rank under hora run, torchrun, mpirun or srun (mpirun\n"
    "also checks the mpi transport).\n"
    "\n"
    "  -np N, --np N       fork N ranks on this machine (4)\n"
    "  --transport NAME    only this one: shm, tcp or mpi\n"
    "  --algo NAME         only this algorithm (see HORA_ALGO)\n"
    "  --device NAME       cuda: buffers on GPUs, which the ranks of a host take in turn, by each path\n"
    "                      (HORA_GPU_PATH) in place of each algorithm; cpu (cpu)\n"
    "  --json FILE         write the results as JSON; - is standard output\n"
    "  -v, --verbose       a line for each transport and algorithm\n"
    "  -h, --help          this text\n"
    "\n"
    "Exit code 0: all passed; 1: something failed; 2: wrong option.\n";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- Options ------------------------------------------------------------------------------- */

static bool parse_ranks(const char *text, int *ranks_p) {
    char *end;
    long  ranks = strtol(text, &end, 10);
    if (end == text || *end != '\0' || ranks < 1 || ranks > 256)
        return false;
    *ranks_p = (int)ranks;
    return true;
}

static bool read_options(int argc, char **argv, check_options_t *o, int *code_p) {
    static const struct option long_options[] = {
        {"np", required_argument, NULL, 'n'},   {"transport", required_argument, NULL, 't'},
        {"algo", required_argument, NULL, 'a'}, {"json", required_argument, NULL, 'j'},
        {"device", required_argument, NULL, 'd'},
        {"verbose", no_argument, NULL, 'v'},    {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int option;
    *code_p = 2;
    while ((option = getopt_long_only(argc, argv, "vh", long_options, NULL)) != -1) {
        if (option == 'h')
            return fputs(help, stdout), *code_p = 0, false;
        if (option == 'n' && !parse_ranks(optarg, &o->nranks))
            return fprintf(stderr, "hora-check: -np %s; 1 to 256 are possible\n", optarg), false;
        if (option == 'n')
            continue;
        if (option == 't')
            o->transport = optarg;
        else if (option == 'a')
            o->algo = optarg;
        else if (option == 'j')
            o->json = optarg;
        else if (option == 'v')
            o->verbose = true;
        else if (option == 'd' && (strcmp(optarg, "cuda") == 0 || strcmp(optarg, "cpu") == 0))
            o->cuda = strcmp(optarg, "cuda") == 0;
        else if (option == 'd')
            return fprintf(stderr, "hora-check: --device %s; cpu or cuda\n", optarg), false;
        else
            return false;
    }
    if (optind < argc)
        return fprintf(stderr, "hora-check: what is '%s'? See --help\n", argv[optind]), false;
    if (o->nranks > 0 && ranks_launched())
        return fprintf(stderr, "hora-check: -np makes ranks, and a launcher has made this process "
                               "one; leave one of them out\n"), false;
    if (o->nranks == 0 && !ranks_launched())
        o->nranks = 4;
    return true;
}

/* ---- Transports ---------------------------------------------------------------------------- */

static bool is_mpirun(void) {
    return getenv("OMPI_COMM_WORLD_RANK") != NULL || getenv("PMI_RANK") != NULL;
}

/* In a process of its own, or under a launcher: asks hora which transports there are. */
static void list_transports(board_t *board) {
    hora_backend_t backend = HORA_BACKEND_INIT;
    for (size_t i = 0; hora_backend_get(i, &backend) == HORA_OK; i++) {
        if (strcmp(backend.kind, "transport") != 0 || board->ntransports == TRANSPORTS_MAX)
            continue;
        transport_t *t = &board->transports[board->ntransports++];
        snprintf(t->name, sizeof(t->name), "%s", backend.name);
        snprintf(t->detail, sizeof(t->detail), "%s", backend.detail);
        snprintf(t->remedy, sizeof(t->remedy), "%s", backend.remedy);
        t->available = backend.available != 0;
        if (strcmp(t->name, "mpi") == 0 && t->available && !is_mpirun()) {
            t->available = false;
            snprintf(t->detail, sizeof(t->detail), "only under mpirun");
            snprintf(t->remedy, sizeof(t->remedy), "mpirun -np 4 hora-check");
        }
    }
}

static int list_main(int rank, int size, void *arg) {
    (void)rank, (void)size;
    list_transports(((check_context_t *)arg)->board);
    return 0;
}

static bool is_wanted(const check_options_t *o, const transport_t *t) {
    return t->available && (o->transport == NULL || strcmp(o->transport, t->name) == 0);
}

/* ---- Running ------------------------------------------------------------------------------- */

static int check_main(int rank, int size, void *arg) {
    check_context_t *context = arg;
    board_t *board = context->board;
    (void)size;
    bool forked = context->options->nranks > 0;
    check_job_t job = {.transport = board->transports[board->transport].name,
                       .only = context->options->algo,
                       .own_rendezvous = forked,
                       .mpirun = is_mpirun(),
                       .cuda = context->options->cuda};
    return check_transport(&job, &board->ranks[forked ? rank : 0]);
}

/* Writes a failure that the rank could not write itself. */
static void note_end(check_rank_t *rank, const ranks_end_t *end, const char *transport, int number) {
    if (end->code == 0 || rank->failures > 0)
        return;
    rank->failures = 1;
    snprintf(rank->texts[0], sizeof(rank->texts[0]), "%s, %s: rank %d %s (%s %d)", transport,
             rank->doing, number, end->late ? "did not end" : "ended early",
             end->signal != 0 ? "signal" : "exit code", end->signal != 0 ? end->signal : end->code);
}

static void check_forked(check_context_t *context, ranks_end_t *ends) {
    board_t *board = context->board;
    ranks_job_t job = {.nranks = context->options->nranks,
                       .main = check_main,
                       .arg = context,
                       .deadline = 120,
                       .grace = 10};
    int failed = ranks_run(&job, ends);
    for (int r = 0; r < job.nranks && failed > 0; r++)
        note_end(&board->ranks[r], &ends[r], board->transports[board->transport].name, r);
    if (failed < 0) {
        board->ranks[0].failures++;
        snprintf(board->ranks[0].texts[0], CHECK_TEXT_MAX, "ranks could not be started");
    }
}

/* ---- Reporting ----------------------------------------------------------------------------- */

static void print_failures(const check_options_t *o, const check_rank_t *ranks, int nranks) {
    for (int r = 0; r < nranks; r++) {
        int rank = o->nranks > 0 ? r : ranks[r].rank;
        long shown = ranks[r].failures < CHECK_TEXTS ? ranks[r].failures : CHECK_TEXTS;
        for (int i = 0; i < shown; i++)
            printf("FAIL: rank %d: %s\n", rank, ranks[r].texts[i]);
        if (ranks[r].failures > shown)
            printf("FAIL: rank %d: and %ld more\n", rank, ranks[r].failures - shown);
    }
}

static void write_json(FILE *file, const board_t *board, int nranks, const check_rank_t *ranks,
                       bool passed, double seconds) {
    fprintf(file, "{\"version\": \"%s\", \"passed\": %s, \"ranks\": %d, \"seconds\": %.3f,\n",
            hora_version(), passed ? "true" : "false", nranks, seconds);
    fprintf(file, " \"transports\": [");
    for (int i = 0; i < board->ntransports; i++) {
        fprintf(file, "%s\n  {\"name\": ", i > 0 ? "," : "");
        text_json(file, board->transports[i].name);
        fprintf(file, ", \"available\": %s, \"detail\": ",
                board->transports[i].available ? "true" : "false");
        text_json(file, board->transports[i].detail);
        fprintf(file, "}");
    }
    fprintf(file, "],\n \"calls\": %ld,\n \"failures\": [", ranks[0].calls);
    bool first = true;
    for (int r = 0; r < nranks; r++)
        for (long i = 0; i < ranks[r].failures && i < CHECK_TEXTS; i++, first = false) {
            fprintf(file, "%s\n  {\"rank\": %d, \"text\": ", first ? "" : ",", r);
            text_json(file, ranks[r].texts[i]);
            fprintf(file, "}");
        }
    fprintf(file, "]}\n");
}

static bool save_json(const check_options_t *o, const board_t *board, int nranks, bool passed,
                      double seconds) {
    bool standard = strcmp(o->json, "-") == 0;
    FILE *file = standard ? stdout : fopen(o->json, "w");
    if (file == NULL) {
        fprintf(stderr, "hora-check: ");
        perror(o->json);
        return false;
    }
    write_json(file, board, nranks, board->ranks, passed, seconds);
    return standard || fclose(file) == 0;
}

static void print_not_checked(const check_options_t *o, const board_t *board) {
    for (int i = 0; i < board->ntransports; i++) {
        const transport_t *t = &board->transports[i];
        if (o->transport != NULL ? strcmp(o->transport, t->name) != 0 : t->available)
            continue;
        if (!t->available)
            printf("not checked: %s: %s%s%s\n", t->name, t->detail, t->remedy[0] ? "; " : "",
                   t->remedy);
    }
}

static void print_nothing(const check_options_t *o) {
    printf("FAIL: nothing was checked");
    if (o->transport != NULL)
        printf("; is there a transport %s here? hora info tells", o->transport);
    if (o->algo != NULL)
        printf("; is there an algorithm %s? docs/config.md has them (HORA_ALGO)", o->algo);
    printf("\n");
}

/* Of the transport that was checked last. */
static void print_rounds(const check_options_t *o, const board_t *board) {
    for (int k = 0; k < CHECK_ROUNDS && (o->verbose || o->cuda) && board->ranks[0].rank == 0; k++)
        check_print_round(&board->ranks[0].rounds[k], board->transports[board->transport].name);
}

static int report(const check_options_t *o, const board_t *board, int nranks, const char *names,
                  double seconds) {
    long failures = 0;
    for (int r = 0; r < nranks; r++)
        failures += board->ranks[r].failures;
    bool passed = failures == 0 && board->ranks[0].calls > 0;
    if (o->json != NULL && !save_json(o, board, nranks, passed, seconds))
        return 1;
    if (o->json != NULL && strcmp(o->json, "-") == 0)
        return !passed;
    print_failures(o, board->ranks, nranks);
    if (o->verbose || o->transport != NULL)
        print_not_checked(o, board);
    if (board->ranks[0].calls == 0 && failures == 0)
        print_nothing(o);
    if (passed)
        printf("PASS: hora %s, %ld calls over %s, %d ranks, %d types, %.1f s\n", hora_version(),
               board->ranks[0].calls, names, board->ranks[0].size, HORA_DTYPE_COUNT, seconds);
    return !passed;
}

/* ---- Main ---------------------------------------------------------------------------------- */

static void add_name(char *names, size_t size, const char *name) {
    size_t used = strlen(names);
    snprintf(names + used, size - used, "%s%s", used > 0 ? ", " : "", name);
}

static int run_forked(check_context_t *context, char *names, size_t names_size) {
    const check_options_t *o = context->options;
    board_t *board = context->board;
    ranks_end_t *ends = calloc((size_t)o->nranks, sizeof(*ends));
    ranks_job_t ask = {.nranks = 1, .main = list_main, .arg = context, .deadline = 60};
    if (ends == NULL || ranks_run(&ask, NULL) != 0) {
        fprintf(stderr, "hora-check: the list of back-ends could not be read\n");
        free(ends);
        return 1;
    }
    for (int i = 0; i < board->ntransports; i++) {
        bool hopeless = o->cuda && board->ranks[0].failures > 0; /* there is no GPU, say */
        if (!is_wanted(o, &board->transports[i]) || hopeless)
            continue;
        board->transport = i;
        check_forked(context, ends);
        add_name(names, names_size, board->transports[i].name);
        print_rounds(o, board);
    }
    free(ends);
    return 0;
}

/* Ranks on several hosts share no memory, but "auto" then uses both transports: check it instead.
 * Returns false, with the failure noted, when the ranks do not find each other. */
static bool look_around(board_t *board) {
    hora_comm_t *comm;
    check_rank_t *mine = &board->ranks[0];
    if (hora_comm_create(NULL, &comm) != HORA_OK) {
        mine->failures = 1;
        snprintf(mine->texts[0], CHECK_TEXT_MAX, "start: %s", hora_last_error());
        return false;
    }
    mine->rank = hora_comm_rank(comm);
    bool several = hora_comm_local_size(comm) < hora_comm_size(comm);
    for (int i = 0; i < board->ntransports && several; i++)
        if (strcmp(board->transports[i].name, "shm") == 0)
            snprintf(board->transports[i].name, sizeof(board->transports[i].name), "auto");
    return hora_comm_free(comm) == HORA_OK;
}

static void run_launched(check_context_t *context, char *names, size_t names_size) {
    board_t *board = context->board;
    list_transports(board);
    if (!look_around(board))
        return;
    for (int i = 0; i < board->ntransports; i++) {
        if (!is_wanted(context->options, &board->transports[i]))
            continue;
        board->transport = i;
        if (check_main(0, 0, context) != 0)
            return;
        print_rounds(context->options, board);
        add_name(names, names_size, board->transports[i].name);
    }
}

int main(int argc, char **argv) {
    check_options_t options = {0};
    char names[128] = "";
    int code;
    if (!read_options(argc, argv, &options, &code))
        return code;
    int slots = options.nranks > 0 ? options.nranks : 1;
    size_t bytes = sizeof(board_t) + (size_t)slots * sizeof(check_rank_t);
    board_t *board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED)
        return perror("hora-check: mmap"), 1;
    check_context_t context = {&options, board};
    double begin = now();
    if (options.nranks > 0) {
        code = run_forked(&context, names, sizeof(names));
        return code != 0 ? code : report(&options, board, slots, names, now() - begin);
    }
    run_launched(&context, names, sizeof(names));
    if (board->ranks[0].rank == 0 || board->ranks[0].failures > 0)
        return report(&options, board, 1, names, now() - begin);
    return 0;
}
