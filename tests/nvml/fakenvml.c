/* A libnvidia-ml.so.1 without hardware, for the real binding (nvidia-ml-py) to load.
 *
 * Its GPUs are the "key=value" lines of the file that FAKE_NVML_STATE names; tests/nvml/double.py writes it and documents
 * the keys. The file is looked at on every call, so hardware changes under a running process by renaming a new file over
 * it. What the file does not say is "Not Supported", as an older driver or a smaller GPU would answer. With
 * FAKE_NVML_CALLS, the name of each function called is appended to that file.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int Return;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15,
    RESET_REQUIRED = 16, LIB_RM_VERSION_MISMATCH = 18, UNKNOWN = 999,
};
enum { MAX_GPUS = 16, MAX_SLICES = 8, MAX_SETS = 64, POLL_US = 100000 };

/* ---- the state file ------------------------------------------------------------------------------------------- */

struct line { char *key, *value; };
static struct {
    struct line *lines; /* sorted by key */
    size_t count;
    char *text;
    struct stat seen;
} state;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards `state` and the handles; never held while hanging */
static int initialized;

static int by_key(const void *a, const void *b) {
    return strcmp(((const struct line *)a)->key, ((const struct line *)b)->key);
}

static void parse(char *text) {
    size_t count = 0, room = 64;
    struct line *lines = malloc(room * sizeof *lines);
    char *rest = NULL;
    for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
        char *equals = strchr(l, '=');
        if (!equals) continue;
        *equals = 0;
        if (count == room) lines = realloc(lines, (room *= 2) * sizeof *lines);
        lines[count++] = (struct line){l, equals + 1};
    }
    qsort(lines, count, sizeof *lines, by_key);
    free(state.lines);
    free(state.text);
    state.lines = lines, state.count = count, state.text = text;
}

