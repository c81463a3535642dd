/*
 * Which tasks are executed together (fuse.h). Pure code, any thread.
 */
#include "controller/fuse.h"

static bool fits(const hora_fuser_t *fuser, const hora_fuse_batch_t *batch, size_t bytes,
                 size_t refs) {
    return bytes <= fuser->threshold - batch->bytes && batch->refs + refs <= HORA_FUSE_REFS;
}

hora_fuse_batch_t *hora_fuser_add(hora_fuser_t *fuser, const hora_signature_t *sig, size_t bytes,
                                  size_t refs, uint32_t nready, bool *is_new_p) {
    hora_fuse_batch_t *open = fuser->open;
    size_t             i = 0;
    *is_new_p = true;
    if (!hora_signature_fuses(sig, sig) || fuser->threshold == 0 || bytes > fuser->threshold)
        return NULL;
    while (i < HORA_FUSE_OPEN && (open[i].sig == NULL || open[i].nready != nready ||
                                  !hora_signature_fuses(open[i].sig, sig)))
        i++;
    if (i < HORA_FUSE_OPEN && fits(fuser, &open[i], bytes, refs)) {
        open[i].bytes += bytes;
        open[i].refs += refs;
        *is_new_p = false;
        return &open[i];
    }
    if (i == HORA_FUSE_OPEN)
        i = fuser->oldest++ % HORA_FUSE_OPEN;
    open[i] = (hora_fuse_batch_t){.sig = sig, .bytes = bytes, .refs = refs, .nready = nready};
    return &open[i];
}
