/*
 * Finds the rank and the size in the launcher's variables. Pure functions of an environment that
 * the caller passes; run on the thread that joins.
 *
 * A launcher inside another one shows two sets of variables (mpirun inside sbatch), so one complete
 * family is taken, in the order of the table: what the user asked for most closely comes first.
 */
#include "bootstrap/launcher.h"

#include "util/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANK, SIZE, LOCAL_RANK, LOCAL_SIZE, NVARS };

typedef struct family {
    hora_family_t family;
    const char   *name;
    const char   *vars[NVARS];
    int           needed; /* the first `needed` variables make it complete */
    bool          demand; /* half of it, and nothing else, is the user's mistake */
} family_t;

/* RANK and WORLD_SIZE without LOCAL_RANK count nodes on some platforms, so torchrun's family needs
 * three. Slurm's local size is computed, see read_family. */
static const family_t families[] = {
    {HORA_FAMILY_HORA, "hora",
     {"HORA_RANK", "HORA_SIZE", "HORA_LOCAL_RANK", "HORA_LOCAL_SIZE"}, 2, true},
    {HORA_FAMILY_HOROVOD, "horovod",
     {"HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"}, 2, true},
    {HORA_FAMILY_TORCHRUN, "torchrun",
     {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}, 3, true},
    {HORA_FAMILY_OPENMPI, "Open MPI",
     {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
      "OMPI_COMM_WORLD_LOCAL_SIZE"}, 4, false},
    {HORA_FAMILY_MPICH, "MPICH",
     {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}, 4, false},
    {HORA_FAMILY_PALS, "Cray PALS",
     {"PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"}, 4, false},
    {HORA_FAMILY_MVAPICH2, "MVAPICH2",
     {"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
      "MV2_COMM_WORLD_LOCAL_SIZE"}, 4, false},
    {HORA_FAMILY_SLURM, "Slurm",
     {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"}, 4,
     false},
    {HORA_FAMILY_JSRUN, "jsrun",
     {"JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK",
      "JSM_NAMESPACE_LOCAL_SIZE"}, 3, false},
};

static const char *get_process(void *arg, const char *name) {
    (void)arg;
    return getenv(name);
}

hora_env_t hora_env_process(void) {
    hora_env_t env = {get_process, NULL};
    return env;
}

const char *hora_env_get(const hora_env_t *env, const char *name) {
    const char *value = env->get(env->arg, name);
    return value != NULL && *value != '\0' ? value : NULL;
}

static bool parse_number(const char *text, int *value_p) {
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || v < 0 || v > 1 << 20)
        return false;
    *value_p = (int)v;
    return true;
}

static hora_status_t read_number(const hora_env_t *env, const char *name, int *value_p) {
    const char *text = hora_env_get(env, name);
    if (text != NULL && !parse_number(text, value_p))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "%s=\"%s\" is not understood; expected a number from 0 to %d", name, text,
                         1 << 20);
    return HORA_OK;
}

/* One number and what it must be less than, both from variables. */
static hora_status_t check_below(const char *name, int value, const char *limit_name, int limit) {
    if (value >= limit)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s=%d must be less than %s=%d", name, value,
                         limit_name, limit);
    return HORA_OK;
}

static hora_status_t check_job(const family_t *f, const hora_job_t *job) {
    hora_status_t st = HORA_OK;
    if (job->size < 1)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s=%d must be at least 1", f->vars[SIZE],
                         job->size);
    st = check_below(f->vars[RANK], job->rank, f->vars[SIZE], job->size);
    if (st == HORA_OK && job->local_size > 0) {
        st = check_below(f->vars[LOCAL_RANK], job->local_rank, f->vars[LOCAL_SIZE],
                         job->local_size);
        if (st == HORA_OK && job->local_size > job->size)
            st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s=%d must not be more than %s=%d",
                           f->vars[LOCAL_SIZE], job->local_size, f->vars[SIZE], job->size);
    }
    if (st == HORA_OK && job->local_rank >= 0)
        st = check_below(f->vars[LOCAL_RANK], job->local_rank, f->vars[SIZE], job->size);
    return st;
}

static hora_status_t read_slurm_local_size(const hora_env_t *env, const family_t *f,
                                           hora_job_t *job) {
    const char   *text = hora_env_get(env, f->vars[LOCAL_SIZE]);
    int           node = 0;
    hora_status_t st = read_number(env, "SLURM_NODEID", &node);
    if (st != HORA_OK)
        return st;
    job->local_size = hora_slurm_tasks_on_node(text, node);
    if (job->local_size < 1)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "%s=\"%s\" has no number of tasks for SLURM_NODEID=%d",
                         f->vars[LOCAL_SIZE], text, node);
    return HORA_OK;
}