/* Read the file anew if it is another one than before. Only under the lock. */
static void refresh(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat now;
    if (!path || stat(path, &now)) return;
    if (state.text && now.st_ino == state.seen.st_ino && now.st_size == state.seen.st_size &&
        now.st_mtim.tv_sec == state.seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == state.seen.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    char *text = calloc(1, (size_t)now.st_size + 1);
    size_t got = fread(text, 1, (size_t)now.st_size, file);
    text[got] = 0;
    fclose(file);
    state.seen = now;
    parse(text);
}

static const char *find(const char *key) {
    struct line wanted = {(char *)key, NULL};
    struct line *line = state.count ? bsearch(&wanted, state.lines, state.count, sizeof wanted, by_key) : NULL;
    return line ? line->value : NULL;
}

/* A copy of a value, for the caller to free; NULL when the file does not say. */
static char *text_of(const char *key) {
    pthread_mutex_lock(&lock);
    const char *value = find(key);
    char *copy = value ? strdup(value) : NULL;
    pthread_mutex_unlock(&lock);
    return copy;
}

static int number_of(const char *key, long long *out) {
    pthread_mutex_lock(&lock);
    const char *value = find(key);
    if (value) *out = strtoll(value, NULL, 0);
    pthread_mutex_unlock(&lock);
    return value != NULL;
}

static Return error_of(const char *key) {
    long long code = SUCCESS;
    number_of(key, &code);
    return (Return)code;
}

static void pass_time(void) {
    usleep(POLL_US);
    pthread_mutex_lock(&lock);
    refresh();
    pthread_mutex_unlock(&lock);
}

/* As a driver that does not come back: for as long as the file says so. */
static void hang_while(const char *key) {
    long long hanging = 0;
    while (number_of(key, &hanging) && hanging) {
        hanging = 0;
        pass_time();
    }
}

/* ---- handles -------------------------------------------------------------------------------------------------- */

/* A handle means one UUID for ever, wherever the file lists it, as NVML's mean one GPU and not one index. */
typedef struct handle { char uuid[96]; } *Device;
static struct handle handles[MAX_GPUS * (MAX_SLICES + 1) * 4];
static size_t handle_count;

struct place { int gpu, slice; }; /* slice -1: a whole GPU */

static void key_of(char *key, size_t size, struct place at, const char *name) {
    if (at.slice < 0) snprintf(key, size, "gpu%d.%s", at.gpu, name);
    else snprintf(key, size, "gpu%d.slice%d.%s", at.gpu, at.slice, name);
}

static int gpu_count(void) {
    const char *count = find("count");
    int n = count ? atoi(count) : 0;
    return n > MAX_GPUS ? MAX_GPUS : n;
}

/* Whole GPUs first: most handles are theirs. */
static int locate(const char *uuid, struct place *at) {
    char key[96];
    for (int slice = -1; slice < MAX_SLICES; slice++)
        for (int gpu = 0; gpu < gpu_count(); gpu++) {
            *at = (struct place){gpu, slice};
            key_of(key, sizeof key, *at, "uuid");
            const char *listed = find(key);
            if (listed && !strcmp(listed, uuid)) return 1;
        }
    return 0;
}

static Device handle_for(const char *uuid) {
    for (size_t i = 0; i < handle_count; i++)
        if (!strcmp(handles[i].uuid, uuid)) return &handles[i];
    if (handle_count == sizeof handles / sizeof *handles) abort();
    Device device = &handles[handle_count++];
    snprintf(device->uuid, sizeof device->uuid, "%s", uuid);
    return device;
}

static void record(const char *function) {
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s\n", function);
    fclose(file);
}

/* What the file says of a call as a whole: hang, or fail. */
static Return check(const char *function) {
    char key[160];
    Return code;
    pthread_mutex_lock(&lock);
    refresh();
    pthread_mutex_unlock(&lock);
    hang_while("hang");
    if ((code = error_of("init_error"))) return code; /* a driver that has gone is gone for each call */
    snprintf(key, sizeof key, "error.%s", function);
    return error_of(key);
}

static Return enter(const char *function) {
    record(function);
    return check(function);
}

/* The same of one device, and where it is now. */
static Return check_device(const char *function, Device device, struct place *at) {
    char key[160], name[128];
    Return code;
    if (!initialized) return UNINITIALIZED;
    if (!device) return INVALID_ARGUMENT;
    pthread_mutex_lock(&lock);
    int found = locate(device->uuid, at);
    pthread_mutex_unlock(&lock);
    if (!found) return GPU_IS_LOST;
    struct place whole = {at->gpu, -1};
    key_of(key, sizeof key, whole, "hang");
    hang_while(key);
    key_of(key, sizeof key, whole, "error");
    if ((code = error_of(key))) return code;
    snprintf(name, sizeof name, "error.%s", function);
    key_of(key, sizeof key, whole, name);
    return error_of(key);
}

static Return enter_device(const char *function, Device device, struct place *at) {
    Return code = enter(function);
    return code ? code : check_device(function, device, at);
}

static Return number(struct place at, const char *name, long long *out) {
    char key[160];
    key_of(key, sizeof key, at, name);
    return number_of(key, out) ? SUCCESS : NOT_SUPPORTED;
}

static Return copy_out(char *key, char *buffer, u32 size) {
    char *value = text_of(key);
    if (!value) return NOT_SUPPORTED;
    Return code = strlen(value) < size ? SUCCESS : INSUFFICIENT_SIZE;
    if (!code) strcpy(buffer, value);
    free(value);
    return code;
}

#define ENTER()                                                                                                        \
    do {                                                                                                               \
        Return code_ = enter(__func__);                                                                                \
        if (code_) return code_;                                                                                       \
        if (!initialized) return UNINITIALIZED;                                                                        \
    } while (0)
/* Leaves where the device is now in `at`. */
#define ENTER_DEVICE(device)                                                                                           \
    struct place at;                                                                                                   \
    do {                                                                                                               \
        Return code_ = enter_device(__func__, device, &at);                                                            \
        if (code_) return code_;                                                                                       \
    } while (0)
/* Most queries are one number that a key holds. */
#define NUMBER_QUERY(function, name)                                                                                   \
    Return function(Device device, u32 *out) {                                                                         \
        ENTER_DEVICE(device);                                                                                          \
        long long value;                                                                                               \
        Return code = number(at, name, &value);                                                                    \
        if (!code) *out = (u32)value;                                                                                  \
        return code;                                                                                                   \
    }

/* ---- the library and the system ------------------------------------------------------------------------------- */

Return nvmlInitWithFlags(u32 flags) {
    (void)flags;
    Return code = enter(__func__);
    if (code) return code;
    initialized++;
    return SUCCESS;
}
Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

Return nvmlShutdown(void) {
    record(__func__);
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(Return code) {
    switch (code) {
    case SUCCESS: return "Success";
    case NOT_SUPPORTED: return "Not Supported";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    default: return "Unknown Error";
    }
}

Return nvmlSystemGetDriverVersion(char *buffer, u32 size) { ENTER(); return copy_out("driver", buffer, size); }

Return nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ENTER();
    long long value;
    if (!number_of("cuda", &value)) return NOT_SUPPORTED;
    *version = (int)value;
    return SUCCESS;
}

Return nvmlDeviceGetCount_v2(u32 *count) {
    ENTER();
    pthread_mutex_lock(&lock);
    *count = (u32)gpu_count();
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

static Return handle_at(struct place at, Device *out) {
    char key[96];
    key_of(key, sizeof key, at, "uuid");
    pthread_mutex_lock(&lock);
    const char *uuid = find(key);
    if (uuid) *out = handle_for(uuid);
    pthread_mutex_unlock(&lock);
    return uuid ? SUCCESS : NOT_FOUND;
}

Return nvmlDeviceGetHandleByIndex_v2(u32 index, Device *out) {
    struct place at;
    ENTER();
    pthread_mutex_lock(&lock);
    int exists = index < (u32)gpu_count();
    pthread_mutex_unlock(&lock);
    if (!exists || handle_at((struct place){(int)index, -1}, out)) return INVALID_ARGUMENT;
    return check_device(__func__, *out, &at);
}

/* ---- one device ----------------------------------------------------------------------------------------------- */

static Return text(struct place at, const char *name, char *buffer, u32 size) {
    char key[160];
    key_of(key, sizeof key, at, name);
    return copy_out(key, buffer, size);
}

Return nvmlDeviceGetName(Device device, char *buffer, u32 size) {
    ENTER_DEVICE(device);
    return text(at, "name", buffer, size);
}
Return nvmlDeviceGetUUID(Device device, char *buffer, u32 size) {
    ENTER_DEVICE(device);
    return text(at, "uuid", buffer, size);
}

NUMBER_QUERY(nvmlDeviceGetArchitecture, "architecture")
NUMBER_QUERY(nvmlDeviceGetMinorNumber, "minor")
NUMBER_QUERY(nvmlDeviceGetPersistenceMode, "persistence")
NUMBER_QUERY(nvmlDeviceGetPowerUsage, "power_mw")
NUMBER_QUERY(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw")
NUMBER_QUERY(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
NUMBER_QUERY(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_max_generation")
NUMBER_QUERY(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
NUMBER_QUERY(nvmlDeviceGetMaxPcieLinkWidth, "pcie_max_width")
NUMBER_QUERY(nvmlDeviceGetGpuInstanceId, "gi")
NUMBER_QUERY(nvmlDeviceGetComputeInstanceId, "ci")

Return nvmlDeviceGetCudaComputeCapability(Device device, int *major, int *minor) {
    ENTER_DEVICE(device);
    char value[16];
    Return code = text(at, "compute_capability", value, sizeof value);
    if (!code && sscanf(value, "%d.%d", major, minor) != 2) code = UNKNOWN;
    return code;
}

struct memory { u64 total, free, used; };
struct memory_v2 { u32 version; u64 total, reserved, free, used; };

static Return memory(struct place at, u64 *total, u64 *reserved, u64 *used) {
    long long values[3] = {0};
    if (number(at, "memory_total", &values[0])) return NOT_SUPPORTED;
    number(at, "memory_reserved", &values[1]);
    number(at, "memory_used", &values[2]);
    *total = (u64)values[0], *reserved = (u64)values[1], *used = (u64)values[2];
    return SUCCESS;
}
Return nvmlDeviceGetMemoryInfo(Device device, struct memory *out) { /* here, "used" includes what is reserved */
    ENTER_DEVICE(device);
    u64 reserved;
    Return code = memory(at, &out->total, &reserved, &out->used);
    if (code) return code;
    out->used += reserved;
    out->free = out->total - out->used;
    return SUCCESS;
}
Return nvmlDeviceGetMemoryInfo_v2(Device device, struct memory_v2 *out) {
    ENTER_DEVICE(device);
    Return code = memory(at, &out->total, &out->reserved, &out->used);
    if (!code) out->free = out->total - out->reserved - out->used;
    return code;
}

struct utilization { u32 gpu, memory; };
Return nvmlDeviceGetUtilizationRates(Device device, struct utilization *out) {
    ENTER_DEVICE(device);
    long long gpu, memory_busy = 0;
    if (number(at, "utilization", &gpu)) return NOT_SUPPORTED;
    number(at, "memory_utilization", &memory_busy);
    *out = (struct utilization){(u32)gpu, (u32)memory_busy};
    return SUCCESS;
}

struct temperature { u32 version; int sensor, celsius; };
Return nvmlDeviceGetTemperatureV(Device device, struct temperature *out) {
    ENTER_DEVICE(device);
    long long value;
    Return code = number(at, "temperature", &value);
    if (!code) out->celsius = (int)value;
    return code;
}
Return nvmlDeviceGetTemperature(Device device, int sensor, u32 *celsius) {
    ENTER_DEVICE(device);
    (void)sensor;
    long long value;
    Return code = number(at, "temperature", &value);
    if (!code) *celsius = (u32)value;
    return code;
}

enum { CLOCK_SM = 1 };
static Return clock_of(struct place at, int type, const char *name, u32 *mhz) {
    long long value;
    if (type != CLOCK_SM || number(at, name, &value)) return NOT_SUPPORTED;
    *mhz = (u32)value;
    return SUCCESS;
}
Return nvmlDeviceGetClockInfo(Device device, int type, u32 *mhz) {
    ENTER_DEVICE(device);
    return clock_of(at, type, "clock_mhz", mhz);
}
Return nvmlDeviceGetMaxClockInfo(Device device, int type, u32 *mhz) {
    ENTER_DEVICE(device);
    return clock_of(at, type, "max_clock_mhz", mhz);
}

static Return reasons(struct place at, u64 *out) {
    long long value;
    Return code = number(at, "throttling", &value);
    if (!code) *out = (u64)value;
    return code;
}
Return nvmlDeviceGetCurrentClocksEventReasons(Device device, u64 *out) {
    ENTER_DEVICE(device);
    return reasons(at, out);
}
Return nvmlDeviceGetCurrentClocksThrottleReasons(Device device, u64 *out) {
    ENTER_DEVICE(device);
    return reasons(at, out);
}

/* ---- errors of memory ----------------------------------------------------------------------------------------- */

Return nvmlDeviceGetEccMode(Device device, u32 *current, u32 *pending) {
    ENTER_DEVICE(device);
    long long on;
    Return code = number(at, "ecc", &on);
    if (!code) *current = *pending = (u32)on;
    return code;
}
enum { UNCORRECTED = 1, VOLATILE = 0 };
Return nvmlDeviceGetTotalEccErrors(Device device, int type, int counter, u64 *out) {
    ENTER_DEVICE(device);
    long long on = 0, value = 0;
    if (number(at, "ecc", &on) || !on) return NOT_SUPPORTED;
    if (type == UNCORRECTED && counter == VOLATILE) number(at, "ecc_uncorrected", &value);
    *out = (u64)value;
    return SUCCESS;
}
Return nvmlDeviceGetRemappedRows(Device device, u32 *correctable, u32 *uncorrectable, u32 *pending, u32 *failed) {
    ENTER_DEVICE(device);
    long long value;
    if (number(at, "rows_remap_pending", &value)) return NOT_SUPPORTED;
    *pending = (u32)value;
    value = 0;
    number(at, "rows_remap_failed", &value);
    *failed = (u32)value;
    *correctable = 0;
    *uncorrectable = *pending || *failed;
    return SUCCESS;
}

/* ---- processes ------------------------------------------------------------------------------------------------ */

struct process { u32 pid; u64 memory; u32 gi, ci; };

static Return processes(struct place at, const char *name, u32 *count, struct process *out) {
    char key[160], *list, *item, *rest;
    u32 found = 0, room = *count;
    key_of(key, sizeof key, at, name);
    list = text_of(key);
    if (!list) return NOT_SUPPORTED;
    for (item = strtok_r(list, ",", &rest); item; item = strtok_r(NULL, ",", &rest), found++) {
        if (!out || found >= room) continue;
        u64 bytes;
        out[found] = (struct process){.pid = (u32)atoi(item), .memory = ~0ULL, .gi = ~0U, .ci = ~0U};
        if (sscanf(item, "%*u:%llu", &bytes) == 1) out[found].memory = bytes; /* "77:na": the driver cannot say */
    }
    free(list);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(Device device, u32 *count, struct process *out) {
    ENTER_DEVICE(device);
    return processes(at, "processes", count, out);
}
Return nvmlDeviceGetComputeRunningProcesses_v2(Device device, u32 *count, struct process *out) {
    ENTER_DEVICE(device);
    return processes(at, "processes", count, out);
}
Return nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, u32 *count, struct process *out) {
    ENTER_DEVICE(device);
    return processes(at, "graphics_processes", count, out);
}
Return nvmlDeviceGetMPSComputeRunningProcesses_v3(Device device, u32 *count, struct process *out) {
    ENTER_DEVICE(device);
    return processes(at, "mps_processes", count, out);
}

/* ---- slices --------------------------------------------------------------------------------------------------- */

Return nvmlDeviceGetMigMode(Device device, u32 *current, u32 *pending) {
    ENTER_DEVICE(device);
    long long on;
    Return code = number(at, "mig", &on);
    if (!code) *current = *pending = (u32)on;
    return code;
}
Return nvmlDeviceGetMaxMigDeviceCount(Device device, u32 *count) {
    ENTER_DEVICE(device);
    long long on;
    *count = number(at, "mig", &on) ? 0 : 7;
    return SUCCESS;
}
Return nvmlDeviceGetMigDeviceHandleByIndex(Device device, u32 index, Device *out) {
    ENTER_DEVICE(device);
    long long on = 0;
    if (number(at, "mig", &on) || !on) return NOT_SUPPORTED;
    return index < MAX_SLICES ? handle_at((struct place){at.gpu, (int)index}, out) : INVALID_ARGUMENT;
}
Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device slice, Device *out) {
    ENTER_DEVICE(slice);
    return at.slice < 0 ? INVALID_ARGUMENT : handle_at((struct place){at.gpu, -1}, out);
}

struct attributes { u32 multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices; u64 memory_mb; };
Return nvmlDeviceGetAttributes_v2(Device slice, struct attributes *out) {
    ENTER_DEVICE(slice);
    long long gpu_slices, compute_slices, bytes;
    if (number(at, "gpu_slices", &gpu_slices) || number(at, "compute_slices", &compute_slices) ||
        number(at, "memory_total", &bytes))
        return NOT_SUPPORTED;
    *out = (struct attributes){.gpu_slices = (u32)gpu_slices, .compute_slices = (u32)compute_slices,
                               .memory_mb = (u64)bytes >> 20};
    return SUCCESS;
}

/* ---- topology ------------------------------------------------------------------------------------------------- */

struct pci { char legacy[16]; u32 domain, bus, device, id, subsystem; char address[32]; };
static Return pci_of(int gpu, struct pci *out) {
    char key[96], address[32];
    u32 function;
    key_of(key, sizeof key, (struct place){gpu, -1}, "pci");
    Return code = copy_out(key, address, sizeof address);
    if (code) return code;
    memset(out, 0, sizeof *out);
    if (sscanf(address, "%x:%x:%x.%x", &out->domain, &out->bus, &out->device, &function) != 4) return UNKNOWN;
    out->id = 0x10de;
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff, out->device & 0xff);
    snprintf(out->address, sizeof out->address, "%08X:%02X:%02X.0", out->domain, out->bus & 0xff, out->device & 0xff);
    return SUCCESS;
}
Return nvmlDeviceGetPciInfo_v3(Device device, struct pci *out) { ENTER_DEVICE(device); return pci_of(at.gpu, out); }

Return nvmlDeviceGetTopologyCommonAncestor(Device a, Device b, int *level) {
    char key[64];
    long long value;
    struct place near, far;
    Return code = enter_device(__func__, a, &near);
    if (!code) code = check_device(__func__, b, &far);
    if (code) return code;
    int low = near.gpu < far.gpu ? near.gpu : far.gpu, high = near.gpu < far.gpu ? far.gpu : near.gpu;
    snprintf(key, sizeof key, "topology.%d.%d", low, high);
    if (!number_of(key, &value) && !number_of("topology", &value)) return NOT_SUPPORTED;
    *level = (int)value;
    return SUCCESS;
}

Return nvmlDeviceGetMemoryAffinity(Device device, u32 size, u64 *nodes, u32 scope) {
    ENTER_DEVICE(device);
    (void)scope;
    long long node;
    if (number(at, "numa_node", &node)) return NOT_SUPPORTED;
    if (size <= (u32)node / 64) return INSUFFICIENT_SIZE;
    memset(nodes, 0, size * sizeof *nodes);
    nodes[node / 64] = 1ULL << (node % 64);
    return SUCCESS;
}

/* "switch*18", "gpu1*4,gpu2*4,off*2": what each NVLink leads to. Puts the far end of one link into `end`. */
static Return link_end(struct place at, u32 link, char *end, size_t size, u32 *total) {
    char key[96], *rest = NULL;
    u32 first = 0;
    Return code = INVALID_ARGUMENT;
    at.slice = -1;
    key_of(key, sizeof key, at, "nvlink");
    char *list = text_of(key);
    if (!list) return NOT_SUPPORTED;
    for (char *item = strtok_r(list, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        char *times = strchr(item, '*');
        u32 count = times ? (u32)atoi(times + 1) : 1;
        if (times) *times = 0;
        if (link >= first && link < first + count) snprintf(end, size, "%s", item), code = SUCCESS;
        first += count;
    }
    free(list);
    *total = first;
    return code;
}
Return nvmlDeviceGetNvLinkState(Device device, u32 link, u32 *active) {
    ENTER_DEVICE(device);
    char end[16];
    u32 total;
    Return code = link_end(at, link, end, sizeof end, &total);
    if (!code) *active = strcmp(end, "off") != 0;
    return code;
}
enum { END_GPU = 0, END_SWITCH = 2, END_UNKNOWN = 0xff };
Return nvmlDeviceGetNvLinkRemoteDeviceType(Device device, u32 link, u32 *type) {
    ENTER_DEVICE(device);
    char end[16];
    u32 total;
    Return code = link_end(at, link, end, sizeof end, &total);
    if (!code) *type = !strcmp(end, "switch") ? END_SWITCH : !strncmp(end, "gpu", 3) ? END_GPU : END_UNKNOWN;
    return code;
}
Return nvmlDeviceGetNvLinkRemotePciInfo_v2(Device device, u32 link, struct pci *out) {
    ENTER_DEVICE(device);
    char end[16];
    u32 total;
    Return code = link_end(at, link, end, sizeof end, &total);
    if (code) return code;
    return strncmp(end, "gpu", 3) ? NOT_SUPPORTED : pci_of(atoi(end + 3), out);
}

struct field { u32 id, scope; long long timestamp, latency; int type; Return code; union { u32 number; u64 wide; } value; };
enum { FIELD_NVLINK_COUNT = 91 };
Return nvmlDeviceGetFieldValues(Device device, int count, struct field *fields) {
    ENTER_DEVICE(device);
    for (int i = 0; i < count; i++) {
        char end[16];
        u32 total = 0;
        fields[i].code = NOT_SUPPORTED;
        if (fields[i].id != FIELD_NVLINK_COUNT || link_end(at, 0, end, sizeof end, &total) == NOT_SUPPORTED) continue;
        fields[i].type = 1; /* unsigned int */
        fields[i].value.number = total;
        fields[i].code = SUCCESS;
    }
    return SUCCESS;
}

struct fabric_v2 { u32 version; unsigned char cluster[16]; Return status; u32 clique; unsigned char state; u32 health; };
Return nvmlDeviceGetGpuFabricInfoV(Device device, struct fabric_v2 *out) {
    ENTER_DEVICE(device);
    long long value;
    if (number(at, "fabric_state", &value)) return NOT_SUPPORTED;
    out->state = (unsigned char)value;
    out->status = SUCCESS;
    return SUCCESS;
}

/* ---- events --------------------------------------------------------------------------------------------------- */

/* "events" is a list of "sequence:gpu:type:data" that only grows; a set sees what came after its registration. */
typedef struct set { u32 gpus; u64 types[MAX_GPUS]; long long seen; } *Set;
struct event { Device device; u64 type, data; u32 gi, ci; };

static int next_event(Set set, struct event *out) {
    char *list = text_of("events"), *rest = NULL;
    int found = 0;
    for (char *item = list ? strtok_r(list, ",", &rest) : NULL; item && !found; item = strtok_r(NULL, ",", &rest)) {
        long long sequence;
        int gpu;
        u64 type, data;
        if (sscanf(item, "%lld:%d:%llu:%llu", &sequence, &gpu, &type, &data) != 4 || sequence <= set->seen) continue;
        set->seen = sequence;
        if (gpu < 0 || gpu >= MAX_GPUS || !(set->gpus >> gpu & 1) || !(set->types[gpu] & type)) continue;
        *out = (struct event){.type = type, .data = data, .gi = ~0U, .ci = ~0U};
        found = !handle_at((struct place){gpu, -1}, &out->device);
    }
    free(list);
    return found;
}

static long long last_sequence(void) {
    char *list = text_of("events"), *comma = list ? strrchr(list, ',') : NULL;
    long long last = list ? atoll(comma ? comma + 1 : list) : 0;
    free(list);
    return last;
}

Return nvmlEventSetCreate(Set *out) {
    ENTER();
    *out = calloc(1, sizeof **out);
    (*out)->seen = last_sequence();
    return SUCCESS;
}
Return nvmlEventSetFree(Set set) { free(set); return SUCCESS; }

Return nvmlDeviceGetSupportedEventTypes(Device device, u64 *types) {
    ENTER_DEVICE(device);
    long long value;
    Return code = number(at, "event_types", &value);
    if (!code) *types = (u64)value;
    return code;
}
Return nvmlDeviceRegisterEvents(Device device, u64 types, Set set) {
    ENTER_DEVICE(device);
    long long supported;
    if (at.slice >= 0 || number(at, "event_types", &supported)) return NOT_SUPPORTED;
    if (types & ~(u64)supported) return NOT_SUPPORTED;
    pthread_mutex_lock(&lock);
    set->gpus |= 1U << at.gpu;
    set->types[at.gpu] |= types;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
Return nvmlEventSetWait_v2(Set set, struct event *out, u32 timeout_ms) {
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    ENTER();
    for (;;) {
        Return code = check(__func__);
        if (code) return code;
        if (next_event(set, out)) return SUCCESS;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 >= timeout_ms) return TIMEOUT;
        pass_time();
    }
}
