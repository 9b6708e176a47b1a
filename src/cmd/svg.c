/* svg.c: the picture of a placement: SVG 1.1, dark on white. Left: how often experts are chosen together, in the order
 * of ranks. Right: load of ranks against mean and cap, and rows per token of each way to place. */
#include "cmd/placed.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 1180,
    HEIGHT = 680,
    CELLS_MAX = 128, /* of the matrix, either way */
    SHADES = 24,
    RANKS_NAMED = 32, /* at most as many ranks get a number on an axis */
    BARS_NUMBERED = 16,
};

typedef struct box {
    double x, y, width, height;
} box;
static const box MATRIX = {80, 90, 500, 500}, LOAD = {690, 90, 460, 200}, ROWS = {790, 380, 280, 210};

#define BLUE "#2b5c8a"
#define ORANGE "#c8641e"
#define GREY "#666666"

/* ---------------------------------------------------------------- elements */

/* anchor: start, middle or end. */
static gr_err put_text(gr_out *o, double x, double y, int size, const char *anchor, const char *text) {
    GR_TRY(gr_out_printf(o, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%d\" text-anchor=\"%s\">", x, y, size, anchor));
    for (const char *c = text; *c; c++) {
        const char *entity = *c == '<' ? "&lt;" : *c == '>' ? "&gt;" : *c == '&' ? "&amp;" : NULL;
        if (entity)
            GR_TRY(gr_out_printf(o, "%s", entity));
        else
            GR_TRY(gr_out_printf(o, "%c", (unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e ? '?' : *c));
    }
    return gr_out_printf(o, "</text>\n");
}

static gr_err put_rect(gr_out *o, box b, const char *fill) {
    return gr_out_printf(o, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>\n", b.x, b.y,
        b.width, b.height, fill);
}

static gr_err put_line(gr_out *o, double x1, double y1, double x2, double y2, const char *style) {
    return gr_out_printf(o, "<line x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\" %s/>\n", x1, y1, x2, y2, style);
}

/* A label of a line across a box, at its right end. */
static gr_err put_level(gr_out *o, box b, double y, const char *color, const char *label) {
    char style[96];
    snprintf(style, sizeof style, "stroke=\"%s\" stroke-dasharray=\"5 3\"", color);
    GR_TRY(put_line(o, b.x, y, b.x + b.width, y, style));
    return put_text(o, b.x + b.width, y - 4, 11, "end", label);
}

/* ---------------------------------------------------------------- the matrix */

typedef struct matrix {
    const gr_placement *p;
    uint32_t n, each; /* cells either way; experts per cell, the last may have fewer */
    double *cell;     /* [n][n] mean cosine of different experts */
    double most;
} matrix;

static double cosine(const gr_placement *p, uint32_t a, uint32_t b) {
    const double aa = p->together[(size_t)a * p->E + a], bb = p->together[(size_t)b * p->E + b];
    return aa > 0 && bb > 0 ? (double)p->together[(size_t)a * p->E + b] / sqrt(aa * bb) : 0;
}

static double mean_cosine(const matrix *m, uint32_t row, uint32_t column) {
    const gr_placement *p = m->p;
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t i = row * m->each; i < (row + 1) * m->each && i < p->E; i++)
        for (uint32_t j = column * m->each; j < (column + 1) * m->each && j < p->E; j++)
            if (i != j) {
                sum += cosine(p, p->expert_at[i], p->expert_at[j]);
                n++;
            }
    return n ? sum / n : 0;
}

static gr_err matrix_open(matrix *m, const gr_placement *p) {
    *m = (matrix){.p = p, .each = (p->E + CELLS_MAX - 1) / CELLS_MAX};
    m->n = (p->E + m->each - 1) / m->each;
    GR_TRY(gr_alloc((void **)&m->cell, (size_t)m->n * m->n, sizeof *m->cell, "picture"));
    for (uint32_t i = 0; i < m->n; i++)
        for (uint32_t j = 0; j < m->n; j++) {
            m->cell[(size_t)i * m->n + j] = mean_cosine(m, i, j);
            m->most = fmax(m->most, m->cell[(size_t)i * m->n + j]);
        }
    return GR_OK;
}

static int shade_of(const matrix *m, double value) {
    return m->most > 0 ? (int)(value / m->most * SHADES + 0.5) : 0;
}

