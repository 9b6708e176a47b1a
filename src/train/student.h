/* student.h: what distill and tune share: the Grouter that is being trained, beside what it is measured against. */
#ifndef GROUTER_TRAIN_STUDENT_H
#define GROUTER_TRAIN_STUDENT_H

#include "internal.h"

/* Its settings, with `made` told by the caller. */
gr_grouter_spec gr_student_spec(const gr_config *c);
/* Validation: divergence from the teacher as the loss, fidelity, MaxVio of its choices (with bias if that is what is
 * tuned) over the validation windows; collective. */
GR_MUST gr_err gr_student_evaluate(gr_trainer *t);
/* Writes <run.dir>/grouter.safetensors; collective, errors are agreed. */
GR_MUST gr_err gr_student_save(gr_trainer *t, const char *made, gr_train_result *result);
/* The Grouter's bias [num_labels] in the trainer's weights: backend memory. */
float *gr_student_bias(gr_trainer *t);
/* The same for host code, by the trainer's staging. */
GR_MUST gr_err gr_student_bias_fetch(gr_trainer *t, const float **bias);

#endif
