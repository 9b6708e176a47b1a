/* lying_disk.c: every file and folder under the root is a node; a folder knows its certain names and the operations on
 * them since, a file its certain bytes and the writes since. */
#include "lying_disk.h"

#include "grouter/base.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_MAX_BYTES = 128, SECTOR = 512, FD_MAX = 1024 };

typedef struct node node;

typedef struct names {
    struct {
        char name[NAME_MAX_BYTES];
        node *node;
    } * list;
    int n;
} names;

typedef enum change_kind { CHANGE_ADD, CHANGE_REMOVE, CHANGE_RENAME } change_kind;

typedef struct change {
    change_kind kind;
    char name[NAME_MAX_BYTES], to[NAME_MAX_BYTES];
    node *node;
    bool doomed; /* a sync of the folder failed after it */
} change;

typedef struct bytes {
    uint8_t *p;
    size_t n;
} bytes;

typedef struct piece {
    size_t offset;
    bytes data; /* p NULL: only the file's length */
    bool doomed;
} piece;

struct node {
    bool is_folder;
    names now, certain;
    change *change;
    int n_change;
    bytes content; /* certain */
    piece *piece;
    int n_piece;
    node *next; /* of all nodes */
};

struct lying_disk {
    char root[1024];
    node *top, *all;
    struct {
        node *node;
        size_t at;
    } open[FD_MAX];
    uint64_t seed, n_coin;
};

static void *resized(void *p, size_t count, size_t size) {
    void *q = realloc(p, count * size + 1);
    GR_ASSERT(q, "no memory for %zu", count * size);
    return q;
}

/* ---- names */

static void name_copy(char to[NAME_MAX_BYTES], const char *from) {
    size_t n = strlen(from);
    GR_ASSERT(n > 0 && n < NAME_MAX_BYTES, "name of %zu bytes", n);
    memcpy(to, from, n + 1);
}

static int names_find(const names *s, const char *name) {
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->list[i].name, name))
            return i;
    return -1;
}

static void names_drop(names *s, int i) {
    s->list[i] = s->list[--s->n];
}

static void names_put(names *s, const char *name, node *v) {
    int i = names_find(s, name);
    if (i < 0) {
        i = s->n++;
        s->list = resized(s->list, (size_t)s->n, sizeof *s->list);
        name_copy(s->list[i].name, name);
    }
    s->list[i].node = v;
}

/* A change that is no longer possible, because one it builds on was dropped, is dropped too. */
static void names_change(names *s, const change *c) {
    int i = names_find(s, c->name);
    if (c->kind == CHANGE_ADD) {
        names_put(s, c->name, c->node);
    } else if (i >= 0 && s->list[i].node == c->node) {
        names_drop(s, i);
        if (c->kind == CHANGE_RENAME)
            names_put(s, c->to, c->node);
    }
}

/* ---- nodes */

static node *node_new(lying_disk *d, bool is_folder) {
    node *v = resized(NULL, 1, sizeof *v);
    *v = (node){.is_folder = is_folder, .next = d->all};
    d->all = v;
    return v;
}

static void node_free(node *v) {
    for (int i = 0; i < v->n_piece; i++)
        free(v->piece[i].data.p);
    free(v->piece);
    free(v->change);
    free(v->now.list);
    free(v->certain.list);
    free(v->content.p);
    free(v);
}

static void bytes_grow(bytes *b, size_t n) {
    if (n <= b->n)
        return;
    b->p = resized(b->p, n, 1);
    memset(b->p + b->n, 0, n - b->n);
    b->n = n;
}

static void piece_apply(bytes *b, const piece *p) {
    bytes_grow(b, p->offset + p->data.n);
    if (p->data.p)
        memcpy(b->p + p->offset, p->data.p, p->data.n);
}

static void piece_add(node *v, size_t offset, const uint8_t *data, size_t n) {
    v->piece = resized(v->piece, (size_t)v->n_piece + 1, sizeof *v->piece);
    piece *p = &v->piece[v->n_piece++];
    *p = (piece){.offset = offset, .data = {.n = n}};
    if (data) {
        p->data.p = resized(NULL, n, 1);
        memcpy(p->data.p, data, n);
    }
}

static void change_add(node *folder, change_kind kind, const char *name, const char *to, node *v) {
    folder->change = resized(folder->change, (size_t)folder->n_change + 1, sizeof *folder->change);
    change *c = &folder->change[folder->n_change++];
    *c = (change){.kind = kind, .node = v};
    name_copy(c->name, name);
    if (to)
        name_copy(c->to, to);
    names_change(&folder->now, c);
}

