/* Names in the folder of checkpoints. What does not match exactly is not ours and is never touched. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_parts.h"

enum { STEP_DIGITS = 8, STEP_DIGITS_MAX = 18, RUN_ID_DIGITS = 16 };

/* Reads a step as %08lld writes it; NULL if it is none. */
static const char *step_digits_read(const char *p, int64_t *step) {
    int n = 0;
    *step = 0;
    for (; p[n] >= '0' && p[n] <= '9'; n++) {
        if (n == STEP_DIGITS_MAX)
            return NULL;
        *step = 10 * *step + (p[n] - '0');
    }
    return n < STEP_DIGITS || (n > STEP_DIGITS && p[0] == '0') ? NULL : p + n;
}

bool gr_step_name_read(const char *name, int64_t *step) {
    if (strncmp(name, "step-", 5) != 0)
        return false;
    const char *end = step_digits_read(name + 5, step);
    return end && *end == '\0';
}

bool gr_step_name_is(const char *name) {
    int64_t step;
    return gr_step_name_read(name, &step);
}

bool gr_leftover_name_is(const char *name) {
    int64_t step;
    size_t head = strncmp(name, "tmp-", 4) == 0 ? 4 : strncmp(name, "trash-", 6) == 0 ? 6 : 0;
    const char *end = head ? step_digits_read(name + head, &step) : NULL;
    return end && *end == '.' && strspn(end + 1, "0123456789abcdef") == RUN_ID_DIGITS && !end[1 + RUN_ID_DIGITS];
}

void gr_leftovers_remove(gr_io *io, const char *folder) {
    gr_names names;
    int r = gr_names_list(io, folder, gr_leftover_name_is, &names);
    for (int i = 0; r == 0 && i < names.n; i++) {
        char path[GR_CHECKPOINT_PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", folder, names.name[i]);
        int removed = gr_saved_folder_remove(io, path);
        if (removed < 0)
            gr_warn("leftover of a save stays: %s: %s", path, strerror(-removed));
    }
    free(names.name);
    if (r < 0 && r != -ENOENT)
        gr_warn("leftovers of saves stay: %s: listing failed: %s", folder, strerror(-r));
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x > y ? -1 : x < y;
}

int gr_steps_list(gr_io *io, const char *folder, int64_t **step, int *n) {
    gr_names names;
    *step = NULL;
    *n = 0;
    int r = gr_names_list(io, folder, gr_step_name_is, &names);
    if (r == 0 && names.n) {
        *step = malloc((size_t)names.n * sizeof **step);
        r = *step ? 0 : -ENOMEM;
    }
    for (int i = 0; r == 0 && i < names.n; i++)
        gr_step_name_read(names.name[i], &(*step)[(*n)++]);
    free(names.name);
    if (*n)
        qsort(*step, (size_t)*n, sizeof **step, newest_first);
    return r;
}

void gr_step_path(const char *folder, int64_t step, char *path) {
    snprintf(path, GR_CHECKPOINT_PATH_MAX, "%s/step-%08lld", folder, (long long)step);
}

int gr_saved_file_count(int n_rank, int R_ep) {
    return R_ep + 1 + n_rank;
}

void gr_saved_file_name(int n_rank, int R_ep, int i, char name[CHECKPOINT_NAME_MAX]) {
    if (i < R_ep)
        snprintf(name, CHECKPOINT_NAME_MAX, "model-%d-of-%d.safetensors", i, R_ep);
    else if (i == R_ep)
        snprintf(name, CHECKPOINT_NAME_MAX, "%s", CHECKPOINT_INDEX);
    else
        snprintf(name, CHECKPOINT_NAME_MAX, "optim-%d-of-%d.safetensors", i - R_ep - 1, n_rank);
}