/* White to dark blue. */
static void shade_color(int shade, char text[8]) {
    const double t = (double)shade / SHADES;
    snprintf(text, 8, "#%02x%02x%02x", (unsigned)(255 - 240 * t), (unsigned)(255 - 200 * t), (unsigned)(255 - 135 * t));
}

/* All cells of one shade as one path, in units of cells. */
static gr_err draw_shade(gr_out *o, const matrix *m, int shade) {
    char color[8];
    bool any = false;
    shade_color(shade, color);
    for (uint32_t i = 0; i < m->n; i++)
        for (uint32_t j = 0; j < m->n; j++) {
            if (shade_of(m, m->cell[(size_t)i * m->n + j]) != shade)
                continue;
            if (!any)
                GR_TRY(gr_out_printf(o, "<path fill=\"%s\" d=\"", color));
            any = true;
            GR_TRY(gr_out_printf(o, "M%u %uh1v1h-1z", j, i));
        }
    return any ? gr_out_printf(o, "\"/>\n") : GR_OK;
}

static gr_err draw_borders(gr_out *o, const gr_placement *p) {
    const box b = MATRIX;
    const uint32_t step = (p->R + RANKS_NAMED - 1) / RANKS_NAMED;
    char text[16];
    for (uint32_t r = 0; r <= p->R && p->R <= CELLS_MAX; r++) {
        const double at = (double)r / p->R;
        const char *style = r % p->node_ranks == 0 ? "stroke=\"#000000\" stroke-width=\"1.5\""
                                                   : "stroke=\"" ORANGE "\" stroke-width=\"0.8\"";
        GR_TRY(put_line(o, b.x + at * b.width, b.y, b.x + at * b.width, b.y + b.height, style));
        GR_TRY(put_line(o, b.x, b.y + at * b.height, b.x + b.width, b.y + at * b.height, style));
    }
    for (uint32_t r = 0; r < p->R; r += step) {
        const double middle = (r + 0.5) / p->R;
        snprintf(text, sizeof text, "%" PRIu32, r);
        GR_TRY(put_text(o, b.x - 6, b.y + middle * b.height + 4, 11, "end", text));
        GR_TRY(put_text(o, b.x + middle * b.width, b.y + b.height + 15, 11, "middle", text));
    }
    return GR_OK;
}

static gr_err draw_scale(gr_out *o, const matrix *m) {
    char color[8], text[32];
    const box b = MATRIX;
    const double y = b.y + b.height + 50;
    for (int i = 0; i <= SHADES; i++) {
        shade_color(i, color);
        GR_TRY(put_rect(o, (box){b.x + 6 * i, y, 6, 12}, color));
    }
    GR_TRY(put_text(o, b.x - 6, y + 10, 11, "end", "0"));
    snprintf(text, sizeof text, "%.3g (cosine)", m->most);
    return put_text(o, b.x + 6 * (SHADES + 1) + 6, y + 10, 11, "start", text);
}

static gr_err draw_cells(gr_out *o, const matrix *m) {
    const box b = MATRIX;
    GR_TRY(put_text(o, b.x, b.y - 14, 14, "start", "Experts chosen together, in the order of ranks"));
    GR_TRY(gr_out_printf(
        o, "<g transform=\"translate(%g %g) scale(%g)\" shape-rendering=\"crispEdges\">\n", b.x, b.y, b.width / m->n));
    for (int shade = 1; shade <= SHADES; shade++) /* 0 is the paper */
        GR_TRY(draw_shade(o, m, shade));
    GR_TRY(gr_out_printf(o, "</g>\n"));
    GR_TRY(draw_borders(o, m->p));
    GR_TRY(put_text(o, b.x + b.width / 2, b.y + b.height + 34, 12, "middle", "rank of the expert"));
    return draw_scale(o, m);
}

static gr_err draw_matrix(gr_out *o, const gr_placement *p) {
    matrix m;
    GR_TRY(matrix_open(&m, p));
    gr_err e = draw_cells(o, &m);
    free(m.cell);
    return e;
}

/* ---------------------------------------------------------------- load */

