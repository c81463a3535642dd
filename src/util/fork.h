/*
 * Noticing that this process is the child of a fork: links, threads and locks did not come along.
 */
#ifndef HORA_UTIL_FORK_H
#define HORA_UTIL_FORK_H

extern unsigned hora_fork_generation; /* grows by one in each child; read without a lock */

/* Installs the handler; any number of times. */
void hora_fork_watch(void);

#endif
