/*
 * Fork guard. The handler runs in the child, on its only thread, before fork returns.
 */
#include "util/fork.h"

#include <pthread.h>

unsigned hora_fork_generation;

static void in_child(void) {
    hora_fork_generation++;
}

static void install(void) {
    pthread_atfork(NULL, NULL, in_child);
}

void hora_fork_watch(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
}
