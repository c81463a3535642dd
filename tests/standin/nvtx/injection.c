/*
 * A stand-in for a profiler: NVTX loads it by NVTX_INJECTION64_PATH, and it writes down what is pushed
 * and popped. For tests only. One thread.
 */
#include <nvtx3/nvToolsExt.h>

#include <stdio.h>
#include <string.h>

/* "domain hora; push A; pop; " */
extern char standin_nvtx_log[1024];
char        standin_nvtx_log[1024];

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table);

static void note(const char *what, const char *text) {
    size_t len = strlen(standin_nvtx_log);
    snprintf(standin_nvtx_log + len, sizeof(standin_nvtx_log) - len, "%s%s; ", what, text);
}

static nvtxDomainHandle_t domain_create(const char *name) {
    note("domain ", name);
    return (nvtxDomainHandle_t)standin_nvtx_log;
}

static int range_push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t *range) {
    note((void *)domain == (void *)standin_nvtx_log ? "push " : "wrong domain ", range->message.ascii);
    return 0;
}

static int range_pop(nvtxDomainHandle_t domain) {
    (void)domain;
    note("pop", "");
    return 0;
}

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
    const NvtxExportTableCallbacks *callbacks = get_table(NVTX_ETID_CALLBACKS);
    NvtxFunctionTable               table;
    unsigned                        size;
    if (callbacks == NULL ||
        !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) ||
        size <= NVTX_CBID_CORE2_DomainRangePop)
        return 0;
    *table[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)domain_create;
    *table[NVTX_CBID_CORE2_DomainRangePushEx] = (NvtxFunctionPointer)range_push;
    *table[NVTX_CBID_CORE2_DomainRangePop] = (NvtxFunctionPointer)range_pop;
    return 1;
}
