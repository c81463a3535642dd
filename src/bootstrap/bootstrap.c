/*
 * Joining and leaving a job: the phases in order. Runs on the calling thread.
 *
 *     launcher   who am I, and how many are we?
 *     place      where do we meet?
 *     gate       meet; prove that we belong together (handshake, proof)      -> star
 *     roster     who is on which host?
 *     local      ranks of one host pass arenas
 *     links      open transports, exchange addresses, connect
 *     times      what rank 0 has to choose algorithms by; nobody leaves before all are linked up
 *     watch      see who dies, from here on
 *
 * From the roster on, a rank that fails tells the others, and every rank's join fails with its
 * text. The last allgather is a barrier: a join succeeds on all ranks or on none (but for a rank
 * that dies right then, which the watch reports).
 */
#include "bootstrap/bootstrap.h"

#include "bootstrap/copies.h"
#include "bootstrap/gate.h"
#include "bootstrap/launcher.h"
#include "bootstrap/links.h"
#include "bootstrap/local.h"
#include "bootstrap/place.h"
#include "bootstrap/roster.h"
#include "bootstrap/star.h"
#include "bootstrap/watch.h"
#include "schedule/costs.h"
#include "transport/shm/arena.h"
#include "transport/wait.h"
#include "util/fork.h"
#include "util/log.h"

#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct joining {
    hora_world_t   *world;
    hora_job_t      job;
    hora_settings_t settings;
    hora_meeting_t  meeting;
    hora_star_t     star;
    hora_local_t    local;
    hora_card_t    *cards;
    bool            share; /* memory, among the ranks of a host */
} joining_t;

static hora_status_t copy_option(const char *option, const char *what, char *field) {
    if (option == NULL)
        return HORA_OK;
    if (strlen(option) >= HORA_SETTING_STRING_MAX)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "options->%s is longer than %d characters",
                         what, HORA_SETTING_STRING_MAX - 1);
    strcpy(field, option); /* the length was checked above */
    return HORA_OK;
}

hora_status_t hora_bootstrap_kernels(const hora_settings_t *settings) {
    if (strcmp(settings->kernels, "auto") == 0 || hora_kernel_force_isa(settings->kernels))
        return HORA_OK;
    return hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_KERNELS=%s: this machine does not have it; auto "
                     "is %s here", settings->kernels, hora_kernel_isa());
}

static hora_status_t check_seconds(const char *name, double seconds) {
    return seconds > 0 ? HORA_OK : hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s=0: nothing could be waited "
                                             "for; for no limit, give many seconds", name);
}

/* Settings, and the options on top of them. */
static hora_status_t read_settings(const hora_comm_options_t *options, joining_t *j) {
    hora_settings_t *s = &j->settings;
    hora_status_t    st = hora_settings_load(s);
    if (st == HORA_OK)
        st = copy_option(options->rendezvous, "rendezvous", s->rendezvous);
    if (st == HORA_OK)
        st = copy_option(options->transport, "transport", s->transport);
    if (st == HORA_OK)
        st = hora_links_check(s->transport, &j->share);
    if (st == HORA_OK)
        st = hora_bootstrap_kernels(s);
    if (st == HORA_OK && (s->nccl_streams < 1 || s->nccl_streams > HORA_STREAMS_MAX))
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_NUM_NCCL_STREAMS=%lld is not in 1 to %d",
                       (long long)s->nccl_streams, HORA_STREAMS_MAX);
    if (st == HORA_OK && strlen(s->secret) > HORA_SECRET_MAX)
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_SECRET is longer than %u characters",
                       HORA_SECRET_MAX);
    if (st != HORA_OK)
        return st;
    if (options->start_timeout > 0)
        s->start_timeout = options->start_timeout;
    if (options->timeout > 0)
        s->timeout = options->timeout;
    st = check_seconds("HORA_START_TIMEOUT", s->start_timeout);
    return st == HORA_OK ? check_seconds("HORA_TIMEOUT", s->timeout) : st;
}

