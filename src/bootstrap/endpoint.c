/*
 * Sockets of the rendezvous (endpoint.h). Runs on the thread that joins; no state. All sockets are
 * close-on-exec.
 */
#include "bootstrap/endpoint.h"

#include "bootstrap/conn.h"
#include "util/log.h"
#include "util/settings.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- unix ------------------------------------------------------------------------------------ */

static socklen_t unix_address(const char *name, struct sockaddr_un *sa) {
    size_t len = strnlen(name, sizeof(sa->sun_path) - 1);
    memset(sa, 0, sizeof(*sa));
    sa->sun_family = AF_UNIX;
    memcpy(sa->sun_path + 1, name, len);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len);
}

static int fail_close(int fd) {
    int err = errno;
    close(fd);
    errno = err;
    return -1;
}

int hora_unix_listen(const char *name, int backlog) {
    struct sockaddr_un sa;
    socklen_t          len = unix_address(name, &sa);
    int                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&sa, len) != 0 || listen(fd, backlog) != 0)
        return fail_close(fd);
    return fd;
}

int hora_unix_connect(const char *name) {
    struct sockaddr_un sa;
    socklen_t          len = unix_address(name, &sa);
    int                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    while (connect(fd, (struct sockaddr *)&sa, len) != 0)
        if (errno != EINTR)
            return fail_close(fd);
    return fd;
}

bool hora_unix_same_user(int fd) {
    struct ucred cred;
    socklen_t    len = sizeof(cred);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.uid == geteuid();
}

pid_t hora_unix_process(int fd) {
    struct ucred cred;
    socklen_t    len = sizeof(cred);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 ? cred.pid : 0;
}

/* ---- addresses ------------------------------------------------------------------------------- */

static bool is_loopback(const struct sockaddr *sa) {
    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 == 127;
    return sa->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static void set_port(struct sockaddr_storage *sa, int port) {
    if (sa->ss_family == AF_INET)
        ((struct sockaddr_in *)sa)->sin_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in6 *)sa)->sin6_port = htons((uint16_t)port);
}

static bool write_address(const struct sockaddr *sa, socklen_t len, char *text, size_t size) {
    return getnameinfo(sa, len, text, (socklen_t)size, NULL, 0, NI_NUMERICHOST) == 0;
}

/* The first address of an interface, by its name or by the address itself. family: AF_UNSPEC, or
 * the only one that will do. */
static bool find_one_interface(const char *name, int family, hora_endpoint_t *found_p) {
    struct ifaddrs *list = NULL;
    bool            found = false;
    if (getifaddrs(&list) != 0)
        return false;
    for (struct ifaddrs *at = list; at != NULL && !found; at = at->ifa_next) {
        char text[NI_MAXHOST];
        if (at->ifa_addr == NULL || !(at->ifa_flags & IFF_UP) ||
            (at->ifa_addr->sa_family != AF_INET && at->ifa_addr->sa_family != AF_INET6) ||
            (family != AF_UNSPEC && at->ifa_addr->sa_family != family))
            continue;
        socklen_t len = at->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in)
                                                           : sizeof(struct sockaddr_in6);
        if (strcmp(at->ifa_name, name) == 0 ||
            (write_address(at->ifa_addr, len, text, sizeof(text)) && strcmp(text, name) == 0)) {
            memset(found_p, 0, sizeof(*found_p));
            memcpy(&found_p->sa, at->ifa_addr, len);
            found_p->len = len;
            found = true;
        }
    }
    freeifaddrs(list);
    return found;
}

/* The first of a list with commas that this host has. */
static bool find_interface(const char *names, int family, hora_endpoint_t *found_p) {
    char name[HORA_SETTING_STRING_MAX];
    while (hora_settings_item(&names, name))
        if (find_one_interface(name, family, found_p))
            return true;
    return false;
}

