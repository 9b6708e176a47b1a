/* teacher.h: what a Grouter is measured against, token by token: the router of a trained source, or another Grouter. */
#ifndef GROUTER_TEACHER_H
#define GROUTER_TEACHER_H

#include "grouter/grouter.h"

/* The source at `path` (hf.h: a run's weights or a Hugging Face checkpoint) cut off at the router of `layer`, 0-based:
 * what a Grouter must know to be its student. 66 if it cannot be read or has no learned router there. */
GR_MUST gr_err gr_teacher_describe(const char *path, int layer, gr_model_config *out);
/* Tells one source from another by sizes and ends of the files that this router needs, into text[33]; 66. */
GR_MUST gr_err gr_teacher_identity(const char *path, int layer, char text[33]);

typedef struct gr_teacher gr_teacher;

typedef struct gr_teacher_options {
    const char *path; /* source, or NULL with: */
    int layer;
    const gr_grouter *grouter; /* borrowed */
    gr_backend *backend;       /* storage type F32 */
    int64_t N, T;              /* tokens of a batch and of a window */
} gr_teacher_options;

/* Reads only the tensors that the logits of that layer's router need. 66, 69. */
GR_MUST gr_err gr_teacher_open(gr_teacher **out, const gr_teacher_options *o);
void gr_teacher_close(gr_teacher *t); /* accepts NULL */
/* Bytes that gr_teacher_open allocates. */
GR_MUST gr_err gr_teacher_measure(const gr_teacher_options *o, size_t *n_byte);

/* Logits [N, E] of the batch's tokens; backend memory of the teacher, valid until its next call. */
GR_MUST gr_err gr_teacher_logits(gr_teacher *t, const gr_batch *b, const float **logits, gr_phases *phases);

/* ---------------------------------------------------------------- how alike two routers are */

/* Sums over tokens; the means are what people look at. */
typedef struct gr_fidelity {
    double n_token;
    double divergence; /* KL of the student's softmax over all experts from the teacher's, nats */
    double exact;      /* tokens whose K experts are the same */
    double overlap;    /* shared experts / K */
    double cosine;     /* of the two softmaxes over the teacher's K experts */
} gr_fidelity;
enum { GR_FIDELITY_SUMS = sizeof(gr_fidelity) / sizeof(double) };

typedef struct gr_fidelity_pair {
    uint32_t E, K;
    int64_t n;
    const float *teacher, *student;           /* scores [n, E], host memory */
    const float *teacher_bias, *student_bias; /* [E]: the choice is by score + bias; NULL: by score */
    const int32_t *counted;                   /* [n]: tokens below 0 are left out; NULL: none */
} gr_fidelity_pair;
void gr_fidelity_add(gr_fidelity *f, const gr_fidelity_pair *pair); /* adds the tokens of the pair */

#endif
