/* Parts of the flat range in the order in which forward needs them and, backwards, gradients of a micro-batch become
 * complete: [0] embedding, [1 + l] layer l, [1 + L] final norm and head. A tied head is of part 0. */
#include "internal.h"

static int64_t dense_first(const gr_model *m, int part) {
    const int L = m->config.num_hidden_layers;
    if (part == 0)
        return 0;
    return part <= L ? m->layer[part - 1].norm1.offset : part == L + 1 ? m->final_norm.offset : m->params.n_dense;
}

/* Of the part's experts, or of the next part that has any. */
static int64_t experts_first(const gr_model *m, int part) {
    for (int l = part > 0 ? part - 1 : 0; l < m->config.num_hidden_layers; l++)
        if (m->layer[l].expert13 != NONE)
            return m->layer[l].expert13;
    return m->params.n_element;
}

static gr_err tell(const gr_model *m, int64_t first, int64_t end) {
    return first < end ? m->done(m->done_of, (gr_share){.first = first, .n = end - first}) : GR_OK;
}

gr_err gr_model_part_done(gr_model *m, int part) {
    if (!m->done)
        return GR_OK;
    GR_TRY(tell(m, dense_first(m, part), dense_first(m, part + 1)));
    return tell(m, experts_first(m, part), experts_first(m, part + 1));
}

void gr_model_gradients_watch(gr_model *m, gr_gradients_done *done, void *of) {
    GR_ASSERT(!done || (m->train && m->trained == GR_TRAINED_ALL && m->config.head == GR_HEAD_TOKENS),
        "gradients of a whole language model");
    m->done = done;
    m->done_of = of;
}
