/*
 * Copies of this library in one process: each extension that brings hora along has its own, and
 * they do not know of each other, but their worlds meet at the same places.
 */
#ifndef HORA_BOOTSTRAP_COPIES_H
#define HORA_BOOTSTRAP_COPIES_H

/* How many copies were in this process when this one was loaded: 0, 1, ...; equal on all ranks
 * whose programs load them in one order. */
unsigned hora_copy_number(void);

#endif
