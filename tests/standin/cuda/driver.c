/*
 * The stand-in's driver, GPUs and contexts (standin.h). Any thread; `lock` guards cuda_standin and
 * what the environment says.
 */
#include "standin.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH_MAX 16

EXPORT cuda_standin_t cuda_standin;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int             lost; /* the result of every call from now on */
static int             gpus, physical[STANDIN_GPUS_MAX];
static int             version;
static char            failing[64]; /* the symbol in HORA_STANDIN_FAIL */
static pid_t           started;     /* by this process; 0: not yet */
static char            contexts[STANDIN_GPUS_MAX]; /* their addresses are the handles */

static __thread int stack[DEPTH_MAX];
static __thread int depth;
static __thread int capture_mode; /* 0: global */

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text != NULL && text[0] != '\0' ? atoi(text) : otherwise;
}

static void count_gpus(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int         all = number("HORA_STANDIN_GPUS", 1);
    gpus = 0;
    if (visible == NULL) {
        for (gpus = 0; gpus < all && gpus < STANDIN_GPUS_MAX; gpus++)
            physical[gpus] = gpus;
        return;
    }
    while (*visible != '\0' && gpus < STANDIN_GPUS_MAX) {
        char *end;
        long  one = strtol(visible, &end, 10);
        if (end == visible || one < 0 || one >= all)
            return; /* as CUDA: the ones before it */
        physical[gpus++] = (int)one;
        visible = *end == ',' ? end + 1 : end;
    }
}

static void read_failure(const char *text) {
    char mode[8] = "";
    if (text == NULL || text[0] == '\0')
        return;
    if (sscanf(text, "%63[^:]:%d:%d:%7s", failing, &cuda_standin.nth, &cuda_standin.result, mode) < 3) {
        fprintf(stderr, "HORA_STANDIN_FAIL=%s is not SYMBOL:NTH:RESULT[:lost]\n", text);
        abort();
    }
    cuda_standin.fails = failing;
    cuda_standin.lost = strcmp(mode, "lost") == 0;
}

/* The caller holds the lock. */
static void start(void) {
    if (started != 0)
        return;
    started = getpid();
    version = number("HORA_STANDIN_VERSION", 12040);
    count_gpus();
    read_failure(getenv("HORA_STANDIN_FAIL"));
}

static bool fails_now(const char *symbol) {
    if (cuda_standin.fails == NULL || strcmp(cuda_standin.fails, symbol) != 0)
        return false;
    if (cuda_standin.nth == 0)
        return true;
    if (--cuda_standin.nth > 0)
        return false;
    cuda_standin.fails = NULL;
    return true;
}

/* The caller holds the lock. */
static bool spoils_capture(const char *symbol) {
    static const char *const forbidden[] = {"cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc",
                                            "cuMemFreeHost", "cuEventQuery",  "cuStreamQuery"};
    bool                     is = false;
    for (size_t i = 0; i < sizeof(forbidden) / sizeof(forbidden[0]); i++)
        is = is || strcmp(symbol, forbidden[i]) == 0;
    is = is && cuda_standin.captures && capture_mode != HORA_CUDA_CAPTURE_RELAXED;
    cuda_standin.spoils += is;
    return is;
}

