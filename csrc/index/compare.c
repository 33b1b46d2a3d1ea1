#include "compare.h"

#include <string.h>

#include "base/bytes.h"

/* Both trees are walked side by side, depth first, with a stack of the directories that are open. On damaged
 * indexes this ends, because a child stands after its parent and names it (checked in `read_child`): no record is met
 * twice. */

enum side { A, B, SIDES };

/* The children of a directory that are still to come; next == end where the side has no such directory. */
struct children {
	uint32_t directory;
	uint32_t next;
	uint32_t end;
};

struct level {
	struct children of[SIDES];
};

struct child {
	const struct ls_record *record; /* NULL after the last */
	const char *name;
	size_t name_length;
};

struct comparison {
	const struct ls_index *index[SIDES];
	struct ls_buffer stack; /* of struct level */
	struct ls_buffer *changes;
	uint64_t read;
};

/* Two records of one path */

static int is_same_content(const struct comparison *c, const struct ls_record *const records[SIDES], int *same,
                           struct ls_error *err)
{
	const struct ls_content *contents[SIDES];
	int status = ls_index_content(c->index[A], records[A], &contents[A], err);

	if (!status)
		status = ls_index_content(c->index[B], records[B], &contents[B], err);
	if (status)
		return status;
	*same = contents[A] && contents[B]
	            ? !memcmp(contents[A]->digest, contents[B]->digest, sizeof(contents[A]->digest))
	            : contents[A] == contents[B];
	return LS_OK;
}

/* Of the same length. */
static int is_same_target(const struct comparison *c, const struct ls_record *const records[SIDES], int *same,
                          struct ls_error *err)
{
	const char *targets[SIDES] = {NULL};
	int status = LS_OK;

	for (int side = A; side < SIDES && !status; side++)
		status = ls_index_string(c->index[side], records[side]->data, records[side]->size, &targets[side], err);
	if (!status)
		*same = !memcmp(targets[A], targets[B], records[A]->size);
	return status;
}

/* Whether two records describe the same, what is in a directory left aside. */
static int is_same(const struct comparison *c, const struct ls_record *const records[SIDES], int *same,
                   struct ls_error *err)
{
	const struct ls_record *a = records[A], *b = records[B];
	int status = LS_OK;

	*same = a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->mtime_seconds == b->mtime_seconds &&
	        a->mtime_nanoseconds == b->mtime_nanoseconds && (S_ISDIR(a->mode) || a->size == b->size);
	if (*same && S_ISREG(a->mode))
		status = is_same_content(c, records, same, err);
	else if (*same && S_ISLNK(a->mode))
		status = is_same_target(c, records, same, err);
	if (!status && *same)
		status = ls_index_same_xattrs(c->index[A], a->xattrs, c->index[B], b->xattrs, same, err);
	return status;
}

/* The walk */

static int is_directory(const struct ls_record *record)
{
	return record && S_ISDIR(record->mode);
}

static int has_same_tree(const struct comparison *c, const struct ls_record *const records[SIDES], int *same,
                         struct ls_error *err)
{
	const struct ls_tree *trees[SIDES] = {NULL};
	int status = LS_OK;

	for (int side = A; side < SIDES && !status; side++)
		status = ls_index_tree(c->index[side], records[side], &trees[side], err);
	if (!status)
		*same = !memcmp(trees[A], trees[B], sizeof(*trees[A]));
	return status;
}

/* Open the directories that the records are, for their children to be compared next. */
static int descend(struct comparison *c, const struct ls_record *const records[SIDES], struct ls_error *err)
{
	struct level level = {0};
	int same = 0, status = LS_OK;

	if (is_directory(records[A]) && is_directory(records[B]))
		status = has_same_tree(c, records, &same, err);
	for (int side = A; side < SIDES && !status && !same; side++) {
		struct children *children = &level.of[side];
		uint32_t count = 0;

		if (!is_directory(records[side]))
			continue;
		children->directory = (uint32_t)(records[side] - c->index[side]->records);
		status = ls_index_children(c->index[side], children->directory, &children->next, &count, err);
		children->end = children->next + count;
	}
	if (status || (level.of[A].next == level.of[A].end && level.of[B].next == level.of[B].end))
		return status;
	return ls_buffer_append(&c->stack, &level, sizeof(level), err);
}

static uint32_t number_of(const struct comparison *c, enum side side, const struct ls_record *record)
{
	return record ? (uint32_t)(record - c->index[side]->records) : LS_NONE;
}

/* One path, described by one record or both. */
static int compare_records(struct comparison *c, const struct ls_record *const records[SIDES], struct ls_error *err)
{
	struct ls_change change = {.a = number_of(c, A, records[A]), .b = number_of(c, B, records[B])};
	int same = 0, status = LS_OK;

	c->read += (records[A] != NULL) + (records[B] != NULL);
	if (records[A] && records[B])
		status = is_same(c, records, &same, err);
	if (!status && !same) {
		change.kind = !records[A] ? LS_ADDED : !records[B] ? LS_DELETED : LS_CHANGED;
		status = ls_buffer_append(c->changes, &change, sizeof(change), err);
	}
	return status ? status : descend(c, records, err);
}

static int read_child(const struct comparison *c, enum side side, const struct children *children, struct child *child,
                      struct ls_error *err)
{
	const struct ls_index *index = c->index[side];

	*child = (struct child){0};
	if (children->next == children->end)
		return LS_OK;
	child->record = &index->records[children->next];
	if (child->record->parent != children->directory)
		return ls_fail(
		    err, LS_CORRUPT,
		    "comparing indexes: record %u is not a child of the directory that lists it; rebuild the index",
		    children->next);
	return ls_index_name(index, child->record, &child->name, &child->name_length, err);
}

/* A child that is not there comes after all others. */
static int compare_names(const struct child *a, const struct child *b)
{
	if (!a->record || !b->record)
		return a->record ? -1 : 1;
	return ls_compare(a->name, a->name_length, b->name, b->name_length);
}

/* The next name of the directories on top of the stack. */
static int step(struct comparison *c, struct ls_error *err)
{
	struct level *top = (struct level *)(c->stack.bytes + c->stack.length) - 1;
	const struct ls_record *records[SIDES] = {NULL};
	struct child children[SIDES];
	int order, status = LS_OK;

	for (int side = A; side < SIDES && !status; side++)
		status = read_child(c, side, &top->of[side], &children[side], err);
	if (status)
		return status;
	if (!children[A].record && !children[B].record) {
		c->stack.length -= sizeof(*top);
		return LS_OK;
	}
	order = compare_names(&children[A], &children[B]);
	if (order <= 0) {
		records[A] = children[A].record;
		top->of[A].next++;
	}
	if (order >= 0) {
		records[B] = children[B].record;
		top->of[B].next++;
	}
	return compare_records(c, records, err);
}

int ls_index_compare(const struct ls_index *a, const struct ls_index *b, struct ls_buffer *changes, uint64_t *read,
                     struct ls_error *err)
{
	struct comparison c = {.index = {a, b}, .changes = changes};
	const struct ls_record *roots[SIDES] = {a->records, b->records};
	int status;

	*read = 0;
	if (a->header->kind != LS_INDEX_CHAIN || b->header->kind != LS_INDEX_CHAIN)
		return ls_fail(err, LS_INVALID, "comparing indexes: one is a layer's; merge it to a chain first");
	status = compare_records(&c, roots, err);
	while (c.stack.length && !status)
		status = step(&c, err);
	ls_buffer_free(&c.stack);
	*read = c.read;
	return status;
}