static struct addrinfo *resolve(const char *host, int flags, int *err_p) {
    struct addrinfo hints = {.ai_flags = flags, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    *err_p = getaddrinfo(host, "0", &hints, &list);
    return *err_p == 0 ? list : NULL;
}

/* ---- TCP, rank 0 ----------------------------------------------------------------------------- */

static int listen_at(const hora_endpoint_t *at) {
    int on = 1, fd = socket(at->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (const struct sockaddr *)&at->sa, at->len) != 0 || listen(fd, SOMAXCONN) != 0)
        return fail_close(fd);
    return fd;
}

/* The first free port. -1 and errno of the last try. */
static int listen_in_range(hora_endpoint_t *at, const hora_place_t *place, int *port_p) {
    int fd = -1;
    for (int i = 0; i < place->nports && fd < 0; i++) {
        *port_p = place->port + i;
        set_port(&at->sa, *port_p);
        fd = listen_at(at);
        if (fd < 0 && errno != EADDRINUSE && errno != EACCES)
            return -1;
    }
    return fd;
}

/* One of my own sockets listens at the port. */
static bool listens_here(int port) {
    DIR           *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    bool           found = false;
    while (dir != NULL && !found && (entry = readdir(dir)) != NULL) {
        hora_endpoint_t at;
        int             fd = atoi(entry->d_name), listens = 0;
        socklen_t       len = sizeof(listens);
        at.len = sizeof(at.sa);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) != 0 || !listens ||
            getsockname(fd, (struct sockaddr *)&at.sa, &at.len) != 0)
            continue;
        if (at.sa.ss_family == AF_INET)
            found = ntohs(((struct sockaddr_in *)&at.sa)->sin_port) == port;
        else if (at.sa.ss_family == AF_INET6)
            found = ntohs(((struct sockaddr_in6 *)&at.sa)->sin6_port) == port;
    }
    if (dir != NULL)
        closedir(dir);
    return found;
}

#define PORT_NAP_US  5000
#define PORT_FREE_IN 4 /* naps: its other user in this process may close it while we look */

/* The same, waiting for other worlds of this process to be done with the only port. */
static int listen_in_turn(hora_endpoint_t *at, const hora_place_t *place, int *port_p,
                          uint64_t deadline) {
    int fd, tries = 0;
    for (;;) {
        fd = listen_in_range(at, place, port_p);
        if (fd >= 0 || errno != EADDRINUSE || place->nports > 1)
            return fd;
        if (hora_poll_late(deadline) || (!listens_here(place->port) && ++tries > PORT_FREE_IN)) {
            errno = EADDRINUSE;
            return -1;
        }
        usleep(PORT_NAP_US);
    }
}

/* A name such as "node7" that /etc/hosts maps to 127.0.1.1: nobody else could reach that. */
static void widen(const hora_place_t *place, hora_endpoint_t *at) {
    hora_log(HORA_LOG_WARNING, "%s is a loopback address on rank 0's host, and the job may have "
             "other hosts: listening on all interfaces; set HORA_INTERFACE to choose one",
                 place->host);
    memset(&at->sa, 0, sizeof(at->sa));
    at->sa.ss_family = AF_INET;
    at->len = sizeof(struct sockaddr_in);
}

static int listen_on_host(const hora_place_t *place, bool wide, uint64_t deadline, int *port_p,
                          const char **resolve_error_p) {
    int              err, fd = -1;
    struct addrinfo *list = resolve(place->host, 0, &err);
    struct in6_addr  numeric;
    bool             named = inet_pton(AF_INET, place->host, &numeric) != 1 &&
                 inet_pton(AF_INET6, place->host, &numeric) != 1 &&
                 strcmp(place->host, "localhost") != 0;
    *resolve_error_p = list == NULL ? gai_strerror(err) : NULL;
    errno = EADDRNOTAVAIL;
    for (struct addrinfo *ai = list; ai != NULL && fd < 0; ai = ai->ai_next) {
        hora_endpoint_t at;
        memset(&at, 0, sizeof(at));
        memcpy(&at.sa, ai->ai_addr, ai->ai_addrlen);
        at.len = ai->ai_addrlen;
        if (wide && named && is_loopback(ai->ai_addr))
            widen(place, &at);
        fd = listen_in_turn(&at, place, port_p, deadline);
    }
    err = errno;
    if (list != NULL)
        freeaddrinfo(list);
    errno = err;
    return fd;
}

