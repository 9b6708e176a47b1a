/* tokens.c: the command that makes token files from text, JSONL or nothing (synthetic). */
#include "cmd/cmd.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/text.h"
#include "grouter/data.h"

#define CHUNK 4096 /* ids handed to the writer at a time */

static const char help[] =
    "usage: grouter-train tokens --out PREFIX [options] INPUT...\n"
    "       grouter-train tokens --out PREFIX --synthetic N --vocab V [options]\n"
    "\n"
    "Makes a token file (PREFIX.bin and PREFIX.idx, as Megatron reads them) with the byte-level vocabulary: ids 0 to\n"
    "255 are the bytes of UTF-8 text, 256 ends each document. The documents of all inputs are pooled and shuffled;\n"
    "documents of white space only are left out. An existing token file is replaced once the new one is complete.\n"
    "\n"
    "Inputs:\n"
    "  *.jsonl            one JSON object a line; its member \"text\" is a document\n"
    "  any other file     UTF-8 text; separator lines split it into documents\n"
    "\n"
    "Options:\n"
    "  --out PREFIX       where to write; folders are made\n"
    "  --separator TEXT   the line between two documents (default <|endoftext|>)\n"
    "  --json-key KEY     all inputs are JSONL and KEY holds the text\n"
    "  --valid FRACTION   hold this share of the documents out: writes PREFIX-train and PREFIX-valid (each at least\n"
    "                     one document) instead of PREFIX\n"
    "  --seed S           of the shuffle, the split and the synthetic tokens (default 1234)\n"
    "  --no-shuffle       keep the documents in input order\n"
    "  --synthetic N      no inputs: N random tokens, id k about as frequent as 1/(k+1), in documents of 32 to 2048\n"
    "  --vocab V          vocabulary of the synthetic tokens; id V-1 ends a document\n"
    "\n"
    "Example:\n"
    "  grouter-train tokens --out data/books --valid 0.02 books/*.txt\n";

typedef struct request {
    const char *out, *separator, *json_key;
    const char **input;
    int n_input;
    uint64_t seed, n_synthetic;
    uint32_t n_vocab;
    double valid; /* 0: no split */
    bool shuffle;
} request;

/* Where documents come from: `texts`, or random numbers when n_synthetic is not 0. */
typedef struct source {
    const request *request;
    gr_texts texts;
    uint64_t n_document, n_work; /* n_work: text bytes or synthetic tokens, for progress */
    uint64_t n_done;
} source;

typedef struct output {
    char *prefix;
    gr_tokens_writer *writer;
    uint64_t n_document, n_token;
} output;

/* ---------------------------------------------------------------- arguments */

static gr_err inputs_check(const request *r, bool has_vocab) {
    bool synthetic = r->n_synthetic != 0;
    if (!r->out || !r->out[0])
        return gr_fail(GR_USAGE, "tokens: expected --out PREFIX, got none; see grouter-train tokens --help");
    if (r->out[strlen(r->out) - 1] == '/')
        return gr_fail(
            GR_USAGE, "--out: expected a prefix of file names, got the folder %s; write %stext, say", r->out, r->out);
    if (!synthetic && has_vocab)
        return gr_fail(
            GR_USAGE, "--vocab: expected only with --synthetic; text is always made with the byte vocabulary");
    if (!synthetic && r->n_input == 0)
        return gr_fail(
            GR_USAGE, "tokens: expected input files or --synthetic N, got none; see grouter-train tokens --help");
    if (synthetic && !has_vocab)
        return gr_fail(GR_USAGE, "--synthetic: expected --vocab V with it, got none");
    if (synthetic && (r->n_input || r->separator || r->json_key || !r->shuffle))
        return gr_fail(GR_USAGE, "--synthetic: expected no inputs, --separator, --json-key or --no-shuffle with it");
    if (r->separator && (!r->separator[0] || strchr(r->separator, '\n')))
        return gr_fail(GR_USAGE, "--separator: expected the text of one line, got %s",
            r->separator[0] ? "several lines" : "an empty text");
    return GR_OK;
}

static gr_err numbers_parse(request *r, const char *seed, const char *valid, const char *synthetic, const char *vocab) {
    uint64_t n_vocab = GR_BYTE_VOCAB;
    r->seed = 1234;
    if (seed)
        GR_TRY(gr_option_u64("--seed", seed, 0, UINT64_MAX, &r->seed));
    if (synthetic)
        GR_TRY(gr_option_u64("--synthetic", synthetic, 1, UINT64_C(1) << 48, &r->n_synthetic));
    if (vocab)
        GR_TRY(gr_option_u64("--vocab", vocab, 2, INT32_MAX, &n_vocab));
    r->n_vocab = (uint32_t)n_vocab;
    if (valid) {
        GR_TRY(gr_option_f64("--valid", valid, 0, 1, &r->valid));
        if (!(r->valid > 0 && r->valid < 1))
            return gr_fail(
                GR_USAGE, "--valid: expected a fraction between 0 and 1, got %s; leave it out for no split", valid);
    }
    return GR_OK;
}