static hora_status_t read_family(const hora_env_t *env, const family_t *f, hora_job_t *job_p) {
    hora_job_t    job = {f->family, f->name, 0, 0, -1, 0};
    int          *fields[NVARS] = {&job.rank, &job.size, &job.local_rank, &job.local_size};
    bool          slurm = f->family == HORA_FAMILY_SLURM;
    hora_status_t st = HORA_OK;
    for (int v = 0; v < (slurm ? LOCAL_SIZE : NVARS) && st == HORA_OK; v++)
        st = read_number(env, f->vars[v], fields[v]);
    if (st == HORA_OK && slurm)
        st = read_slurm_local_size(env, f, &job);
    if (st == HORA_OK && job.local_size > 0 && job.local_rank < 0)
        job.local_size = 0; /* half of the local pair says nothing */
    if (st == HORA_OK)
        st = check_job(f, &job);
    if (st == HORA_OK)
        *job_p = job;
    return st;
}

/* The first variable that is missing for the family to be complete; NULL: it is complete. */
static const char *first_missing(const hora_env_t *env, const family_t *f) {
    for (int v = 0; v < f->needed; v++)
        if (hora_env_get(env, f->vars[v]) == NULL)
            return f->vars[v];
    return NULL;
}

/* A rank or a size without the rest. "1 rank" is what a process without variables is anyway. */
static const char *half_a_family(const hora_env_t *env, const family_t *f) {
    const char *size = hora_env_get(env, f->vars[SIZE]);
    if (size != NULL)
        return strcmp(size, "1") == 0 ? NULL : f->vars[SIZE];
    return hora_env_get(env, f->vars[RANK]) != NULL ? f->vars[RANK] : NULL;
}

static hora_status_t from_options(int rank, int nranks, hora_job_t *job_p) {
    if (rank < 0 || nranks < 1 || rank >= nranks)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "options rank=%d and nranks=%d: give both, with 0 <= rank < nranks, or -1 "
                         "for both", rank, nranks);
    *job_p = (hora_job_t){HORA_FAMILY_OPTIONS, "the caller's options", rank, nranks, -1, 0};
    return HORA_OK;
}

hora_status_t hora_launcher_detect(const hora_env_t *env, int rank, int nranks, hora_job_t *job_p) {
    const family_t *half = NULL;
    if (rank != -1 || nranks != -1)
        return from_options(rank, nranks, job_p);
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        const family_t *f = &families[i];
        if (first_missing(env, f) == NULL) {
            hora_status_t st = read_family(env, f, job_p);
            if (st == HORA_OK)
                hora_log(HORA_LOG_INFO, "rank %d of %d by the variables of %s (%s, ...)",
                         job_p->rank, job_p->size, f->name, f->vars[RANK]);
            return st;
        }
        if (half_a_family(env, f) == NULL)
            continue;
        hora_log(HORA_LOG_INFO, "%s is set, but not %s: the variables of %s are not used",
                 half_a_family(env, f), first_missing(env, f), f->name);
        if (f->demand && half == NULL)
            half = f;
    }
    if (half != NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "%s is set but %s is not, and no other launcher's variables were found; "
                         "set %s, or HORA_RANK and HORA_SIZE", half_a_family(env, half),
                         first_missing(env, half), first_missing(env, half));
    *job_p = (hora_job_t){HORA_FAMILY_ALONE, "no launcher", 0, 1, 0, 1};
    hora_log(HORA_LOG_INFO, "no launcher's variables: a job of one rank");
    return HORA_OK;
}

int hora_slurm_tasks_on_node(const char *text, int node) {
    const char *p = text;
    for (;;) {
        char *end;
        long  tasks = strtol(p, &end, 10), times = 1;
        if (end == p || tasks < 1 || tasks > 1 << 20)
            return 0;
        if (strncmp(end, "(x", 2) == 0) {
            p = end + 2;
            times = strtol(p, &end, 10);
            if (end == p || *end != ')' || times < 1)
                return 0;
            end++;
        }
        if (node < times)
            return (int)tasks;
        node -= (int)times;
        if (*end != ',')
            return 0;
        p = end + 1;
    }
}

bool hora_slurm_first_host(const char *list, char *host, size_t size) {
    size_t      prefix = strcspn(list, "[,");
    const char *open = list + prefix;
    size_t      digits = 0, suffix = 0;
    const char *tail = "";
    if (*open == '[') {
        digits = strcspn(open + 1, "-,]");
        tail = strchr(open, ']');
        if (tail == NULL || digits == 0)
            return false;
        tail++;
        suffix = strcspn(tail, "[,");
        if (tail[suffix] == '[')
            return false;
    }
    if (prefix + digits + suffix == 0 || prefix + digits + suffix >= size)
        return false;
    snprintf(host, size, "%.*s%.*s%.*s", (int)prefix, list, (int)digits, *open ? open + 1 : "",
             (int)suffix, tail);
    return true;
}