hora_status_t hora_net_listen(hora_place_t *place, const char *interface, bool wide,
                              uint64_t deadline, int *fd_p) {
    const char     *why = NULL;
    hora_endpoint_t at;
    int             fd, port = place->port;
    if (interface[0] == '\0') {
        fd = listen_on_host(place, wide, deadline, &port, &why);
    } else {
        if (!find_interface(interface, AF_UNSPEC, &at))
            return hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_INTERFACE=\"%s\" is no interface or "
                             "address of rank 0's host that is up", interface);
        fd = listen_in_turn(&at, place, &port, deadline);
    }
    if (why != NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "rank 0 cannot resolve \"%s\" (from %s): %s",
                         place->host, place->why, why);
    if (fd < 0 && errno == EADDRINUSE)
        return hora_fail(HORA_ERR_SYSTEM, "rank 0 cannot listen at %s: %s in use; choose another "
                         "port", place->text, place->nports > 1 ? "the ports from it on are all"
                                                                : "the port is");
    if (fd < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "rank 0 cannot listen at %s (from %s; if "
                               "this is not an address of rank 0's host, set HORA_INTERFACE)",
                               place->text, place->why);
    place->port = port;
    place->nports = 1;
    snprintf(place->text, sizeof(place->text), "tcp:%s:%d%s", place->host, port,
             place->mark);
    *fd_p = fd;
    return HORA_OK;
}

/* ---- TCP, the others ------------------------------------------------------------------------- */

hora_status_t hora_net_resolve(const hora_place_t *place, hora_endpoint_t **list_p, size_t *count_p,
                               const char **why_p) {
    int              err;
    size_t           count = 0, n = 0;
    struct addrinfo *list = resolve(place->host, 0, &err);
    hora_endpoint_t *all;
    for (struct addrinfo *ai = list; ai != NULL; ai = ai->ai_next)
        count++;
    all = calloc(count * (size_t)place->nports + 1, sizeof(*all));
    if (all == NULL) {
        if (list != NULL)
            freeaddrinfo(list);
        return hora_fail(HORA_ERR_NO_MEMORY, "addresses of %s", place->host);
    }
    for (int i = 0; i < place->nports; i++)
        for (struct addrinfo *ai = list; ai != NULL; ai = ai->ai_next, n++) {
            memcpy(&all[n].sa, ai->ai_addr, ai->ai_addrlen);
            all[n].len = ai->ai_addrlen;
            set_port(&all[n].sa, place->port + i);
        }
    if (list != NULL)
        freeaddrinfo(list);
    *why_p = count > 0 ? "" : gai_strerror(err);
    *list_p = all;
    *count_p = n;
    return HORA_OK;
}

static int finish_connect(int fd, uint64_t deadline) {
    struct pollfd p = {fd, POLLOUT, 0};
    int           err = 0;
    socklen_t     len = sizeof(err);
    while (poll(&p, 1, hora_poll_timeout(deadline)) <= 0)
        if (hora_poll_late(deadline)) {
            errno = ETIMEDOUT;
            return -1;
        }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err != 0)
        errno = err;
    return err == 0 ? 0 : -1;
}

int hora_net_connect(const hora_endpoint_t *to, const char *interface, uint64_t deadline) {
    hora_endpoint_t from;
    int fd = socket(to->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (interface[0] != '\0' && !is_loopback((const struct sockaddr *)&to->sa)) {
        if (!find_interface(interface, to->sa.ss_family, &from)) {
            errno = EADDRNOTAVAIL;
            return fail_close(fd);
        }
        set_port(&from.sa, 0);
        if (bind(fd, (struct sockaddr *)&from.sa, from.len) != 0)
            return fail_close(fd);
    }
    if (connect(fd, (const struct sockaddr *)&to->sa, to->len) != 0 &&
        ((errno != EINPROGRESS && errno != EINTR) || finish_connect(fd, deadline) != 0))
        return fail_close(fd);
    return fd;
}

void hora_net_keep(int fd) {
    int on = 1, idle = 4, interval = 2, count = 3, timeout_ms = 10000;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}
