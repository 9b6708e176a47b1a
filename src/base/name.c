/* "Did you mean": the nearest of a set of names. */
#include <string.h>

#include "grouter/base.h"

enum { NAME_MAX_LENGTH = 64 }; /* longer names get no suggestion */

static int min_int(int a, int b) {
    return a < b ? a : b;
}

/* Damerau-Levenshtein distance, restricted form (Boytsov 2011, "optimal string alignment"): insertions, deletions,
 * substitutions and swaps of neighbours cost 1 each. */
static int name_distance(const char *a, int n_a, const char *b, int n_b) {
    int d[NAME_MAX_LENGTH + 1][NAME_MAX_LENGTH + 1];
    for (int i = 0; i <= n_a; i++)
        d[i][0] = i;
    for (int j = 0; j <= n_b; j++)
        d[0][j] = j;
    for (int i = 1; i <= n_a; i++)
        for (int j = 1; j <= n_b; j++) {
            d[i][j] = min_int(d[i - 1][j], d[i][j - 1]) + 1;
            d[i][j] = min_int(d[i][j], d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = min_int(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[n_a][n_b];
}

void gr_nearest_offer(gr_nearest *n, const char *name) {
    size_t n_to = strlen(n->to), n_name = strlen(name);
    if (n_to > NAME_MAX_LENGTH || n_name > NAME_MAX_LENGTH)
        return;
    const char *dot = strrchr(n->to, '.');
    int limit = 1 + (int)(strlen(dot ? dot + 1 : n->to) / 4); /* what a typing error of a name this long may cost */
    int distance = name_distance(n->to, (int)n_to, name, (int)n_name);
    if (distance <= limit && (!n->name || distance < n->distance)) {
        n->name = name;
        n->distance = distance;
    }
}
