/* What the machine has: memory that can still be had, by the kernel's and the control groups' account. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "grouter/base.h"

enum { TEXT_MAX = 16384, PATH_MAX_BYTES = 4096 };

/* A small file of the kernel's, which has no size, as text; false if it cannot be read. */
static bool read_text(const char *path, char text[TEXT_MAX]) {
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    size_t n = fread(text, 1, TEXT_MAX - 1, f);
    text[n] = '\0';
    fclose(f);
    return n > 0;
}

/* The number after `key` at the beginning of a line; 0 if there is none. */
static uint64_t number_after(const char *text, const char *key) {
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, n) == 0)
            return strtoull(line + n, NULL, 10);
    }
    return 0;
}

/* ---------------------------------------------------------------- control groups */

typedef struct cgroup_files {
    const char *mount; /* below root */
    const char *limit, *usage;
    const char *reclaimable[2]; /* keys of memory.stat: file pages that are given back before anyone is killed */
} cgroup_files;

static const cgroup_files versions[] = {
    {"/sys/fs/cgroup", "memory.max", "memory.current", {"inactive_file ", "active_file "}},
    {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        {"total_inactive_file ", "total_active_file "}},
};

static bool read_in(const char *folder, const char *name, char text[TEXT_MAX]) {
    char path[PATH_MAX_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return read_text(path, text);
}

/* Bytes left below the limit of one group; UINT64_MAX without one. */
static uint64_t room_of_group(const cgroup_files *v, const char *folder) {
    char text[TEXT_MAX];
    if (!read_in(folder, v->limit, text) || strncmp(text, "max", 3) == 0)
        return UINT64_MAX;
    uint64_t limit = strtoull(text, NULL, 10), usage, reclaimable = 0;
    if (!read_in(folder, v->usage, text))
        return UINT64_MAX;
    usage = strtoull(text, NULL, 10);
    if (read_in(folder, "memory.stat", text))
        reclaimable = number_after(text, v->reclaimable[0]) + number_after(text, v->reclaimable[1]);
    usage -= reclaimable < usage ? reclaimable : usage;
    return limit > usage ? limit - usage : 0;
}

/* The group and all above it, as far as they are mounted: the tightest holds. */
static uint64_t room_of_groups(const cgroup_files *v, const char *root, const char *group) {
    char folder[PATH_MAX_BYTES];
    int n = snprintf(folder, sizeof folder, "%s%s%s", root, v->mount, group);
    if (n < 0 || (size_t)n >= sizeof folder)
        return UINT64_MAX;
    uint64_t room = UINT64_MAX;
    size_t top = strlen(root) + strlen(v->mount);
    for (;;) {
        uint64_t here = room_of_group(v, folder);
        room = here < room ? here : room;
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= top || !slash || (size_t)(slash - folder) < top)
            return room;
        *slash = '\0';
    }
}

/* A line of /proc/self/cgroup is id:controllers:path; version 2 has no controllers. */
static uint64_t cgroup_room(const char *root) {
    char path[PATH_MAX_BYTES], text[TEXT_MAX], *rest = text, *line;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (!read_text(path, text))
        return UINT64_MAX;
    uint64_t room = UINT64_MAX;
    while ((line = strsep(&rest, "\n"))) {
        (void)strsep(&line, ":");
        char *controllers = line ? strsep(&line, ":") : NULL;
        bool second = controllers && *controllers == '\0';
        if (!line || (!second && strcmp(controllers, "memory") != 0))
            continue;
        uint64_t here = room_of_groups(&versions[!second], root, line);
        room = here < room ? here : room;
    }
    return room;
}

/* ---------------------------------------------------------------- this machine */

static uint64_t process_room(void) {
    struct rlimit limit;
    char text[TEXT_MAX];
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY || !read_text("/proc/self/status", text))
        return UINT64_MAX;
    uint64_t mapped = number_after(text, "VmSize:") * 1024;
    return limit.rlim_cur > mapped ? limit.rlim_cur - mapped : 0;
}

gr_memory_room gr_memory_room_get(const char *root) {
    char path[PATH_MAX_BYTES], text[TEXT_MAX];
    gr_memory_room room = {.host = UINT64_MAX, .limit = "MemAvailable", .process = process_room()};
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    uint64_t available = read_text(path, text) ? number_after(text, "MemAvailable:") * 1024 : 0;
    if (available)
        room.host = available;
    uint64_t group = cgroup_room(root);
    if (group < room.host) {
        room.host = group;
        room.limit = "cgroup limit";
    }
    return room;
}

uint64_t gr_memory_resident(void) {
    char text[TEXT_MAX];
    if (!read_text("/proc/self/status", text))
        return 0;
    return (number_after(text, "RssAnon:") + number_after(text, "RssShmem:")) * 1024;
}

uint64_t gr_disk_room(const char *path) {
    char at[PATH_MAX_BYTES];
    struct statvfs s;
    snprintf(at, sizeof at, "%s", path);
    while (statvfs(at, &s)) { /* the nearest folder above that exists */
        char *slash = strrchr(at, '/');
        if (!slash && strcmp(at, ".") == 0)
            return UINT64_MAX;
        if (!slash)
            snprintf(at, sizeof at, ".");
        else if (slash == at && at[1])
            at[1] = '\0';
        else
            *slash = '\0';
    }
    uint64_t n_byte;
    if (s.f_blocks == 0 || __builtin_mul_overflow((uint64_t)s.f_bavail, (uint64_t)s.f_frsize, &n_byte))
        return UINT64_MAX; /* file systems without an end */
    return n_byte;
}

uint64_t gr_host_id(void) {
    char name[TEXT_MAX + 256] = "";
    if (!read_text("/proc/sys/kernel/random/boot_id", name))
        name[0] = '\0';
    size_t n = strlen(name);
    (void)gethostname(name + n, 255);
    return gr_hash64(name, strlen(name));
}