/* The folder that holds `path` and the last name in it; NULL outside the root. */
static node *parent_of(lying_disk *d, const char *path, char name[NAME_MAX_BYTES]) {
    size_t n = strlen(d->root);
    if (strncmp(path, d->root, n) || path[n] != '/')
        return NULL;
    node *at = d->top;
    for (const char *p = path + n + 1;;) {
        size_t length = strcspn(p, "/");
        GR_ASSERT(length > 0 && length < NAME_MAX_BYTES, "path %s", path);
        memcpy(name, p, length);
        name[length] = 0;
        if (!p[length])
            return at;
        int i = names_find(&at->now, name);
        GR_ASSERT(i >= 0, "%s: no folder %s in the model", path, name);
        at = at->now.list[i].node;
        p += length + 1;
    }
}

static node *node_at(lying_disk *d, const char *path) {
    if (!strcmp(path, d->root))
        return d->top;
    char name[NAME_MAX_BYTES];
    node *folder = parent_of(d, path, name);
    int i = folder ? names_find(&folder->now, name) : -1;
    return i < 0 ? NULL : folder->now.list[i].node;
}

/* ---- opening: what is there is certain */

static void file_scan(node *v, const char *path) {
    char *text;
    gr_err err = gr_file_read(path, SIZE_MAX / 2, GR_STORAGE, &text, &v->content.n);
    GR_ASSERT(!err, "%s", gr_error_text());
    v->content.p = (uint8_t *)text;
}

static void folder_scan(lying_disk *d, node *folder, const char *path) {
    DIR *dir = opendir(path);
    GR_ASSERT(dir, "%s", path);
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        char below[2048];
        snprintf(below, sizeof below, "%s/%s", path, e->d_name);
        struct stat st;
        GR_ASSERT(lstat(below, &st) == 0, "%s", below);
        node *v = node_new(d, S_ISDIR(st.st_mode));
        names_put(&folder->now, e->d_name, v);
        names_put(&folder->certain, e->d_name, v);
        if (v->is_folder)
            folder_scan(d, v, below);
        else
            file_scan(v, below);
    }
    closedir(dir);
}

lying_disk *lying_disk_open(const char *root) {
    lying_disk *d = calloc(1, sizeof *d);
    GR_ASSERT(d && strlen(root) < sizeof d->root, "%s", root);
    strcpy(d->root, root);
    d->top = node_new(d, true);
    folder_scan(d, d->top, root);
    return d;
}

void lying_disk_close(lying_disk *d) {
    for (node *v = d ? d->all : NULL, *next; v; v = next) {
        next = v->next;
        node_free(v);
    }
    free(d);
}

/* ---- calls */

static node *opened_node(lying_disk *d, int fd) {
    GR_ASSERT(fd >= 0 && fd < FD_MAX, "descriptor %d", fd);
    return d->open[fd].node;
}

void lying_disk_opened(lying_disk *d, const char *path, int fd) {
    GR_ASSERT(fd >= 0 && fd < FD_MAX, "descriptor %d", fd);
    node *v = node_at(d, path);
    char name[NAME_MAX_BYTES];
    node *folder = v ? NULL : parent_of(d, path, name);
    if (folder) {
        v = node_new(d, false);
        change_add(folder, CHANGE_ADD, name, NULL, v);
    }
    d->open[fd].node = v;
    d->open[fd].at = 0;
}

void lying_disk_wrote(lying_disk *d, int fd, const void *data, size_t n_byte) {
    node *v = opened_node(d, fd);
    if (!v)
        return;
    for (size_t i = 0; i < n_byte; i += SECTOR)
        piece_add(v, d->open[fd].at + i, (const uint8_t *)data + i, n_byte - i < SECTOR ? n_byte - i : SECTOR);
    d->open[fd].at += n_byte;
}

void lying_disk_allocated(lying_disk *d, int fd, uint64_t n_byte) {
    node *v = opened_node(d, fd);
    if (v)
        piece_add(v, 0, NULL, (size_t)n_byte);
}

void lying_disk_synced(lying_disk *d, int fd) {
    node *v = opened_node(d, fd);
    if (!v)
        return;
    int n = 0;
    for (int i = 0; i < v->n_piece; i++) {
        if (v->piece[i].doomed) {
            v->piece[n++] = v->piece[i];
            continue;
        }
        piece_apply(&v->content, &v->piece[i]);
        free(v->piece[i].data.p);
    }
    v->n_piece = n;
    n = 0;
    for (int i = 0; i < v->n_change; i++)
        if (v->change[i].doomed)
            v->change[n++] = v->change[i];
        else
            names_change(&v->certain, &v->change[i]);
    v->n_change = n;
}

