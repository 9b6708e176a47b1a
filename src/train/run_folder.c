/* The run folder: made once, never overwritten. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "grouter/json.h"
#include "internal.h"

extern char **environ;

const char *gr_run_path(const gr_config *config, const char *name, char path[GR_PATH_MAX + 32]) {
    snprintf(path, GR_PATH_MAX + 32, "%s/%s", config->run.dir, name);
    return path;
}

gr_err gr_run_folder_look(const gr_config *config, gr_run_folder folder, gr_run_kind *kind) {
    char path[GR_PATH_MAX + 32];
    *kind = gr_path_exists(config->run.dir) ? GR_RUN_OURS : GR_RUN_ABSENT;
    if (*kind == GR_RUN_ABSENT || folder == GR_RUN_FRESH ||
        gr_path_exists(gr_run_path(config, "config.resolved.json", path)))
        return GR_OK;
    return gr_fail(GR_CONFIG,
        "run.dir: expected a new folder or that of an earlier run, got %s, which has no config.resolved.json; choose "
        "another "
        "run.dir, or use --fresh to rename it aside",
        config->run.dir);
}

static void strip_slashes(char *path) {
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
        path[n - 1] = 0;
}

/* The first folder that must be made for `dir`, or `dir` itself. */
static void first_missing(const char *dir, char path[GR_PATH_MAX]) {
    snprintf(path, GR_PATH_MAX, "%s", dir);
    strip_slashes(path);
    for (char *slash; (slash = strrchr(path, '/')) && slash != path; strip_slashes(path)) {
        *slash = 0;
        if (gr_path_exists(path)) {
            *slash = '/';
            break;
        }
    }
}

static gr_err try_place(const gr_config *config) {
    char path[GR_PATH_MAX], trial[GR_PATH_MAX + 32];
    gr_out *o;
    first_missing(config->run.dir, path);
    snprintf(trial, sizeof trial, "%s.trial", path);
    gr_err e = gr_out_open(&o, trial);
    if (!e)
        e = gr_out_sync(o);
    gr_out_close(o);
    if (e == GR_STORAGE)
        e = gr_fail(e, "run.dir: expected a place where %s can be made, got %s", config->run.dir, gr_error_text());
    return e;
}

gr_err gr_run_folder_lock(const gr_config *config, int *fd) {
    char path[GR_PATH_MAX + 32], holder[320] = "", host[256] = "unknown";
    gr_run_path(config, "lock", path);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (*fd < 0)
        return gr_fail(GR_STORAGE, "%s: expected a file this run can write, got: %s; check run.dir and its permissions",
            path, strerror(errno));
    if (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        ssize_t n = read(*fd, holder, sizeof holder - 1);
        holder[n > 0 ? strcspn(holder, "\n") : 0] = 0;
        close(*fd);
        *fd = -1;
        return gr_fail(GR_CONFIG,
            "run.dir: expected a folder no other run works in, got %s, locked by %s; wait for it or stop it",
            config->run.dir, holder[0] ? holder : "another process");
    }
    gethostname(host, sizeof host - 1);
    int n = snprintf(holder, sizeof holder, "process %ld on %s\n", (long)getpid(), host);
    if (ftruncate(*fd, 0) != 0 || pwrite(*fd, holder, (size_t)n, 0) != n)
        return gr_fail(GR_STORAGE, "%s: writing failed: %s; check the disk of run.dir", path, strerror(errno));
    return GR_OK;
}

/* First free name of dir.old-1, dir.old-2, ... */
static gr_err rename_aside(const char *dir) {
    char aside[GR_PATH_MAX + 32];
    for (int i = 1;; i++) {
        snprintf(aside, sizeof aside, "%s.old-%d", dir, i);
        if (!gr_path_exists(aside))
            break;
    }
    if (rename(dir, aside) != 0)
        return gr_fail(GR_STORAGE, "%s: renaming it to %s failed: %s; rename it yourself or choose another run.dir",
            dir, aside, strerror(errno));
    gr_info("%s existed: renamed to %s", dir, aside);
    return GR_OK;
}

static gr_err lock_earlier_run(const gr_config *config, int *lock) {
    char path[GR_PATH_MAX + 32];
    if (*lock < 0 && gr_path_exists(gr_run_path(config, "config.resolved.json", path)))
        return gr_run_folder_lock(config, lock);
    return GR_OK;
}

gr_err gr_run_folder_claim(const gr_config *config, int *lock) {
    GR_TRY(try_place(config));
    return lock_earlier_run(config, lock);
}

/* What stands there may have come since it was claimed. The lock goes with the folder. */
static gr_err clear_the_way(const gr_config *config, int *lock) {
    GR_TRY(lock_earlier_run(config, lock));
    GR_TRY(rename_aside(config->run.dir));
    if (*lock >= 0)
        close(*lock);
    *lock = -1;
    return GR_OK;
}

