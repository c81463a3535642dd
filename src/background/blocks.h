/*
 * Device memory for results. CUDA frees memory when all that is queued on the GPU is done, and waits for
 * that without a deadline. So what a result's owner frees is kept, and given to later results:
 *
 *     reader's stream   waits for `done` | reads |        ready |
 *     host                                       freed
 *     engine's stream                                             waits | writes the next result there
 *
 * The readers of a result are the stream of its task and those that hora_handle_stream_wait was told of.
 * Reads were queued before the block was freed. So the engine may write there as soon as its stream waits
 * for marks that were made after that, one on each reader's stream: those of later tasks (`ready`), or of
 * later calls of hora_handle_stream_wait. No stream is touched but in a call that was given it.
 *
 * An engine with several lanes (device.h) gives a block to the lane that has written it before, whose stream
 * is in order; a mark that one lane waits for is behind the beginning of every later batch.
 *
 * Blocks are in one list of the process, which a lock of its own guards; any thread, unless it says
 * otherwise, with or without engine->lock. No CUDA is called under that lock.
 */
#ifndef HORA_BACKGROUND_BLOCKS_H
#define HORA_BACKGROUND_BLOCKS_H

#include "background/device.h"

/* Driver: memory for a result, which the engine's stream may write from now on. ready: of its task; NULL: a
 * ghost's, which nobody takes. May wait for the engine's stream, with the deadline of its communicator,
 * and then for the GPU: only where there is much kept memory, or no other, of which nothing fits. */
hora_status_t hora_block_alloc(hora_comm_t *comm, hora_engine_gpu_t *gpu, size_t bytes,
                               const hora_mark_t *ready, void **at_p);
/* Nobody has seen the result. NULL is allowed. */
void hora_block_discard(const hora_engine_gpu_t *gpu, const void *at);
/* That stream may read the result at `at` from now on, if that is there still. */
void hora_block_tell(const hora_engine_gpu_t *gpu, const void *at, const hora_gpu_place_t *reader);
/* Was a block freed that the stream may still read, since this was asked last? Then a mark is due on it. */
bool hora_blocks_need_mark(const hora_engine_gpu_t *gpu, hora_cuda_stream_t stream);
/* Driver: the engine's lane waits for the mark, and so do all later batches. */
void hora_blocks_passed(const hora_engine_gpu_t *gpu, const hora_mark_t *mark);

/* The engine's lanes have no work any more: gives what is kept back to CUDA. In the GPU's context. */
void hora_blocks_give_back(const hora_engine_gpu_t *gpu);
/* The engine ends. Results that are in use stay; idle: CUDA gets them back when they are freed, else, as
 * the GPU may write there still, when the process ends. */
void hora_blocks_leave(const hora_engine_gpu_t *gpu, bool idle);

#endif
