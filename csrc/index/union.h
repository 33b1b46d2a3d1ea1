/* The union of the layers of a stack: their directories side by side, name by name, and what the lower ones show at a
 * path. The merge and the provenance are built on it.
 *
 * Layers are borrowed, layers[0] is the bottom. They need not have been verified: a child is taken only where it
 * stands after its directory, names it as its parent, and follows its elder by name; so going down ends, and each record
 * is met at most once, on damaged layers too. What is found wrong is LS_CORRUPT, naming the record. */
#ifndef LS_UNION_H
#define LS_UNION_H

#include "index.h"

/* A record of one of the layers. */
struct ls_source {
	uint32_t layer;
	uint32_t record;
};

struct ls_union_cursor;

struct ls_union {
	const struct ls_index *const *layers;
	size_t layer_count;
	const char *doing;     /* begins every message: "merging layers" */
	uint32_t *number;      /* by layer: its number in the stack, the lowest of its numbers for a chain */
	uint32_t number_count; /* layers of the stack; a chain counts for as many as it holds */
	size_t *record_base;   /* by layer: the records of the layers below it */
	size_t record_count;   /* of all layers */

	/* What ls_union_root and ls_union_next found. */
	const char *name;
	size_t name_length;
	struct ls_source *group; /* the records of that name, at most one a layer, the topmost layer's first */
	size_t group_count;      /* 0 after the last name */

	struct ls_union_cursor *cursors; /* a binary heap */
	size_t cursor_count;
};

/* Only the bottom may be a chain (LS_INVALID). `doing` and the layers are borrowed. Free it after a failure too. */
int ls_union_init(struct ls_union *u, const char *doing, const struct ls_index *const *layers, size_t layer_count,
                  struct ls_error *err);
void ls_union_free(struct ls_union *u);

static inline const struct ls_record *ls_union_record(const struct ls_union *u, struct ls_source source)
{
	return &u->layers[source.layer]->records[source.record];
}

/* Where a record stands when those of all layers are counted through, the bottom's first. */
static inline size_t ls_union_place(const struct ls_union *u, struct ls_source source)
{
	return u->record_base[source.layer] + source.record;
}

/* The group of the roots. */
int ls_union_root(struct ls_union *u, struct ls_error *err);

/* Begin with the children of these records, at most one a layer (of whatever is no directory there are none).
 * `sources` is borrowed until it returns. */
int ls_union_start(struct ls_union *u, const struct ls_source *sources, size_t count, struct ls_error *err);
/* The next name, in bytewise order. */
int ls_union_next(struct ls_union *u, struct ls_error *err);

/* What a lower link (LS_RECORD_LOWER_LINK) stands for: the record that the layers below its own show at its target, and
 * so on where that is another lower link. Follows no symlinks. LS_INVALID, naming it, when there is no such
 * non-directory. */
int ls_union_follow(const struct ls_union *u, struct ls_source link, struct ls_source *found, struct ls_error *err);

/* LS_CORRUPT: the record and `why`, which goes on after it. */
int ls_union_fail(const struct ls_union *u, struct ls_source source, const char *why, struct ls_error *err);

#endif