/* r->input has room for argc entries. */
static gr_err request_parse(request *r, int argc, char **argv) {
    const char *seed = NULL, *valid = NULL, *synthetic = NULL, *vocab = NULL;
    int n_no_shuffle = 0;
    const gr_option options[] = {
        {"--out", &r->out, 1, NULL},
        {"--separator", &r->separator, 1, NULL},
        {"--json-key", &r->json_key, 1, NULL},
        {"--valid", &valid, 1, NULL},
        {"--seed", &seed, 1, NULL},
        {"--no-shuffle", NULL, 0, &n_no_shuffle},
        {"--synthetic", &synthetic, 1, NULL},
        {"--vocab", &vocab, 1, NULL},
    };
    GR_TRY(gr_options_parse(argc, argv, options, sizeof options / sizeof options[0], r->input, argc, &r->n_input));
    r->shuffle = n_no_shuffle == 0;
    GR_TRY(numbers_parse(r, seed, valid, synthetic, vocab));
    GR_TRY(inputs_check(r, vocab != NULL));
    if (!r->separator)
        r->separator = "<|endoftext|>";
    return GR_OK;
}

/* ---------------------------------------------------------------- documents */

/* Uniform in [0,1). */
static double uniform(uint64_t seed, const char *stream, uint64_t i) {
    return (double)(gr_random_u64(seed, gr_stream_id(stream), i) >> 11) * 0x1p-53;
}

/* Tokens of a synthetic document, its end included: 32 to 2048, as many of each power of two; the last is cut. */
static uint64_t synthetic_length(const request *r, uint64_t document, uint64_t first) {
    uint64_t n = (uint64_t)(32 * exp2(6 * uniform(r->seed, "synthetic length", document)));
    return n < r->n_synthetic - first ? n : r->n_synthetic - first;
}

/* Density 1/(x log V) on [1,V): Zipf's law with exponent 1. */
static uint32_t synthetic_id(const request *r, uint64_t position) {
    double x = exp(log((double)r->n_vocab) * uniform(r->seed, "synthetic token", position));
    uint32_t id = (uint32_t)x - 1;
    return id < r->n_vocab - 1 ? id : r->n_vocab - 2; /* rounding up to V at the very end */
}

static gr_err source_open(source *s, const request *r) {
    *s = (source){.request = r};
    if (r->n_synthetic == 0) {
        GR_TRY(gr_texts_open(&s->texts, r->input, r->n_input, r->separator, r->json_key));
        s->n_document = s->texts.n_document;
        s->n_work = s->texts.n_byte;
        return GR_OK;
    }
    for (uint64_t first = 0; first < r->n_synthetic; s->n_document++)
        first += synthetic_length(r, s->n_document, first);
    s->n_work = r->n_synthetic;
    return GR_OK;
}

static gr_err synthetic_write(source *s, uint64_t document, gr_tokens_writer *w, uint64_t *n_token) {
    const request *r = s->request;
    uint32_t ids[CHUNK];
    uint64_t n = synthetic_length(r, document, s->n_done);
    for (uint64_t i = 0; i + 1 < n; i++)
        ids[i] = synthetic_id(r, s->n_done + i);
    ids[n - 1] = r->n_vocab - 1;
    s->n_done += n;
    *n_token = n;
    return gr_tokens_writer_document(w, ids, (size_t)n);
}

static gr_err bytes_write(const gr_text *text, gr_tokens_writer *w) {
    static const uint32_t end = GR_BYTE_EOD;
    uint32_t ids[CHUNK];
    for (size_t i = 0; i < text->n; i += CHUNK) {
        size_t n = text->n - i < CHUNK ? text->n - i : CHUNK;
        for (size_t j = 0; j < n; j++)
            ids[j] = text->p[i + j];
        GR_TRY(gr_tokens_writer_append(w, ids, n));
    }
    GR_TRY(gr_tokens_writer_append(w, &end, 1));
    return gr_tokens_writer_end(w);
}

static gr_err document_write(source *s, uint64_t document, output *o) {
    uint64_t n_token = 0;
    gr_err err;
    if (s->request->n_synthetic) {
        err = synthetic_write(s, document, o->writer, &n_token);
    } else {
        gr_text text;
        GR_TRY(gr_texts_read(&s->texts, (size_t)document, &text));
        n_token = text.n + 1;
        s->n_done += text.n;
        err = bytes_write(&text, o->writer);
        gr_text_close(&text);
    }
    o->n_document++;
    o->n_token += n_token;
    return err;
}

/* ---------------------------------------------------------------- outputs: out[0] for training, out[1] held out */

/* Neither file of the pair may be one of the inputs. */
static gr_err inputs_spare(const request *r, const char *prefix) {
    static const char *const suffix[] = {".bin", ".idx"};
    for (int s = 0; s < 2; s++) {
        char *path;
        if (asprintf(&path, "%s%s", prefix, suffix[s]) < 0)
            return gr_fail(GR_RESOURCE, "%s: no memory for its path", prefix);
        gr_err err = GR_OK;
        for (int i = 0; i < r->n_input && !err; i++)
            err = gr_output_check(path, r->input[i]);
        free(path);
        GR_TRY(err);
    }
    return GR_OK;
}