void lying_disk_sync_failed(lying_disk *d, int fd) {
    node *v = opened_node(d, fd);
    for (int i = 0; v && i < v->n_piece; i++)
        v->piece[i].doomed = true;
    for (int i = 0; v && i < v->n_change; i++)
        v->change[i].doomed = true;
}

void lying_disk_closed(lying_disk *d, int fd) {
    if (opened_node(d, fd))
        d->open[fd].node = NULL;
}

void lying_disk_renamed(lying_disk *d, const char *from, const char *to) {
    char name[NAME_MAX_BYTES], new_name[NAME_MAX_BYTES];
    node *folder = parent_of(d, from, name), *new_folder = parent_of(d, to, new_name);
    GR_ASSERT(folder == new_folder, "renaming %s to %s: not modelled between folders", from, to);
    if (folder)
        change_add(folder, CHANGE_RENAME, name, new_name, node_at(d, from));
}

void lying_disk_made(lying_disk *d, const char *path) {
    char name[NAME_MAX_BYTES];
    node *folder = parent_of(d, path, name);
    if (folder)
        change_add(folder, CHANGE_ADD, name, NULL, node_new(d, true));
}

void lying_disk_removed(lying_disk *d, const char *path) {
    char name[NAME_MAX_BYTES];
    node *folder = parent_of(d, path, name);
    if (folder)
        change_add(folder, CHANGE_REMOVE, name, NULL, node_at(d, path));
}

/* ---- power loss */

typedef enum loss { LOSS_ALL, LOSS_BYTES, LOSS_MIXED, LOSS_N } loss;
typedef enum fate { FATE_KEPT, FATE_DROPPED, FATE_GARBLED } fate;

static loss loss_of(const lying_disk *d) {
    return (loss)(d->seed % LOSS_N);
}

static uint32_t coin(lying_disk *d, uint32_t n) {
    return gr_random_below(d->seed, gr_stream_id("power loss"), d->n_coin++, n);
}

static bool name_is_kept(lying_disk *d) {
    return loss_of(d) == LOSS_BYTES || (loss_of(d) == LOSS_MIXED && coin(d, 2));
}

static fate piece_fate(lying_disk *d) {
    uint32_t throw = coin(d, 4);
    switch (loss_of(d)) {
    case LOSS_MIXED:
        return throw < 2 ? FATE_KEPT : throw == 2 ? FATE_DROPPED : FATE_GARBLED;
    case LOSS_BYTES:
        return throw < 3 ? FATE_DROPPED : FATE_GARBLED;
    default:
        return FATE_DROPPED;
    }
}

static void file_write_out(lying_disk *d, node *v, const char *path) {
    for (int i = 0; i < v->n_piece; i++) {
        piece *p = &v->piece[i];
        fate f = piece_fate(d);
        for (size_t j = 0; f == FATE_GARBLED && p->data.p && j < p->data.n; j++)
            p->data.p[j] = (uint8_t)coin(d, 256);
        if (f != FATE_DROPPED)
            piece_apply(&v->content, p);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    GR_ASSERT(fd >= 0, "%s", path);
    for (size_t at = 0; at < v->content.n;) {
        ssize_t n = write(fd, v->content.p + at, v->content.n - at);
        GR_ASSERT(n > 0, "%s", path);
        at += (size_t)n;
    }
    close(fd);
}

static void folder_write_out(lying_disk *d, node *folder, const char *path) {
    for (int i = 0; i < folder->n_change; i++)
        if (name_is_kept(d))
            names_change(&folder->certain, &folder->change[i]);
    for (int i = 0; i < folder->certain.n; i++) {
        node *v = folder->certain.list[i].node;
        char below[2048];
        snprintf(below, sizeof below, "%s/%s", path, folder->certain.list[i].name);
        if (!v->is_folder) {
            file_write_out(d, v, below);
            continue;
        }
        GR_ASSERT(mkdir(below, 0777) == 0, "%s", below);
        folder_write_out(d, v, below);
    }
}

void lying_disk_lose_power(lying_disk *d, uint64_t seed) {
    d->seed = seed;
    lying_folder_clear(d->root);
    folder_write_out(d, d->top, d->root);
}

static int clear_entry(const char *path, const struct stat *st, int flag, struct FTW *at) {
    (void)st, (void)flag;
    return at->level > 0 ? remove(path) : 0;
}

void lying_folder_clear(const char *path) {
    GR_ASSERT(nftw(path, clear_entry, 16, FTW_DEPTH | FTW_PHYS) == 0, "%s", path);
}

void lying_folder_remove(const char *path) {
    lying_folder_clear(path);
    GR_ASSERT(rmdir(path) == 0, "%s", path);
}