/* Leaves the star; one rank alone has no need to meet. */
static hora_status_t meet(joining_t *j, const char *name) {
    hora_env_t      env = hora_env_process();
    hora_meeting_t *m = &j->meeting;
    hora_status_t   st;
    if (j->job.rank == 0) {
        hora_settings_warn_unknown();
        hora_settings_warn_horovod();
    }
    if (j->job.size == 1)
        return HORA_OK;
    st = hora_place_find(&env, &j->job, j->settings.rendezvous, &m->place);
    if (st == HORA_OK) {
        hora_place_name(&m->place, name, hora_copy_number());
        st = hora_place_count(&m->place, j->job.rank);
    }
    if (st == HORA_OK && j->settings.secret[0] != '\0' && !m->place.local)
        st = hora_proof_available();
    if (st != HORA_OK)
        return st;
    m->interface = j->settings.interface;
    m->wide = j->job.local_size != j->job.size;
    m->patience = j->settings.start_timeout;
    m->ticket = (hora_ticket_t){.key = m->place.key, .rank = j->job.rank, .size = j->job.size,
                                .local = m->place.local, .secret = j->settings.secret,
                                .place = m->place.text};
    hora_host_name(&j->settings, m->ticket.host);
    return j->job.rank == 0 ? hora_gate_keep(m, &j->star) : hora_gate_knock(m, &j->star);
}

/* The transports look at the rendezvous to choose an interface. */
static void settle_settings(joining_t *j) {
    hora_settings_t *s = &j->world->settings;
    *s = j->settings;
    if (s->rendezvous[0] == '\0' && !j->meeting.place.local && j->job.size > 1)
        snprintf(s->rendezvous, sizeof(s->rendezvous), "tcp:%.200s:%d", j->meeting.place.host,
                 j->meeting.place.port);
}

static hora_status_t exchange_cards(joining_t *j) {
    hora_card_t   card;
    hora_status_t st = HORA_OK;
    memset(&card, 0, sizeof(card));
    hora_host_name(&j->settings, card.host);
    card.host_id = hora_host_identity(card.host);
    snprintf(card.transport, sizeof(card.transport), "%s", j->settings.transport);
    if (j->job.size > 1) {
        st = hora_local_open(&j->local);
        snprintf(card.socket, sizeof(card.socket), "%s", j->local.name);
        if (st == HORA_OK)
            st = hora_roster_exchange(j->world, &j->star, &card, &j->cards);
    } else {
        st = hora_roster_fill(j->world, &card);
    }
    return st;
}

static hora_status_t share_times(joining_t *j) {
    uint8_t       bytes[HORA_BLOB_MAX];
    size_t        len = 0;
    hora_blob_t  *blobs;
    hora_status_t st;
    if (j->job.size == 1)
        return HORA_OK;
    if (j->job.rank == 0) {
        j->world->crowd = j->world->local_size * 100 / hora_cpu_count_host(j->world);
        hora_costs_load(j->world);
        len = hora_costs_encode(j->world, bytes, sizeof(bytes));
    }
    st = hora_star_allgather(&j->star, bytes, len, "all linked up", &blobs);
    if (st != HORA_OK)
        return st;
    if (j->job.rank != 0)
        st = hora_costs_decode(j->world, blobs[0].bytes, blobs[0].len);
    free(blobs);
    return st;
}

static hora_status_t link_up(joining_t *j) {
    hora_status_t st = exchange_cards(j);
    if (st == HORA_OK)
        st = hora_local_exchange(&j->local, j->world, &j->star, j->cards, j->meeting.place.key,
                                 j->share);
    if (st == HORA_OK)
        st = hora_links_open(j->world, &j->star);
    if (st == HORA_OK)
        st = share_times(j);
    return st;
}

static void log_joined(const joining_t *j) {
    const hora_world_t *w = j->world;
    char                links[128];
    hora_links_describe(w, links, sizeof(links));
    hora_log(HORA_LOG_INFO, "joined as rank %d of %d (by %s), %d on this host %s, met at %s (from "
             "%s), links: %s, %s%s", w->rank, w->size, j->job.name, w->local_size,
             w->peers[w->rank].host, w->size > 1 ? j->meeting.place.text : "none",
             w->size > 1 ? j->meeting.place.why : "one rank", links,
             w->arena != NULL ? "shared-memory arena" : "no arena",
             w->settings.interface[0] ? ", interface as set" : "");
    if (j->job.local_size > 0 &&
        (j->job.local_rank != w->local_rank || j->job.local_size != w->local_size))
        hora_log(HORA_LOG_INFO, "the launcher calls this local rank %d of %d, by host name and "
                 "namespaces it is %d of %d", j->job.local_rank, j->job.local_size, w->local_rank,
                 w->local_size);
}

