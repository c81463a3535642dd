/*
 * Where the ranks meet (place.h). Runs on the thread that joins. hora_place_find is a pure function
 * of the environment, but for the parent's process number; hora_place_count keeps one small table
 * for the life of the process.
 */
#include "bootstrap/place.h"

#include "bootstrap/wire.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MASTER_PORTS 64

static hora_status_t bad_rendezvous(const char *text) {
    return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                     "rendezvous \"%s\" is not understood; expected unix:NAME (at most %d "
                     "characters) or tcp:HOST:PORT", text, HORA_PLACE_NAME_MAX - 12);
}

static bool parse_port(const char *text, int *port_p) {
    char *end;
    long  port = strtol(text, &end, 10);
    if (end == text || *end != '\0' || port < 1 || port > 65535)
        return false;
    *port_p = (int)port;
    return true;
}

static bool set_host(hora_place_t *place, const char *host, size_t len) {
    if (len >= 2 && host[0] == '[' && host[len - 1] == ']') { /* [::1] */
        host++;
        len -= 2;
    }
    if (len == 0 || len >= sizeof(place->host))
        return false;
    memcpy(place->host, host, len);
    place->host[len] = '\0';
    return true;
}

static void set_tcp(hora_place_t *place, int port, int nports, uint64_t key, const char *why) {
    place->local = false;
    place->port = port;
    place->nports = port + nports > 65536 ? 65536 - port : nports;
    place->key = key;
    place->why = why;
    snprintf(place->text, sizeof(place->text), "tcp:%s:%d", place->host, port);
}

/* The key has the port but not the host: ranks may call rank 0's host by different names. */
static hora_status_t parse(const char *text, hora_place_t *place) {
    const char *colon;
    int         port;
    if (strncmp(text, "unix:", 5) == 0) {
        size_t len = strlen(text + 5);
        if (len == 0 || len > sizeof(place->name) - 12)
            return bad_rendezvous(text);
        memcpy(place->name, text + 5, len + 1);
        place->local = true;
        place->key = hora_hash_text(HORA_HASH_START, text);
        place->why = "HORA_RENDEZVOUS";
        snprintf(place->text, sizeof(place->text), "%s", text);
        return HORA_OK;
    }
    colon = strrchr(text, ':');
    if (strncmp(text, "tcp:", 4) != 0 || colon < text + 5 || !parse_port(colon + 1, &port) ||
        !set_host(place, text + 4, (size_t)(colon - (text + 4))))
        return bad_rendezvous(text);
    set_tcp(place, port, 1, hora_hash_bytes(HORA_HASH_START, &port, sizeof(port)),
            "HORA_RENDEZVOUS");
    return HORA_OK;
}

static const char *value_or(const hora_env_t *env, const char *name, const char *otherwise) {
    const char *value = hora_env_get(env, name);
    return value != NULL ? value : otherwise;
}

