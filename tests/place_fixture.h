/* place_fixture.h: route tables with structure: windows have topics, topics prefer experts, and the experts of a token
 * are of a kind. Shared by the tests of placement and routes_tool.c. */
#ifndef GROUTER_PLACE_FIXTURE_H
#define GROUTER_PLACE_FIXTURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grouter/routes.h"

typedef struct topic_shape {
    uint32_t E, K, T;
    uint64_t n_window, seed;
    uint32_t n_topic;
    double hot; /* chance of a token to have expert 0 whatever its topic */
} topic_shape;

static inline uint64_t topic_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static inline double topic_uniform(uint64_t *state) {
    return (double)(topic_random(state) >> 11) * 0x1p-53;
}

static inline bool topic_has(const uint16_t *ids, uint32_t n, uint32_t e) {
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == e)
            return true;
    return false;
}

static inline void topic_insert(uint16_t *ids, uint32_t n, uint32_t e) {
    uint32_t i = n;
    for (; i > 0 && ids[i - 1] > e; i--)
        ids[i] = ids[i - 1];
    ids[i] = (uint16_t)e;
}

/* Experts lie on a circle, circle[E], in an order that no id gives away; a topic is an arc of it, and the first topics
 * are the most frequent. */
static inline void topic_window(const topic_shape *s, const uint16_t *circle, uint64_t w, uint16_t *ids, float *gates) {
    uint64_t state = s->seed * 1000003 + w * 7919;
    topic_random(&state);
    const double u = topic_uniform(&state);
    const uint32_t topic = (uint32_t)(u * u * s->n_topic);
    const double centre = (double)gr_bijection(s->seed + 5, s->n_topic, topic) / s->n_topic;
    for (uint32_t t = 0; t < s->T; t++, ids += s->K, gates += s->K) {
        const double about = centre + 0.35 * (topic_uniform(&state) * topic_uniform(&state) - 0.25);
        uint32_t n = 0;
        if (s->hot > 0 && topic_uniform(&state) < s->hot)
            ids[n++] = 0;
        for (double reach = 0.1; n < s->K; reach += 0.02) {
            const double at = about + reach * (topic_uniform(&state) - 0.5) + 2;
            const uint32_t e = circle[(uint32_t)(at * s->E) % s->E];
            if (!topic_has(ids, n, e))
                topic_insert(ids, n++, e);
        }
        for (uint32_t k = 0; k < s->K; k++)
            gates[k] = 1.0f;
    }
}

static inline gr_routes_info topic_info(const topic_shape *s) {
    return (gr_routes_info){.E = s->E,
        .K = s->K,
        .T = s->T,
        .scale = (float)s->K,
        .n_window = s->n_window,
        .n_token = s->n_window * s->T + 1,
        .router = {.lo = 5, .hi = 6},
        .provenance = "made up topics"};
}

static inline gr_err topic_write(gr_routes_writer *writer, const topic_shape *s) {
    const size_t n_pair = (size_t)s->T * s->K;
    uint16_t *ids = malloc(n_pair * sizeof *ids), *circle = malloc(s->E * sizeof *circle);
    float *gates = malloc(n_pair * sizeof *gates);
    uint32_t *tokens = calloc((size_t)s->T + 1, sizeof *tokens);
    gr_err e = ids && circle && gates && tokens ? GR_OK : GR_RESOURCE;
    for (uint32_t i = 0; i < s->E && !e; i++)
        circle[i] = (uint16_t)gr_bijection(s->seed + 77, s->E, i);
    for (uint64_t w = 0; w < s->n_window && !e; w++) {
        tokens[0] = (uint32_t)w;
        topic_window(s, circle, w, ids, gates);
        e = gr_routes_writer_window(writer, w, tokens, ids, gates);
    }
    free(tokens);
    free(gates);
    free(circle);
    free(ids);
    return e;
}

static inline gr_err topic_table(const char *path, const topic_shape *s) {
    gr_routes_writer *writer = NULL;
    const gr_routes_info info = topic_info(s);
    GR_TRY(gr_routes_writer_open(&writer, path, &info));
    gr_err e = topic_write(writer, s);
    if (!e)
        e = gr_routes_writer_commit(writer);
    gr_routes_writer_close(writer);
    return e;
}

#endif
