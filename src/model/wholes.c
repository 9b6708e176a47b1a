/* The tensors of the whole model, whatever part of them this rank holds: what files name and order. */
#include <stdlib.h>
#include <string.h>

#include "grouter/model.h"

static uint32_t tensors_of(const gr_params *p, const gr_param *param) {
    return param->owner == GR_WORLD ? 1 : p->map->E;
}

gr_err gr_wholes_make(const gr_params *p, gr_whole **list, int *n) {
    size_t count = 0;
    for (int i = 0; i < p->n; i++)
        count += tensors_of(p, &p->list[i]);
    void *memory;
    GR_TRY(gr_alloc(&memory, count, sizeof **list, "tensor names"));
    *list = memory;
    *n = 0;
    for (int i = 0; i < p->n; i++)
        for (uint32_t e = 0; e < tensors_of(p, &p->list[i]); e++) {
            gr_whole *w = &(*list)[(*n)++];
            w->param = &p->list[i];
            w->expert = e;
            if (w->param->owner == GR_WORLD)
                snprintf(w->name, sizeof w->name, "%s", w->param->name);
            else
                snprintf(w->name, sizeof w->name, w->param->name, (unsigned)e);
        }
    return GR_OK;
}

static int name_compare(const void *a, const void *b) {
    return strcmp(((const gr_whole *)a)->name, ((const gr_whole *)b)->name);
}

void gr_wholes_sort(gr_whole *list, int n) {
    qsort(list, (size_t)n, sizeof *list, name_compare);
}

const gr_whole *gr_wholes_find(const gr_whole *sorted, int n, const char *name) {
    gr_whole key;
    size_t length = strlen(name);
    if (length >= sizeof key.name)
        return NULL;
    memcpy(key.name, name, length + 1);
    return bsearch(&key, sorted, (size_t)n, sizeof *sorted, name_compare);
}

int64_t gr_whole_offset(const gr_params *p, const gr_whole *w) {
    if (w->param->owner == GR_WORLD)
        return w->param->offset;
    if (p->map->rank_of[w->expert] != p->ep_rank)
        return -1;
    return w->param->offset + p->map->slot_of[w->expert] * w->param->stride;
}