int standin_enter(const char *symbol) {
    int result = HORA_CUDA_SUCCESS;
    if (cuda_standin.slow != NULL && strcmp(symbol, cuda_standin.slow) == 0)
        usleep(50000);
    pthread_mutex_lock(&lock);
    start();
    if (cuda_standin.ncalls < STANDIN_CALLS_MAX)
        cuda_standin.calls[cuda_standin.ncalls++] = symbol;
    if (started != getpid())
        result = STANDIN_FORKED;
    else if (lost != 0)
        result = lost;
    else if (spoils_capture(symbol))
        result = STANDIN_CAPTURE;
    else if (fails_now(symbol)) {
        result = cuda_standin.result;
        lost = cuda_standin.lost ? result : 0;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int standin_enter_gpu(const char *symbol, int *gpu_p) {
    int result = standin_enter(symbol);
    if (result == HORA_CUDA_SUCCESS && depth == 0)
        return STANDIN_NO_CONTEXT;
    *gpu_p = depth > 0 ? stack[depth - 1] : 0;
    return result;
}

void standin_lose(int result) {
    pthread_mutex_lock(&lock);
    lost = result;
    pthread_mutex_unlock(&lock);
}

bool standin_is_lost(void) {
    bool is;
    pthread_mutex_lock(&lock);
    is = lost != 0;
    pthread_mutex_unlock(&lock);
    return is;
}

void standin_count(int *counter, int by) {
    pthread_mutex_lock(&lock);
    *counter += by;
    pthread_mutex_unlock(&lock);
}

int standin_gpus(void) {
    return gpus;
}

int standin_physical(int gpu) {
    return physical[gpu];
}

/* ---- Driver and GPUs ------------------------------------------------------------------------- */

EXPORT int cuDriverGetVersion(int *version_p);
int cuDriverGetVersion(int *version_p) {
    int result = standin_enter("cuDriverGetVersion");
    if (result == HORA_CUDA_SUCCESS)
        *version_p = version;
    return result;
}

EXPORT int cuInit(unsigned flags);
int cuInit(unsigned flags) {
    int result = standin_enter("cuInit");
    return result == HORA_CUDA_SUCCESS && gpus == 0 ? HORA_CUDA_NO_DEVICE : result;
}

EXPORT int cuDeviceGetCount(int *count_p);
int cuDeviceGetCount(int *count_p) {
    int result = standin_enter("cuDeviceGetCount");
    if (result == HORA_CUDA_SUCCESS)
        *count_p = gpus;
    return result;
}

static int enter_device(const char *symbol, int gpu) {
    int result = standin_enter(symbol);
    return result == HORA_CUDA_SUCCESS && (gpu < 0 || gpu >= gpus) ? 101 : result;
}

EXPORT int cuDeviceGet(int *device_p, int ordinal);
int cuDeviceGet(int *device_p, int ordinal) {
    int result = enter_device("cuDeviceGet", ordinal);
    if (result == HORA_CUDA_SUCCESS)
        *device_p = ordinal;
    return result;
}

EXPORT int cuDeviceGetName(char *name, int room, int device);
int cuDeviceGetName(char *name, int room, int device) {
    int result = enter_device("cuDeviceGetName", device);
    if (result == HORA_CUDA_SUCCESS)
        snprintf(name, (size_t)room, "CPU standing in for a GPU");
    return result;
}

EXPORT int cuDeviceTotalMem_v2(size_t *bytes_p, int device);
int cuDeviceTotalMem_v2(size_t *bytes_p, int device) {
    int result = enter_device("cuDeviceTotalMem_v2", device);
    if (result == HORA_CUDA_SUCCESS)
        *bytes_p = STANDIN_MEMORY;
    return result;
}

/* The same in every process of the machine. */
EXPORT int cuDeviceGetUuid_v2(uint8_t *uuid16, int device);
int cuDeviceGetUuid_v2(uint8_t *uuid16, int device) {
    int result = enter_device("cuDeviceGetUuid_v2", device);
    if (result == HORA_CUDA_SUCCESS) {
        memcpy(uuid16, "hora's stand-in", 16);
        uuid16[15] = (uint8_t)physical[device];
    }
    return result;
}

EXPORT int cuDeviceGetAttribute(int *value_p, int attribute, int device);
int cuDeviceGetAttribute(int *value_p, int attribute, int device) {
    int result = enter_device("cuDeviceGetAttribute", device);
    if (result == HORA_CUDA_SUCCESS)
        *value_p = attribute == HORA_CUDA_PROCESSORS         ? 4
                   : attribute == HORA_CUDA_CAPABILITY_MAJOR ? 9
                   : attribute == HORA_CUDA_IPC_EVENTS       ? 1
                                                             : 0;
    return result;
}

/* ---- Contexts -------------------------------------------------------------------------------- */

EXPORT int cuDevicePrimaryCtxRetain(void **context_p, int device);
int cuDevicePrimaryCtxRetain(void **context_p, int device) {
    int result = enter_device("cuDevicePrimaryCtxRetain", device);
    if (result == HORA_CUDA_SUCCESS) {
        *context_p = &contexts[device];
        standin_count(&cuda_standin.retained, 1);
    }
    return result;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device);
int cuDevicePrimaryCtxRelease_v2(int device) {
    int result = enter_device("cuDevicePrimaryCtxRelease_v2", device);
    if (result == HORA_CUDA_SUCCESS)
        standin_count(&cuda_standin.retained, -1);
    return result;
}

EXPORT int cuCtxPushCurrent_v2(void *context);
int cuCtxPushCurrent_v2(void *context) {
    int  result = standin_enter("cuCtxPushCurrent_v2");
    long gpu = (char *)context - contexts;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (gpu < 0 || gpu >= gpus || depth == DEPTH_MAX)
        return STANDIN_NO_CONTEXT;
    stack[depth++] = (int)gpu;
    standin_count(&cuda_standin.depth, 1);
    return result;
}

/* Also when the GPU is lost: who entered leaves. */
EXPORT int cuCtxPopCurrent_v2(void **context_p);
int cuCtxPopCurrent_v2(void **context_p) {
    int result = standin_enter("cuCtxPopCurrent_v2");
    if (depth == 0)
        return STANDIN_NO_CONTEXT;
    *context_p = &contexts[stack[--depth]];
    standin_count(&cuda_standin.depth, -1);
    return result;
}

EXPORT int cuThreadExchangeStreamCaptureMode(int *mode_p);
int cuThreadExchangeStreamCaptureMode(int *mode_p) {
    int result = standin_enter("cuThreadExchangeStreamCaptureMode"), before = capture_mode;
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (*mode_p < 0 || *mode_p > HORA_CUDA_CAPTURE_RELAXED)
        return STANDIN_INVALID;
    capture_mode = *mode_p;
    *mode_p = before;
    return result;
}

/* ---- Words ----------------------------------------------------------------------------------- */

EXPORT int cuGetErrorName(int result, const char **name_p);
int cuGetErrorName(int result, const char **name_p) {
    *name_p = result == HORA_CUDA_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_STANDIN";
    return result == 12345 ? STANDIN_INVALID : HORA_CUDA_SUCCESS;
}

EXPORT int cuGetErrorString(int result, const char **text_p);
int cuGetErrorString(int result, const char **text_p) {
    *text_p = result == HORA_CUDA_OUT_OF_MEMORY ? "out of memory"
              : result == STANDIN_ADDRESS       ? "an illegal memory access was encountered"
                                                : "it failed";
    return result == 12345 ? STANDIN_INVALID : HORA_CUDA_SUCCESS;
}