/* What the phases up to the links made. */
static void undo(joining_t *j) {
    hora_world_t *world = j->world;
    if (world != NULL) {
        hora_links_close(world);
        hora_local_unshare(world);
    }
    hora_local_close(&j->local);
    hora_star_destroy(&j->star);
    hora_world_destroy(world);
}

/* Unless they know it, because they told me. */
static void tell_others(joining_t *j, hora_status_t status) {
    char text[HORA_FAIL_MAX];
    if (j->star.failed)
        return;
    snprintf(text, sizeof(text), "rank %d on host %s cannot join: %.1800s", j->job.rank,
             j->meeting.ticket.host, hora_last_error());
    hora_star_fail(&j->star, status, text);
}

static hora_status_t join(joining_t *j, const char *name) {
    hora_watch_t *watch;
    hora_status_t st = meet(j, name);
    if (st != HORA_OK)
        return st; /* the gate has told the others */
    st = hora_world_create(j->job.rank, j->job.size, &j->world);
    if (st == HORA_OK) {
        settle_settings(j);
        st = link_up(j);
    }
    if (st == HORA_OK)
        st = hora_watch_start(j->world, &j->star, &j->local, &watch);
    if (st != HORA_OK) {
        tell_others(j, st);
        return st;
    }
    hora_wait_setup(j->world);
    log_joined(j);
    return HORA_OK;
}

/* The status of a failed joining. Whether the cancel has ended it or something else before cannot
 * be told, so the text says both. */
static hora_status_t failed(const joining_t *j, const hora_comm_options_t *options,
                            hora_status_t status) {
    char text[HORA_FAIL_MAX];
    if (options->cancel == NULL || __atomic_load_n(options->cancel, __ATOMIC_RELAXED) == 0)
        return status;
    snprintf(text, sizeof(text), "%s", hora_last_error());
    return hora_fail(HORA_ERR_ABORTED, "joining the job as rank %d of %d was cancelled (%s)",
                     j->job.rank, j->job.size, text);
}

/* Raises the soft limit on descriptors, commonly 1024, to what rank 0 of a job with an engine has at
 * most: for each rank one of the star, one of a neighbour, and TCP connections both ways. Others may
 * need as many, if they talk to all. */
static void allow_descriptors(const hora_settings_t *settings, int size) {
    const rlim_t  want = 256 + (rlim_t)size * (2 + 2 * (rlim_t)settings->tcp_connections);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= want)
        return;
    if (limit.rlim_max < want)
        hora_log(HORA_LOG_INFO, "%d ranks may need %lu descriptors, and the hard limit is %lu "
                 "(ulimit -Hn)", size, (unsigned long)want, (unsigned long)limit.rlim_max);
    limit.rlim_cur = limit.rlim_max < want ? limit.rlim_max : want;
    setrlimit(RLIMIT_NOFILE, &limit); /* if not, whoever runs out of them says so */
}

hora_status_t hora_bootstrap_join(const hora_comm_options_t *options, hora_world_t **world_p) {
    joining_t     j;
    hora_env_t    env = hora_env_process();
    hora_status_t st;
    memset(&j, 0, sizeof(j));
    j.local.listener = -1;
    hora_fork_watch();
    st = read_settings(options, &j);
    if (st == HORA_OK)
        st = hora_launcher_detect(&env, options->rank, options->nranks, &j.job);
    if (st != HORA_OK)
        return st;
    hora_log_set_rank(j.job.rank);
    allow_descriptors(&j.settings, j.job.size);
    st = hora_star_init(&j.star, j.job.rank, j.job.size, j.settings.start_timeout);
    if (st != HORA_OK)
        return st;
    hora_poll_arm(options->cancel);
    st = join(&j, options->name);
    hora_poll_arm(NULL);
    free(j.cards);
    if (st != HORA_OK) {
        undo(&j);
        return failed(&j, options, st);
    }
    *world_p = j.world;
    return HORA_OK;
}

/* Queued bytes first, then the goodbye: who has heard it may stop waiting for bytes. */
void hora_bootstrap_leave(hora_world_t *world) {
    if (world == NULL || world->fork_generation != hora_fork_generation)
        return;
    hora_links_close(world);
    hora_watch_stop(world->bootstrap);
    hora_local_unshare(world);
    hora_world_destroy(world);
}
