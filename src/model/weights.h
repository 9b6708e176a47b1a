/* weights.h: the tensors of files against those of a model. Internal to src/model: shared by the reader of our own
 * files and that of Hugging Face's. */
#ifndef GROUTER_MODEL_WEIGHTS_H
#define GROUTER_MODEL_WEIGHTS_H

#include "grouter/data.h"
#include "grouter/model.h"

/* Lines "name: expected X, got Y", the first GR_PROBLEMS_MAX of them; the others are only counted. */
enum { GR_PROBLEMS_MAX = 20 };
typedef struct gr_problems {
    FILE *out;
    char *text;
    size_t size;
    int n;
    unsigned dtypes; /* accepted: bit d stands for gr_dtype d */
} gr_problems;

/* `path` is for the error; 69 without memory. */
GR_MUST gr_err gr_problems_open(gr_problems *p, unsigned dtypes, const char *path);
/* A tensor that is not as expected; NULL: not expected, not found. */
void gr_problem_add(gr_problems *p, const char *name, const gr_param *expected, const gr_tensor *found);
/* Another line. */
void gr_problem_print(gr_problems *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* All lines as one failure, 66, below a line of path, what was expected and what to do; GR_OK if there are none. */
GR_MUST gr_err gr_problems_close(gr_problems *p, const char *path, const char *expected, const char *advice);

bool gr_tensor_fits(const gr_tensor *t, const gr_param *p, unsigned dtypes);

/* Every tensor of a file against a sorted list of wanted ones; found[i] becomes the file's tensor of list[i]. Unknown
 * names, names already found, other shapes and dtypes are problems. */
void gr_tensors_match(
    const gr_safetensors *file, const gr_whole *list, int n, const gr_tensor **found, gr_problems *wrong);

/* to = the elements that it has room for of the tensors of the list, converted to fp32; all else 0. found[i] may be
 * NULL only where list[i] is another rank's. 69 where they go through host memory and it is not there. */
GR_MUST gr_err gr_tensors_copy(
    const gr_params *p, const gr_whole *list, int n, const gr_tensor *const *found, const gr_weights *to);

#endif
