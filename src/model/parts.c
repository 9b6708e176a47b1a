/* Parts of the flat range in the order in which forward needs them and, backwards, gradients of a micro-batch become
 * complete: [0] embedding, [1 + l] layer l, [1 + L] final norm and head. A tied head is of part 0. Both ways they may
 * travel beside the layers that are computed. */
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

static gr_err call_for(gr_part_call *call, void *of, int64_t first, int64_t end) {
    return first < end ? call(of, (gr_share){.first = first, .n = end - first}) : GR_OK;
}

static gr_err call_for_both(const gr_model *m, int part, gr_part_call *call, void *of) {
    GR_TRY(call_for(call, of, dense_first(m, part), dense_first(m, part + 1)));
    return call_for(call, of, experts_first(m, part), experts_first(m, part + 1));
}

static void must_be_language_model(const gr_model *m) {
    GR_ASSERT(m->train && m->trained == GR_TRAINED_ALL && m->config.head == GR_HEAD_TOKENS,
        "parts are those of a whole language model");
}

/* ---------------------------------------------------------------- gradients */

gr_err gr_model_part_done(gr_model *m, int part) {
    return m->done ? call_for_both(m, part, m->done, m->done_of) : GR_OK;
}

void gr_model_gradients_watch(gr_model *m, gr_part_call *done, void *of) {
    if (done)
        must_be_language_model(m);
    m->done = done;
    m->done_of = of;
}

/* ---------------------------------------------------------------- weights */

gr_err gr_model_weights_await(gr_model *m, gr_part_call *gather, void *of) {
    must_be_language_model(m);
    GR_ASSERT(!m->gather, "the weights of the update before are still awaited");
    m->gather = gather;
    m->gather_of = of;
    m->part_due = 0;
    return call_for_both(m, 0, gather, of);
}

/* All that was asked for is there; the part behind it travels beside what is queued now. */
gr_err gr_model_part_need(gr_model *m, int part) {
    if (!m->gather || part < m->part_due)
        return GR_OK;
    GR_ASSERT(part == m->part_due, "part %d is needed before part %d", part, m->part_due);
    GR_TRY(m->comm->join(m->comm));
    if (part == m->config.num_hidden_layers + 1) {
        m->gather = NULL;
        return GR_OK;
    }
    m->part_due = part + 1;
    return call_for_both(m, m->part_due, m->gather, m->gather_of);
}

gr_err gr_model_weights_settle(gr_model *m) {
    while (m->gather)
        GR_TRY(gr_model_part_need(m, m->part_due));
    return GR_OK;
}