static gr_err make_folder(const char *dir) {
    char parent[GR_PATH_MAX];
    snprintf(parent, sizeof parent, "%s", dir);
    strip_slashes(parent);
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent) {
        *slash = 0;
        GR_TRY(gr_folder_make(parent));
    }
    if (mkdir(dir, 0777) == 0)
        return GR_OK;
    if (errno == EEXIST)
        return gr_fail(GR_CONFIG, "run.dir: another process has just made %s; is the same run started twice?", dir);
    return gr_fail(
        GR_STORAGE, "%s: creating the run folder failed: %s; check the folder it is in", dir, strerror(errno));
}

static gr_err write_text(const gr_config *config, const char *name, const char *text) {
    char path[GR_PATH_MAX + 32];
    gr_out *o;
    GR_TRY(gr_out_open(&o, gr_run_path(config, name, path)));
    gr_err e = gr_out_write(o, text, strlen(text));
    if (!e)
        e = gr_out_commit(o);
    gr_out_close(o);
    return e;
}

static gr_err write_config(const gr_config *config) {
    char *text;
    GR_TRY(gr_config_text(config, &text));
    gr_err e = write_text(config, "config.resolved.json", text);
    free(text);
    return e;
}

void gr_cpu_name(char *name, size_t n) {
    snprintf(name, n, "unknown");
    FILE *in = fopen("/proc/cpuinfo", "r");
    char line[512];
    while (in && fgets(line, sizeof line, in)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        snprintf(name, n, "%s", colon + 1 + strspn(colon + 1, " "));
        name[strcspn(name, "\n")] = 0;
        break;
    }
    if (in)
        fclose(in);
}

/* Variables that change how a run behaves; not the launcher's own, which hold addresses and session keys. */
static bool is_recorded(const char *variable) {
    static const char *const heads[] = {"OMP_", "GOMP_", "DNNL_", "ONEDNN_", "OMPI_MCA_btl", "OMPI_MCA_pml",
        "OMPI_MCA_mtl", "OMPI_MCA_coll", "OMPI_MCA_odls", "OMPI_MCA_rmaps", "OMPI_MCA_hwloc", "OMPI_COMM_WORLD_SIZE",
        "SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NTASKS", "NCCL_", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING"};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        if (strncmp(variable, heads[i], strlen(heads[i])) == 0)
            return true;
    return false;
}

static gr_err write_member(gr_out *o, const char *key, const char *value) {
    char *escaped = malloc(6 * strlen(value) + 1);
    if (!escaped)
        return gr_fail(GR_RESOURCE, "environment.json: no memory");
    gr_json_escape(value, escaped);
    gr_err e = gr_out_printf(o, "  \"%s\": \"", key);
    if (!e)
        e = gr_out_write(o, escaped, strlen(escaped));
    if (!e)
        e = gr_out_printf(o, "\",\n");
    free(escaped);
    return e;
}

static gr_err write_variables(gr_out *o) {
    for (char **v = environ; *v; v++) {
        char name[128];
        size_t n = strcspn(*v, "=");
        if (!is_recorded(*v) || n >= sizeof name || !(*v)[n])
            continue;
        memcpy(name, *v, n);
        name[n] = 0;
        GR_TRY(write_member(o, name, *v + n + 1));
    }
    return GR_OK;
}

static gr_err write_facts(gr_out *o, const gr_comm *comm, const gr_backend *backend) {
    char host[256] = "unknown", cpu[256], started[32];
    gethostname(host, sizeof host - 1);
    gr_cpu_name(cpu, sizeof cpu);
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", &utc);
    GR_TRY(gr_out_printf(o, "{\n"));
    GR_TRY(write_member(o, "version", gr_version_text()));
    GR_TRY(write_member(o, "started", started));
    GR_TRY(write_member(o, "host", host));
    GR_TRY(write_member(o, "cpu", cpu));
    GR_TRY(write_member(o, "backend", backend->name));
    GR_TRY(write_member(o, "dtype", gr_dtype_name(backend->dtype)));
    GR_TRY(write_member(o, "backend_library", gr_backend_library()));
    GR_TRY(write_member(o, "comm", comm->name));
    GR_TRY(write_member(o, "comm_library", gr_comm_library()));
    GR_TRY(write_variables(o));
    return gr_out_printf(
        o, "  \"ranks\": %d,\n  \"threads_per_rank\": %d\n}\n", comm->size[GR_WORLD], gr_thread_count());
}

static gr_err write_environment(const gr_config *config, const gr_comm *comm, const gr_backend *backend) {
    char path[GR_PATH_MAX + 32];
    gr_out *o;
    GR_TRY(gr_out_open(&o, gr_run_path(config, "environment.json", path)));
    gr_err e = write_facts(o, comm, backend);
    if (!e)
        e = gr_out_commit(o);
    gr_out_close(o);
    return e;
}

gr_err gr_run_folder_make(const gr_train_options *o, bool goes_on, const gr_backend *backend, int *lock) {
    const gr_config *config = o->config;
    if (!goes_on && gr_path_exists(config->run.dir))
        GR_TRY(clear_the_way(config, lock));
    if (!goes_on)
        GR_TRY(make_folder(config->run.dir));
    if (*lock < 0)
        GR_TRY(gr_run_folder_lock(config, lock));
    GR_TRY(write_config(config));
    return write_environment(config, o->comm, backend);
}