/* When did that process start? Makes a process number unique until the machine boots again. */
static unsigned long long start_time(pid_t pid) {
    char               path[64], text[1024];
    unsigned long long start = 0;
    FILE              *file;
    size_t             n;
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    file = fopen(path, "re");
    if (file == NULL)
        return 0;
    n = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *p = strrchr(text, ')'); /* the name of the program may hold anything */
    for (int field = 2; p != NULL && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (p != NULL)
        sscanf(p, " %llu", &start);
    return start;
}

/* What all ranks of the job have in common, and no other job has. Each launcher has its own; a
 * variable of an outer launcher may be shared by two jobs. everywhere_p: it holds on all hosts. */
static void describe_job(const hora_env_t *env, const hora_job_t *job, char *text, size_t size,
                         bool *everywhere_p) {
    const char *space = hora_env_get(env, "PMIX_NAMESPACE");
    const char *run = hora_env_get(env, "TORCHELASTIC_RUN_ID");
    const char *port = hora_env_get(env, "MASTER_PORT");
    const char *slurm = hora_env_get(env, "SLURM_JOB_ID");
    *everywhere_p = true;
    if (job->family == HORA_FAMILY_OPENMPI && space != NULL)
        snprintf(text, size, "pmix/%s", space);
    else if (job->family == HORA_FAMILY_SLURM && slurm != NULL)
        snprintf(text, size, "slurm/%s/%s", slurm, value_or(env, "SLURM_STEP_ID", ""));
    else if (run != NULL || (port != NULL && hora_env_get(env, "MASTER_ADDR") != NULL))
        snprintf(text, size, "torch/%s/%s/%s", run != NULL ? run : "",
                 value_or(env, "MASTER_ADDR", ""), port != NULL ? port : "");
    else {
        snprintf(text, size, "parent/%d/%llu", (int)getppid(), start_time(getppid()));
        *everywhere_p = false;
    }
}

/* Ports below those that Linux hands out to connections (32768 on). */
static int port_from(uint64_t hash) {
    return 15000 + (int)(hash % 15000);
}

static hora_status_t no_place(const hora_job_t *job) {
    return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                     "%s started %d of %d ranks on this host, and nothing says where they all can "
                     "meet: set HORA_RENDEZVOUS=tcp:HOST:PORT on all ranks, with a host name or "
                     "address of rank 0", job->name, job->local_size, job->size);
}

/* Azure ML gives "ADDRESS:PORT"; the port is for something else. */
static bool set_azure(const hora_env_t *env, hora_place_t *place) {
    const char *node = hora_env_get(env, "AZ_BATCH_MASTER_NODE");
    return node != NULL && set_host(place, node, strcspn(node, ":"));
}

static hora_status_t find_between_hosts(const hora_env_t *env, const hora_job_t *job,
                                        hora_place_t *place) {
    char        text[512];
    bool        everywhere;
    const char *master = hora_env_get(env, "MASTER_ADDR");
    const char *port_text = hora_env_get(env, "MASTER_PORT");
    const char *nodes = hora_env_get(env, "SLURM_STEP_NODELIST");
    int         port = 0;
    describe_job(env, job, text, sizeof(text), &everywhere);
    uint64_t key = hora_hash_text(HORA_HASH_START, everywhere ? text : "job");
    if (master != NULL) {
        if (port_text != NULL && !parse_port(port_text, &port))
            return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                             "MASTER_PORT=\"%s\" is not understood; expected 1 to 65535",
                             port_text);
        if (!set_host(place, master, strlen(master)))
            return hora_fail(HORA_ERR_INVALID_ARGUMENT, "MASTER_ADDR=\"%s\" is too long", master);
        if (port_text != NULL && port < 65535)
            set_tcp(place, port + 1, MASTER_PORTS, key, "MASTER_ADDR");
        else if (everywhere)
            set_tcp(place, port_from(key), MASTER_PORTS, key, "MASTER_ADDR");
        else
            return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                             "MASTER_ADDR is set but MASTER_PORT is not; set it, or "
                             "HORA_RENDEZVOUS=tcp:HOST:PORT, on all ranks");
    } else if (job->family == HORA_FAMILY_SLURM && nodes != NULL &&
               hora_slurm_first_host(nodes, place->host, sizeof(place->host))) {
        set_tcp(place, port_from(key), MASTER_PORTS, key, "SLURM_STEP_NODELIST");
    } else if (everywhere && set_azure(env, place)) {
        set_tcp(place, port_from(key), MASTER_PORTS, key, "AZ_BATCH_MASTER_NODE");
    } else {
        return no_place(job);
    }
    return HORA_OK;
}

/* The name on one host: the job's description, which may be long, as a number. */
static void find_on_host(const hora_env_t *env, const hora_job_t *job, hora_place_t *place) {
    char text[512];
    bool everywhere;
    describe_job(env, job, text, sizeof(text), &everywhere);
    place->local = true;
    place->key = hora_hash_text(hora_hash_text(HORA_HASH_START, text), job->name);
    place->why = everywhere ? "the launcher's job number" : "the parent process";
    snprintf(place->name, sizeof(place->name), "hora-%u-%016llx", (unsigned)geteuid(),
             (unsigned long long)place->key);
    snprintf(place->text, sizeof(place->text), "unix:%s", place->name);
}

