/*
 * The file of measured times (costs.h): JSON, a line for each collective, in which each algorithm is
 * followed by its time in nanoseconds at each size. Nothing in it is believed. On rank 0, on the thread
 * that joins or calibrates.
 */
#include "schedule/algos.h"
#include "schedule/costs.h"
#include "transport/machine.h"
#include "util/log.h"
#include "util/record.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define FORMAT   "hora-algorithm-times"
#define VERSION  2
#define LINE_MAX 1536
#define FIXED    8 /* keys before the collectives */
#define KEYS     (FIXED + HORA_COLL_KIND_COUNT - 1)

/* The contents of a file. */
typedef struct contents {
    char   format[32], layout[16], wire[16], machine[160], day[16];
    double version, ranks, hosts;
    char   lines[HORA_COLL_KIND_COUNT][LINE_MAX];
} contents_t;

static void make_fields(contents_t *c, hora_record_field_t *fields) {
    hora_record_field_t fixed[FIXED] = {
        {"format", c->format, sizeof(c->format), NULL, false},
        {"version", NULL, 0, &c->version, false},
        {"ranks", NULL, 0, &c->ranks, false},
        {"hosts", NULL, 0, &c->hosts, false},
        {"layout", c->layout, sizeof(c->layout), NULL, false},
        {"wire", c->wire, sizeof(c->wire), NULL, false},
        {"machine", c->machine, sizeof(c->machine), NULL, false},
        {"day", c->day, sizeof(c->day), NULL, false},
    };
    memcpy(fields, fixed, sizeof(fixed));
    for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
        fields[FIXED + kind - 1] = (hora_record_field_t){
            hora_coll_name((hora_coll_kind_t)kind), c->lines[kind], LINE_MAX, NULL, false};
}

static int hosts_of(const hora_world_t *world) {
    int most = 0;
    for (int r = 0; r < world->size; r++)
        if (world->peers[r].cross_rank > most)
            most = world->peers[r].cross_rank;
    return most + 1;
}

/* Which ranks share a host, in 8 digits: 2 + 2 ranks are not 3 + 1, nor two hosts in turn. */
static void layout_of(const hora_world_t *world, char text[16]) {
    uint32_t hash = 2166136261u;
    for (int r = 0; r < world->size; r++)
        hash = (hash ^ (uint32_t)world->peers[r].cross_rank) * 16777619u;
    snprintf(text, 16, "%08x", hash);
}

/* ---- Reading ----------------------------------------------------------------------------------- */

static int find_algorithm(const char *name, size_t len) {
    for (int i = 0; i < HORA_COSTS_ALGOS && hora_algo_list[i] != NULL; i++)
        if (strlen(hora_algo_list[i]->name) == len && strncmp(hora_algo_list[i]->name, name, len) == 0)
            return i;
    return -1;
}

static bool read_times(const char **p, uint32_t *ns) {
    for (int i = 0; i < HORA_COSTS_POINTS; i++) {
        char              *end;
        unsigned long long value;
        if ((*p)[0] != ' ' || !isdigit((unsigned char)(*p)[1]))
            return false;
        value = strtoull(*p + 1, &end, 10);
        if (value > UINT32_MAX)
            return false;
        ns[i] = (uint32_t)value;
        *p = end;
    }
    return true;
}

/* "ring 1200 1300 ... direct 1100 ..." */
static bool read_line(const char *p, hora_coll_kind_t kind, hora_costs_t *costs) {
    while (*p != '\0') {
        size_t len = strcspn(p, " ");
        int    algo = find_algorithm(p, len);
        if (algo < 0 || !(hora_algo_list[algo]->colls & 1u << kind))
            return false;
        p += len;
        if (!read_times(&p, costs->ns[kind][algo]))
            return false;
        if (*p == ' ')
            p++;
    }
    return true;
}

static bool take_contents(const contents_t *c, hora_costs_t *costs) {
    if (strcmp(c->format, FORMAT) != 0 || c->version != VERSION)
        return false;
    for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
        if (!read_line(c->lines[kind], (hora_coll_kind_t)kind, costs))
            return false;
    return true;
}

/* What differs between where it was made and here; NULL: nothing. */
static const char *difference(const contents_t *c, const hora_world_t *world) {
    char machine[160], layout[16];
    hora_machine_describe(machine, sizeof(machine));
    layout_of(world, layout);
    if (c->ranks != world->size)
        return "number of ranks";
    if (c->hosts != hosts_of(world))
        return "number of hosts";
    if (strcmp(c->layout, layout) != 0)
        return "placement of the ranks on the hosts";
    if (strcmp(c->wire, hora_machine_wire(world)) != 0)
        return "transport";
    return strcmp(c->machine, machine) != 0 ? "machine" : NULL;
}

/* Nobody need have calibrated; but who names a file wants it. */
static void note_absent(const hora_world_t *world, const char *path) {
    if (strcmp(world->settings.algo_times, "auto") != 0)
        hora_log(HORA_LOG_WARNING, "%s does not exist; algorithms are chosen by the formulas. Correct or "
                 "unset HORA_ALGO_TIMES, or let hora info --calibrate write it", path);
}

