/*
 * NVTX ranges (nvtx.h), by NVTX's own headers. Any thread.
 */
#include "util/nvtx.h"

#include <nvtx3/nvToolsExt.h>
#include <pthread.h>
#include <stddef.h>

bool hora_nvtx_on;

static nvtxDomainHandle_t domain;
static _Thread_local bool is_open;
static pthread_once_t     once = PTHREAD_ONCE_INIT;

/* Without a profiler a domain is NULL. */
static void make_domain(void) {
    domain = nvtxDomainCreateA("hora");
    hora_nvtx_on = domain != NULL;
}

void hora_nvtx_open(void) {
    pthread_once(&once, make_domain);
}

void hora_nvtx_phase(const char *text) {
    nvtxEventAttributes_t range = {
        .version = NVTX_VERSION,
        .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
        .messageType = NVTX_MESSAGE_TYPE_ASCII,
        .message.ascii = text,
    };
    if (is_open)
        nvtxDomainRangePop(domain);
    is_open = text != NULL;
    if (is_open)
        nvtxDomainRangePushEx(domain, &range);
}