hora_status_t hora_place_find(const hora_env_t *env, const hora_job_t *job, const char *rendezvous,
                              hora_place_t *place_p) {
    hora_place_t  place;
    hora_status_t st = HORA_OK;
    bool          known = job->local_size > 0;
    memset(&place, 0, sizeof(place));
    if (rendezvous != NULL && rendezvous[0] != '\0')
        st = parse(rendezvous, &place);
    else if (job->local_size == job->size ||
             (!known && hora_env_get(env, "MASTER_ADDR") == NULL))
        find_on_host(env, job, &place);
    else
        st = find_between_hosts(env, job, &place);
    if (st == HORA_OK)
        *place_p = place;
    return st;
}

/* Ranks that differ in it never meet, so it must show in the messages. */
static void describe_world(hora_place_t *place, const char *name, unsigned copy) {
    size_t len = strlen(place->text);
    bool   named = name[0] != '\0';
    snprintf(place->mark, sizeof(place->mark), ", %s%.60s%scopy %x of libhora",
             named ? "name \"" : "", name, named ? "\", " : "", copy);
    snprintf(place->text + len, sizeof(place->text) - len, "%s", place->mark);
    snprintf(place->hint, sizeof(place->hint), "; this is %s in this process: all ranks must load "
             "the copies in one order%s", place->mark + 2, named ? " and give the same names" : "");
}

void hora_place_name(hora_place_t *place, const char *name, unsigned copy) {
    name = name != NULL ? name : "";
    if (name[0] == '\0' && copy == 0)
        return;
    describe_world(place, name, copy);
    place->world = hora_hash_text(HORA_HASH_START, name);
    place->world = hora_hash_bytes(place->world, &copy, sizeof(copy));
    place->key = hora_hash_bytes(place->key, &place->world, sizeof(place->world));
    if (place->local)
        snprintf(place->name, sizeof(place->name), "hora-%u-%016llx", (unsigned)geteuid(),
                 (unsigned long long)place->key);
}

/* How often each rank of this process has joined each world at the place where it joined it last.
 * Usually one row; several where ranks are threads. Lives as long as the process. */
static struct joins {
    int      rank;
    uint64_t world;
    uint64_t place;
    uint32_t count;
} *joins;
static size_t          njoins;
static pthread_mutex_t joins_lock = PTHREAD_MUTEX_INITIALIZER;

static struct joins *find_joins(int rank, uint64_t world) {
    struct joins *more;
    for (size_t i = 0; i < njoins; i++)
        if (joins[i].rank == rank && joins[i].world == world)
            return &joins[i];
    more = realloc(joins, (njoins + 1) * sizeof(*joins));
    if (more == NULL)
        return NULL;
    joins = more;
    joins[njoins] = (struct joins){rank, world, 0, 0};
    return &joins[njoins++];
}

/* A place left for another one starts anew when it comes up again; so a process that takes the
 * seat of one that died, at a new place, agrees with the ranks that stayed. */
hora_status_t hora_place_count(hora_place_t *place, int rank) {
    uint32_t      count = 0;
    struct joins *row;
    pthread_mutex_lock(&joins_lock);
    row = find_joins(rank, place->world);
    if (row != NULL) {
        count = row->place == place->key ? row->count + 1 : 0;
        row->place = place->key;
        row->count = count;
    }
    pthread_mutex_unlock(&joins_lock);
    if (row == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "counting the times that rank %d joined", rank);
    place->key = hora_hash_bytes(place->key, &count, sizeof(count));
    if (place->local) {
        size_t len = strlen(place->name);
        snprintf(place->name + len, sizeof(place->name) - len, ".%u", count);
    }
    return HORA_OK;
}