static hora_costs_t *read_file(const hora_world_t *world, const char *path) {
    hora_record_field_t  fields[KEYS];
    hora_record_result_t result;
    contents_t          *c = calloc(1, sizeof(*c));
    hora_costs_t        *costs = calloc(1, sizeof(*costs));
    const char          *other = NULL;
    bool                 good = c != NULL && costs != NULL;
    if (good) {
        make_fields(c, fields);
        result = hora_record_read(path, fields, KEYS);
        good = result == HORA_RECORD_OK && take_contents(c, costs);
        if (!good && result == HORA_RECORD_ABSENT)
            note_absent(world, path);
        else if (!good)
            hora_log(HORA_LOG_WARNING, "%s has no algorithms' times of this version of hora, or is "
                     "damaged; it is not used. hora info --calibrate writes it anew", path);
        other = good ? difference(c, world) : NULL;
    }
    if (other != NULL)
        hora_log(HORA_LOG_WARNING, "%s was made with another %s; it is not used. hora info "
                 "--calibrate writes it anew", path, other);
    if (good && other == NULL) {
        snprintf(costs->source, sizeof(costs->source), "%.256s of %.10s", path, c->day);
    } else {
        free(costs);
        costs = NULL;
    }
    free(c);
    return costs;
}

void hora_costs_load(hora_world_t *world) {
    char path[512];
    if (strcmp(world->settings.algo_times, "none") == 0 || world->size == 1 ||
        hora_costs_path(world, path, sizeof(path)) != HORA_OK)
        return;
    world->costs = read_file(world, path);
    if (world->costs != NULL)
        hora_log(HORA_LOG_INFO, "algorithms are chosen by %s", world->costs->source);
}

/* ---- Writing ----------------------------------------------------------------------------------- */

hora_status_t hora_costs_path(const hora_world_t *world, char *path_p, size_t room) {
    const char *setting = world->settings.algo_times, *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME"), *wire = hora_machine_wire(world);
    bool        own = cache != NULL && cache[0] == '/';
    char        layout[16];
    int         len;
    layout_of(world, layout);
    if (strcmp(setting, "auto") != 0 && strcmp(setting, "none") != 0)
        len = snprintf(path_p, room, "%s", setting);
    else if (!own && (home == NULL || home[0] != '/'))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "neither XDG_CACHE_HOME nor HOME is set; give a "
                         "path in HORA_ALGO_TIMES");
    else
        len = snprintf(path_p, room, "%s%s/hora/times-%s-%d-%s-%.3s.json", own ? cache : home,
                       own ? "" : "/.cache", world->peers[0].host, world->size, layout,
                       wire[3] == '\0' ? wire : "lnk");
    if (len < 0 || (size_t)len >= room)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "the path of the cache folder is too long");
    return HORA_OK;
}

/* The folders above path, as far as they are missing. */
static void make_folders(const char *path) {
    char folder[512];
    snprintf(folder, sizeof(folder), "%s", path);
    for (char *slash = strchr(folder + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(folder, 0755); /* one that cannot be made shows when the file is opened */
        *slash = '/';
    }
}

static hora_status_t fail_to_write(const char *path, int error) {
    return hora_fail_errno(HORA_ERR_SYSTEM, error, "%s cannot be written; make its folder "
                           "writable, or name another file in HORA_ALGO_TIMES", path);
}

hora_status_t hora_costs_prepare(const hora_world_t *world, char *path_p, size_t room) {
    char          path[512];
    hora_status_t st = hora_costs_path(world, path, sizeof(path));
    if (st != HORA_OK)
        return st;
    make_folders(path);
    if (!hora_record_writable(path))
        return fail_to_write(path, errno);
    snprintf(path_p, room, "%s", path);
    return HORA_OK;
}

/* What is written. */
typedef struct written {
    const hora_world_t *world;
    const hora_costs_t *costs;
} written_t;

static void print_line(FILE *file, const hora_costs_t *costs, int kind) {
    const char *gap = "";
    fprintf(file, "  \"%s\": \"", hora_coll_name((hora_coll_kind_t)kind));
    for (int algo = 0; algo < HORA_COSTS_ALGOS && hora_algo_list[algo] != NULL; algo++) {
        uint32_t any = 0;
        for (int i = 0; i < HORA_COSTS_POINTS; i++)
            any |= costs->ns[kind][algo][i];
        if (any == 0)
            continue;
        fprintf(file, "%s%s", gap, hora_algo_list[algo]->name);
        for (int i = 0; i < HORA_COSTS_POINTS; i++)
            fprintf(file, " %u", costs->ns[kind][algo][i]);
        gap = " ";
    }
    fprintf(file, "\"%s\n", kind + 1 < HORA_COLL_KIND_COUNT ? "," : "");
}

static bool print_file(FILE *file, const void *arg) {
    const written_t *written = arg;
    char             machine[160], layout[16], day[16];
    time_t           now = time(NULL);
    struct tm        date;
    gmtime_r(&now, &date);
    strftime(day, sizeof(day), "%Y-%m-%d", &date);
    hora_machine_describe(machine, sizeof(machine));
    layout_of(written->world, layout);
    fprintf(file, "{\n  \"format\": \"" FORMAT "\",\n  \"version\": %d,\n  \"ranks\": %d,\n"
            "  \"hosts\": %d,\n  \"layout\": \"%s\",\n  \"wire\": \"%s\",\n  \"machine\": \"%s\",\n"
            "  \"day\": \"%s\",\n",
            VERSION, written->world->size, hosts_of(written->world), layout,
            hora_machine_wire(written->world), machine, day);
    for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
        print_line(file, written->costs, kind);
    return fprintf(file, "}\n") > 0;
}

hora_status_t hora_costs_save(const hora_world_t *world, const hora_costs_t *costs,
                              const char *path) {
    written_t written = {world, costs};
    make_folders(path);
    if (hora_record_write(path, print_file, &written))
        return HORA_OK;
    return fail_to_write(path, errno);
}