static gr_err output_open(output *o, const request *r, const char *suffix) {
    if (asprintf(&o->prefix, "%s%s", r->out, suffix) < 0) {
        o->prefix = NULL; /* asprintf leaves it undefined */
        return gr_fail(GR_RESOURCE, "%s: no memory for its path", r->out);
    }
    GR_TRY(inputs_spare(r, o->prefix));
    return gr_tokens_writer_open(&o->writer, o->prefix, r->n_vocab);
}

static gr_err folder_of_make(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return GR_OK;
    char *folder = strndup(path, (size_t)(slash - path));
    if (!folder)
        return gr_fail(GR_RESOURCE, "%s: no memory for its path", path);
    gr_err err = gr_folder_make(folder);
    free(folder);
    return err;
}

static gr_err outputs_open(output out[2], const request *r) {
    GR_TRY(folder_of_make(r->out));
    GR_TRY(output_open(&out[0], r, r->valid > 0 ? "-train" : ""));
    return r->valid > 0 ? output_open(&out[1], r, "-valid") : GR_OK;
}

static void outputs_close(output out[2]) {
    for (int i = 1; i >= 0; i--) {
        gr_tokens_writer_close(out[i].writer);
        free(out[i].prefix);
    }
}

/* Held out are the documents that a seeded permutation, another one than the shuffle's, puts first. */
static gr_err documents_write(source *s, output out[2]) {
    const request *r = s->request;
    uint64_t n = s->n_document, n_valid = 0;
    uint64_t order = gr_random_u64(r->seed, gr_stream_id("document order"), 0);
    uint64_t split = gr_random_u64(r->seed, gr_stream_id("document split"), 0);
    bool shuffle = r->shuffle && r->n_synthetic == 0; /* random documents need none */
    gr_progress progress;
    if (r->valid > 0) {
        n_valid = (uint64_t)(r->valid * (double)n + 0.5);
        n_valid = n_valid < 1 ? 1 : n_valid > n - 1 ? n - 1 : n_valid;
    }
    gr_progress_start(&progress, "writing tokens", r->n_synthetic ? "tokens" : "B", s->n_work);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t document = shuffle ? gr_bijection(order, n, i) : i;
        bool valid = n_valid && gr_bijection(split, n, document) < n_valid;
        GR_TRY(document_write(s, document, &out[valid]));
        gr_progress_update(&progress, s->n_done);
    }
    for (int i = 0; i < 2; i++)
        if (out[i].writer)
            GR_TRY(gr_tokens_writer_commit(out[i].writer));
    gr_progress_finish(&progress, s->n_done);
    return GR_OK;
}

/* ---------------------------------------------------------------- the command */

static gr_err documents_check(const source *s) {
    const request *r = s->request;
    if (s->n_document == 0)
        return gr_fail(GR_DATA,
            "%s%s: expected at least one document that is not empty, got none; give files with text", r->input[0],
            r->n_input > 1 ? " and the other inputs" : "");
    if (r->valid > 0 && s->n_document < 2)
        return gr_fail(GR_DATA,
            "--valid: expected at least 2 documents to split, got 1; give more inputs, or split the text with lines "
            "\"%s\" (another with --separator)",
            r->separator);
    return GR_OK;
}

static void summary_print(const source *s, const output out[2]) {
    if (s->request->n_synthetic)
        printf("documents   %" PRIu64 "\n", s->n_document);
    else
        printf("inputs      %d (%" PRIu64 " bytes of text)\ndocuments   %" PRIu64 " (%" PRIu64 " empty ones dropped)\n",
            s->texts.n_file, s->texts.n_byte, s->n_document, s->texts.n_empty);
    printf("vocabulary  %" PRIu32 ", id %" PRIu32 " ends a document\n", s->request->n_vocab, s->request->n_vocab - 1);
    for (int i = 0; i < 2; i++)
        if (out[i].prefix)
            printf("wrote       %s.bin %s.idx: %" PRIu64 " documents, %" PRIu64 " tokens\n", out[i].prefix,
                out[i].prefix, out[i].n_document, out[i].n_token);
}

static gr_err token_file_make(const request *r) {
    source s;
    output out[2] = {0};
    gr_err err = source_open(&s, r);
    if (!err)
        err = documents_check(&s);
    if (!err)
        err = outputs_open(out, r);
    if (!err)
        err = documents_write(&s, out);
    if (!err)
        summary_print(&s, out);
    outputs_close(out);
    gr_texts_close(&s.texts);
    return err;
}

static gr_err run(int argc, char **argv) {
    void *input = NULL;
    GR_TRY(gr_alloc(&input, (size_t)argc, sizeof(char *), "list of inputs"));
    request r = {.input = input};
    gr_err err = request_parse(&r, argc, argv);
    if (!err)
        err = token_file_make(&r);
    free(input);
    return err;
}

const gr_command gr_cmd_tokens = {
    .name = "tokens",
    .summary = "text or JSONL to a token file",
    .help = help,
    .run = run,
};