static gr_err draw_load(gr_out *o, const gr_placement *p) {
    const box b = LOAD;
    const uint32_t step = (p->R + RANKS_NAMED - 1) / RANKS_NAMED;
    const double each = b.width / p->R, gap = each > 4 ? 0.15 * each : 0;
    double top = p->method == GR_PLACE_BALANCED ? fmax(1, p->load_max) : 1;
    char text[48];
    for (uint32_t r = 0; r < p->R; r++)
        top = fmax(top, p->rank_load[r]);
    top *= 1.15;
    GR_TRY(put_text(o, b.x, b.y - 14, 14, "start", "Expert pairs of each rank over the mean"));
    for (uint32_t r = 0; r < p->R; r++) {
        const double height = b.height * p->rank_load[r] / top, x = b.x + each * r;
        GR_TRY(put_rect(o, (box){x + gap, b.y + b.height - height, each - 2 * gap, height}, BLUE));
        snprintf(text, sizeof text, "%.2f", p->rank_load[r]);
        if (p->R <= BARS_NUMBERED)
            GR_TRY(put_text(o, x + each / 2, b.y + b.height - height - 4, 11, "middle", text));
        snprintf(text, sizeof text, "%" PRIu32, r);
        if (r % step == 0)
            GR_TRY(put_text(o, x + each / 2, b.y + b.height + 15, 11, "middle", text));
    }
    GR_TRY(put_line(o, b.x, b.y + b.height, b.x + b.width, b.y + b.height, "stroke=\"#000000\""));
    GR_TRY(put_level(o, b, b.y + b.height * (1 - 1 / top), GREY, ""));
    GR_TRY(put_text(o, b.x - 6, b.y + b.height * (1 - 1 / top) + 4, 11, "end", "mean"));
    snprintf(text, sizeof text, "cap %.4g", p->load_max);
    if (p->method == GR_PLACE_BALANCED)
        GR_TRY(put_level(o, b, b.y + b.height * (1 - p->load_max / top), ORANGE, text));
    return put_text(o, b.x + b.width / 2, b.y + b.height + 34, 12, "middle", "rank");
}

/* ---------------------------------------------------------------- rows */

static gr_err draw_rows(gr_out *o, const gr_placement *p) {
    const box b = ROWS;
    const double each = b.height / p->n_score;
    double most = 0;
    char text[64];
    for (int i = 0; i < p->n_score; i++)
        most = fmax(most, p->score[i].rows);
    GR_TRY(put_text(o, b.x - 100, b.y - 14, 14, "start", "Rows that travel per token, over all windows"));
    for (int i = 0; i < p->n_score; i++) {
        const gr_place_score *s = &p->score[i];
        const double y = b.y + each * i, width = most > 0 ? b.width * s->rows / most : 0;
        GR_TRY(put_text(o, b.x - 6, y + each / 2 + 4, 12, "end", s->name));
        GR_TRY(put_rect(o, (box){b.x, y + 0.15 * each, width, 0.7 * each}, i == p->n_score - 1 ? ORANGE : BLUE));
        snprintf(text, sizeof text, "%.3f (load %.2f)", s->rows, s->load);
        GR_TRY(put_text(o, b.x + width + 5, y + each / 2 + 4, 11, "start", text));
    }
    GR_TRY(put_line(o, b.x, b.y, b.x, b.y + b.height, "stroke=\"#000000\""));
    return put_text(o, b.x + b.width / 2, b.y + b.height + 20, 12, "middle", "rows per token");
}

/* ---------------------------------------------------------------- the picture */

static gr_err draw(gr_out *o, const gr_placement *p) {
    char title[160];
    GR_TRY(gr_out_printf(o,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" "
        "height=\"%d\" "
        "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" fill=\"#111111\">\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT));
    GR_TRY(put_rect(o, (box){0, 0, WIDTH, HEIGHT}, "#ffffff"));
    snprintf(title, sizeof title,
        "%" PRIu32 " experts (K = %" PRIu32 ") on %" PRIu32 " ranks (%" PRIu32 " x %" PRIu32 "): %s by %s", p->E, p->K,
        p->R, p->n_node, p->node_ranks, gr_place_method_name(p->method), gr_place_grain_name(p->grain));
    GR_TRY(put_text(o, WIDTH / 2.0, 36, 18, "middle", title));
    GR_TRY(draw_matrix(o, p));
    GR_TRY(draw_load(o, p));
    GR_TRY(draw_rows(o, p));
    return gr_out_printf(o, "</svg>\n");
}

gr_err gr_placed_draw(const gr_placement *p, const char *svg) {
    gr_out *o = NULL;
    GR_TRY(gr_out_open(&o, svg));
    gr_err e = draw(o, p);
    if (!e)
        e = gr_out_commit(o);
    gr_out_close(o);
    return e;
}
