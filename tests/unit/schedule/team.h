/*
 * Ranks as threads of one process: each has a world of its own, with a real arena, shm links and
 * (if asked for) pads. For tests of what executes plans.
 */
#ifndef HORA_TESTS_SCHEDULE_TEAM_H
#define HORA_TESTS_SCHEDULE_TEAM_H

#include "schedule/exec.h"
#include "schedule/algos.h"
#include "transport/comm.h"

#define TEAM_MAX 8

typedef struct team team_t;

typedef struct member {
    team_t      *team;
    hora_comm_t *comm;
    int          rank, size;
    const void  *arg;
    char         error[1600]; /* "": all is well */
} member_t;

typedef void (*team_main_t)(member_t *member);

struct team {
    int          size;
    bool         pads;     /* else messages only */
    const char  *algo;     /* HORA_ALGO; NULL: auto */
    double       timeout;  /* seconds; 0: 20 */
    size_t       chunk;    /* bytes; 0: the default */
    bool         deterministic;
    const void  *arg;
    member_t     members[TEAM_MAX];
};

/* Runs main on every rank, each in its own thread; fails the cmocka test if one complains. */
void team_run(team_t *team, team_main_t main);

/* Notes the first complaint of a member. Returns false. */
bool team_complain(member_t *member, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
