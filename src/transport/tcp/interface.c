/*
 * The choice of an interface; see interface.h.
 */
#include "transport/tcp/interface.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Addresses set aside for documentation: never reached, but the way there is the default route. */
#define FAR_V4 "192.0.2.1"
#define FAR_V6 "2001:db8::1"

static socklen_t address_len(int family) {
    return family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

bool hora_tcp_is_loopback(const struct sockaddr_storage *sa) {
    if (sa->ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

void hora_tcp_address_text(const struct sockaddr_storage *sa, char text[HORA_TCP_TEXT_MAX],
                           int *port_p) {
    const struct sockaddr_in  *v4 = (const struct sockaddr_in *)sa;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)sa;
    const void                *ip = sa->ss_family == AF_INET ? (const void *)&v4->sin_addr
                                                             : (const void *)&v6->sin6_addr;
    *port_p = ntohs(sa->ss_family == AF_INET ? v4->sin_port : v6->sin6_port);
    if (inet_ntop(sa->ss_family, ip, text, HORA_TCP_TEXT_MAX) == NULL)
        snprintf(text, HORA_TCP_TEXT_MAX, "?");
}

/* Can this entry of getifaddrs carry the job? */
static bool usable(const struct ifaddrs *a) {
    if (a->ifa_addr == NULL || !(a->ifa_flags & IFF_UP))
        return false;
    return a->ifa_addr->sa_family == AF_INET || a->ifa_addr->sa_family == AF_INET6;
}

static bool link_local(const struct sockaddr_storage *sa) {
    return sa->ss_family == AF_INET6 &&
           IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static bool same_ip(const struct sockaddr_storage *a, const struct sockaddr_storage *b) {
    if (a->ss_family != b->ss_family)
        return false;
    if (a->ss_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return IN6_ARE_ADDR_EQUAL(&((const struct sockaddr_in6 *)a)->sin6_addr,
                              &((const struct sockaddr_in6 *)b)->sin6_addr);
}

/* The bytes of an address, and how many there are. */
static const uint8_t *ip_of(const struct sockaddr_storage *sa, size_t *len_p) {
    *len_p = sa->ss_family == AF_INET ? sizeof(struct in_addr) : sizeof(struct in6_addr);
    return sa->ss_family == AF_INET
               ? (const uint8_t *)&((const struct sockaddr_in *)sa)->sin_addr
               : (const uint8_t *)&((const struct sockaddr_in6 *)sa)->sin6_addr;
}

bool hora_tcp_is_near(const hora_tcp_interface_t *from, const struct sockaddr_storage *sa) {
    size_t         len;
    const uint8_t *to = ip_of(sa, &len), *mine = ip_of(&from->sa, &len);
    const uint8_t *mask = ip_of(&from->mask, &len);
    if (hora_tcp_is_loopback(sa) || same_ip(sa, &from->sa))
        return true;
    if (sa->ss_family != from->sa.ss_family || from->mask.ss_family != sa->ss_family)
        return false;
    for (size_t i = 0; i < len; i++)
        if ((to[i] ^ mine[i]) & mask[i])
            return false;
    return len > 0 && mask[0] != 0;
}

static void take(const struct ifaddrs *a, hora_tcp_interface_t *chosen) {
    int port;
    memset(chosen, 0, sizeof(*chosen));
    chosen->len = address_len(a->ifa_addr->sa_family);
    memcpy(&chosen->sa, a->ifa_addr, chosen->len);
    if (a->ifa_netmask != NULL && a->ifa_netmask->sa_family == a->ifa_addr->sa_family)
        memcpy(&chosen->mask, a->ifa_netmask, chosen->len);
    chosen->loopback = hora_tcp_is_loopback(&chosen->sa);
    snprintf(chosen->name, sizeof(chosen->name), "%s", a->ifa_name);
    hora_tcp_address_text(&chosen->sa, chosen->text, &port);
}

/* How good an address is among those of one interface, or of all: IPv4 before IPv6 before
 * link-local; loopback last. 0: not at all. */
static int rank_of(const struct ifaddrs *a) {
    struct sockaddr_storage sa;
    memcpy(&sa, a->ifa_addr, address_len(a->ifa_addr->sa_family));
    return (hora_tcp_is_loopback(&sa) ? 1 : 4) +
           (sa.ss_family == AF_INET ? 2 : link_local(&sa) ? 0 : 1);
}

/* The best address of the interface of this name (NULL: of all). */
static bool by_name(const struct ifaddrs *all, const char *name, hora_tcp_interface_t *chosen) {
    const struct ifaddrs *best = NULL;
    for (const struct ifaddrs *a = all; a != NULL; a = a->ifa_next)
        if (usable(a) && (name == NULL || strcmp(a->ifa_name, name) == 0) &&
            (best == NULL || rank_of(a) > rank_of(best)))
            best = a;
    if (best != NULL)
        take(best, chosen);
    return best != NULL;
}

/* The interface that has this address. */
static bool by_address(const struct ifaddrs *all, const struct sockaddr_storage *sa,
                       hora_tcp_interface_t *chosen) {
    struct sockaddr_storage other;
    for (const struct ifaddrs *a = all; a != NULL; a = a->ifa_next) {
        if (!usable(a))
            continue;
        memset(&other, 0, sizeof(other));
        memcpy(&other, a->ifa_addr, address_len(a->ifa_addr->sa_family));
        if (same_ip(&other, sa)) {
            take(a, chosen);
            return true;
        }
    }
    return false;
}

/* The interface whose address the kernel would use towards `to`. Connecting a datagram socket
 * sends nothing. */
static bool by_route(const struct ifaddrs *all, const struct sockaddr *to, socklen_t to_len,
                     hora_tcp_interface_t *chosen) {
    struct sockaddr_storage mine = {0};
    socklen_t               len = sizeof(mine);
    int                     fd = socket(to->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    bool found = connect(fd, to, to_len) == 0 &&
                 getsockname(fd, (struct sockaddr *)&mine, &len) == 0 &&
                 by_address(all, &mine, chosen);
    close(fd);
    return found;
}

/* Resolves host; port is only there because sockets want one. */
static bool by_host(const struct ifaddrs *all, const char *host, int flags,
                    hora_tcp_interface_t *chosen) {
    struct addrinfo  hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = flags | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    bool             found = false;
    if (getaddrinfo(host, "9", &hints, &list) != 0)
        return false;
    for (struct addrinfo *a = list; a != NULL && !found; a = a->ai_next)
        found = by_route(all, a->ai_addr, a->ai_addrlen, chosen) && !chosen->loopback;
    freeaddrinfo(list);
    return found;
}

/* HOST of "tcp:HOST:PORT" (an IPv6 address may stand in brackets). */
static bool rendezvous_host(const char *rendezvous, char *host, size_t size) {
    const char *last = strrchr(rendezvous, ':');
    if (strncmp(rendezvous, "tcp:", 4) != 0 || last == NULL || last < rendezvous + 5)
        return false;
    const char *begin = rendezvous + 4;
    size_t      len = (size_t)(last - begin);
    if (len >= 2 && begin[0] == '[' && begin[len - 1] == ']') {
        begin++;
        len -= 2;
    }
    snprintf(host, size, "%.*s", (int)len, begin);
    return len < size;
}

static bool by_name_or_address(const struct ifaddrs *all, const char *text,
                               hora_tcp_interface_t *chosen) {
    struct sockaddr_storage sa = {0};
    if (by_name(all, text, chosen))
        return true;
    if (inet_pton(AF_INET, text, &((struct sockaddr_in *)&sa)->sin_addr) == 1)
        sa.ss_family = AF_INET;
    else if (inet_pton(AF_INET6, text, &((struct sockaddr_in6 *)&sa)->sin6_addr) == 1)
        sa.ss_family = AF_INET6;
    else
        return false;
    return by_address(all, &sa, chosen);
}

/* The first of a list with commas that this host has: hosts may name theirs differently. */
static bool by_setting(const struct ifaddrs *all, const char *setting,
                       hora_tcp_interface_t *chosen) {
    char item[HORA_SETTING_STRING_MAX];
    while (hora_settings_item(&setting, item))
        if (by_name_or_address(all, item, chosen))
            return true;
    return false;
}

static bool by_default(const struct ifaddrs *all, const hora_world_t *world,
                       hora_tcp_interface_t *chosen) {
    char host[HORA_SETTING_STRING_MAX];
    if (rendezvous_host(world->settings.rendezvous, host, sizeof(host)) &&
        by_host(all, host, 0, chosen))
        return true;
    return by_host(all, FAR_V4, AI_NUMERICHOST, chosen) ||
           by_host(all, FAR_V6, AI_NUMERICHOST, chosen) || by_name(all, NULL, chosen);
}

static void loopback(hora_tcp_interface_t *chosen) {
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct ifaddrs     lo = {.ifa_name = (char *)"lo", .ifa_addr = (struct sockaddr *)&sa};
    take(&lo, chosen);
}

void hora_tcp_interface_list(char *text, size_t size) {
    struct ifaddrs      *all = NULL;
    hora_tcp_interface_t one;
    size_t               used = 0;
    text[0] = '\0';
    if (getifaddrs(&all) != 0)
        return;
    for (const struct ifaddrs *a = all; a != NULL; a = a->ifa_next) {
        if (!usable(a) || used >= size)
            continue;
        take(a, &one);
        if (link_local(&one.sa))
            continue;
        used += (size_t)snprintf(text + used, size - used, "%s%s %s", used > 0 ? ", " : "",
                                 one.name, one.text);
    }
    freeifaddrs(all);
}

hora_status_t hora_tcp_interface_choose(const hora_world_t *world, hora_tcp_interface_t *chosen_p) {
    const char          *setting = world->settings.interface;
    struct ifaddrs      *all = NULL;
    hora_tcp_interface_t chosen;
    bool                 found = true;
    if (setting[0] == '\0' && world->local_size == world->size) {
        loopback(chosen_p);
        return HORA_OK;
    }
    if (getifaddrs(&all) != 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot list the network interfaces");
    if (setting[0] != '\0')
        found = by_setting(all, setting, &chosen);
    else if (!by_default(all, world, &chosen))
        loopback(&chosen);
    freeifaddrs(all);
    if (!found) {
        char list[512];
        hora_tcp_interface_list(list, sizeof(list));
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "HORA_INTERFACE=%s is neither an interface that is up nor its address; "
                         "there are: %s",
                         setting, list);
    }
    *chosen_p = chosen;
    return HORA_OK;
}
