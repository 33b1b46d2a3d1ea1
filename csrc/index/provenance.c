#include "provenance.h"

#include <stdlib.h>
#include <string.h>

#include "union.h"

/* A path lives from the records of its own and from those above it that hide it. The latter are kept by directory: the
 * layers, ascending, in which the directory's path hides what lower layers have in it. So what ends a version
 * is the path's next own record, or the first entry between the two in the lists of the directories above: a binary
 * search in each list that is not empty. Of those there are at most as many as the path has components. */

/* A whiteout, an opaque directory, or what is no directory. */
struct hiding {
	uint32_t layer;
	uint32_t record;
};

struct directory {
	size_t first_source, source_count; /* the layers' directories at this path; empty in ls_provenance_path */
	size_t first_hiding, hiding_count;
	size_t hider; /* this directory if it hides anything, else the nearest above it that does, or NOBODY */
	size_t next;  /* the hider of its parent */
};

#define NOBODY SIZE_MAX

struct trace {
	struct ls_union stack;
	struct ls_buffer directories; /* struct directory, breadth-first */
	struct ls_buffer sources;     /* struct ls_source */
	struct ls_buffer hidings;     /* struct hiding */
	struct ls_buffer *versions;
	uint8_t *is_visible; /* by place of an inode */
};

static const struct directory *directory_at(const struct trace *t, size_t number)
{
	return (const struct directory *)t->directories.bytes + number;
}

static size_t count_of(const struct ls_buffer *buffer, size_t size)
{
	return buffer->length / size;
}

static int is_whiteout(const struct ls_record *record)
{
	return record->flags & LS_RECORD_WHITEOUT;
}

static int hides_below(const struct ls_record *record)
{
	return !S_ISDIR(record->mode) || record->flags & LS_RECORD_OPAQUE;
}

/* What hides */

/* The first entry of a directory's list in a layer above `after`, or NULL. */
static const struct hiding *search(const struct trace *t, const struct directory *directory, uint32_t after)
{
	const struct hiding *list = (const struct hiding *)t->hidings.bytes + directory->first_hiding;
	size_t low = 0, high = directory->hiding_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (list[middle].layer > after)
			high = middle;
		else
			low = middle + 1;
	}
	return low < directory->hiding_count ? &list[low] : NULL;
}

/* The first layer above `after` in which something above hides what is in a directory; of several in that layer
 * the nearest. NULL where there is none. */
static const struct hiding *first_hiding(const struct trace *t, size_t hider, uint32_t after)
{
	const struct hiding *first = NULL;

	for (; hider != NOBODY; hider = directory_at(t, hider)->next) {
		const struct hiding *found = search(t, directory_at(t, hider), after);

		if (found && (!first || found->layer < first->layer))
			first = found;
	}
	return first;
}

static uint32_t end_above(const struct trace *t, const struct hiding *hiding)
{
	const struct ls_record *record = ls_union_record(&t->stack, (struct ls_source){hiding->layer, hiding->record});

	if (is_whiteout(record))
		return LS_VERSION_ABOVE_WHITEOUT;
	return S_ISDIR(record->mode) ? LS_VERSION_ABOVE_OPAQUE : LS_VERSION_ABOVE_REPLACED;
}

/* The versions of one path */

/* Whether a directory is described as another one is. */
static int same_directory(const struct ls_union *u, struct ls_source a, struct ls_source b, int *same,
                          struct ls_error *err)
{
	const struct ls_record *x = ls_union_record(u, a), *y = ls_union_record(u, b);

	*same = x->mode == y->mode && x->uid == y->uid && x->gid == y->gid && x->mtime_seconds == y->mtime_seconds &&
	        x->mtime_nanoseconds == y->mtime_nanoseconds;
	if (!*same)
		return LS_OK;
	return ls_index_same_xattrs(u->layers[a.layer], x->xattrs, u->layers[b.layer], y->xattrs, same, err);
}

/* The path's visible version as the layers are gone through upwards. */
struct life {
	size_t hider; /* of the directory that the path is in */
	int is_open;
	struct ls_version version;
};

static int end_version(struct trace *t, struct life *life, uint32_t end, uint32_t layer, uint32_t record,
                       struct ls_error *err)
{
	if (!life->is_open)
		return LS_OK;
	life->is_open = 0;
	life->version.end = end;
	life->version.end_layer = layer;
	life->version.end_record = record;
	return ls_buffer_append(t->versions, &life->version, sizeof(life->version), err);
}

static int begin_version(struct trace *t, struct life *life, struct ls_source source, struct ls_error *err)
{
	int is_change = life->is_open;
	int status = end_version(t, life, LS_VERSION_REPLACED, source.layer, source.record, err);

	life->is_open = 1;
	life->version = (struct ls_version){.layer = source.layer, .record = source.record, .is_change = is_change};
	return status;
}

/* Whether another record of the path leaves the visible version as it is: a directory, described as it was. `is_hidden`:
 * by something above it in the record's layer, so that it is not there for what that layer implies. */
static int is_unchanged(const struct trace *t, const struct life *life, struct ls_source source, int is_hidden,
                        int *unchanged, struct ls_error *err)
{
	const struct ls_union *u = &t->stack;
	struct ls_source visible = {life->version.layer, life->version.record};
	const struct ls_record *record = ls_union_record(u, source);

	*unchanged = life->is_open && S_ISDIR(record->mode) && S_ISDIR(ls_union_record(u, visible)->mode);
	if (!*unchanged || (record->flags & LS_RECORD_IMPLIED && !is_hidden))
		return LS_OK;
	return same_directory(u, visible, source, unchanged, err);
}

/* Go up to the path's record in the next layer that has one; `below` is the layer of its record before. */
static int live_through(struct trace *t, struct life *life, uint32_t below, struct ls_source source,
                        struct ls_error *err)
{
	const struct hiding *hiding = life->is_open ? first_hiding(t, life->hider, below) : NULL;
	int unchanged, status = LS_OK;

	if (hiding && hiding->layer < source.layer)
		status = end_version(t, life, end_above(t, hiding), hiding->layer, hiding->record, err);
	if (status)
		return status;
	if (is_whiteout(ls_union_record(&t->stack, source)))
		return end_version(t, life, LS_VERSION_WHITEOUT, source.layer, source.record, err);
	status = is_unchanged(t, life, source, hiding && hiding->layer == source.layer, &unchanged, err);
	return status || unchanged ? status : begin_version(t, life, source, err);
}

/* The versions of a path from its records, the topmost first. */
static int trace_group(struct trace *t, size_t hider, const struct ls_source *group, size_t count, struct ls_error *err)
{
	struct life life = {.hider = hider};
	const struct hiding *hiding;
	uint32_t below = 0;
	int status = LS_OK;

	for (size_t i = count; i-- > 0 && !status;) {
		status = live_through(t, &life, below, group[i], err);
		below = group[i].layer;
	}
	if (status)
		return status;
	hiding = life.is_open ? first_hiding(t, hider, below) : NULL;
	if (hiding)
		return end_version(t, &life, end_above(t, hiding), hiding->layer, hiding->record, err);
	return end_version(t, &life, LS_VERSION_VISIBLE, LS_NONE, LS_NONE, err);
}

/* The directories */

/* Add a directory below `parent` (NOBODY for the root), from the records of its path, the topmost first. */
static int add_directory(struct trace *t, size_t parent, const struct ls_source *group, size_t count,
                         struct ls_error *err)
{
	size_t number = count_of(&t->directories, sizeof(struct directory));
	struct directory directory = {
	    .first_source = count_of(&t->sources, sizeof(struct ls_source)),
	    .first_hiding = count_of(&t->hidings, sizeof(struct hiding)),
	    .next = parent == NOBODY ? NOBODY : directory_at(t, parent)->hider,
	};
	int status = LS_OK;

	for (size_t i = count; i-- > 0 && !status;) {
		const struct ls_record *record = ls_union_record(&t->stack, group[i]);
		struct hiding hiding = {group[i].layer, group[i].record};

		if (hides_below(record))
			status = ls_buffer_append(&t->hidings, &hiding, sizeof(hiding), err);
		if (!status && S_ISDIR(record->mode))
			status = ls_buffer_append(&t->sources, &group[i], sizeof(group[i]), err);
	}
	directory.source_count = count_of(&t->sources, sizeof(struct ls_source)) - directory.first_source;
	directory.hiding_count = count_of(&t->hidings, sizeof(struct hiding)) - directory.first_hiding;
	directory.hider = directory.hiding_count ? number : directory.next;
	return status ? status : ls_buffer_append(&t->directories, &directory, sizeof(directory), err);
}

/* The versions of the path that the walk has come to; the directory is queued if any layer has one there. */
static int trace_path(struct trace *t, size_t parent, struct ls_error *err)
{
	const struct ls_union *u = &t->stack;
	size_t hider = parent == NOBODY ? NOBODY : directory_at(t, parent)->hider;
	int status = trace_group(t, hider, u->group, u->group_count, err);

	for (size_t i = 0; i < u->group_count && !status; i++)
		if (S_ISDIR(ls_union_record(u, u->group[i])->mode))
			return add_directory(t, parent, u->group, u->group_count, err);
	return status;
}

static int trace_directory(struct trace *t, size_t number, struct ls_error *err)
{
	const struct directory *directory = directory_at(t, number);
	const struct ls_source *sources = (const struct ls_source *)t->sources.bytes + directory->first_source;
	int status = ls_union_start(&t->stack, sources, directory->source_count, err);

	while (!status && !(status = ls_union_next(&t->stack, err)) && t->stack.group_count)
		status = trace_path(t, number, err);
	return status;
}

static int trace_tree(struct trace *t, struct ls_error *err)
{
	int status = ls_union_root(&t->stack, err);

	if (!status)
		status = trace_path(t, NOBODY, err);
	for (size_t i = 0; !status && i < count_of(&t->directories, sizeof(struct directory)); i++)
		status = trace_directory(t, i, err);
	return status;
}

/* The figures */

/* Note that a visible path leads to the inode. */
static int see_inode(struct trace *t, struct ls_source source, struct ls_error *err)
{
	const struct ls_union *u = &t->stack;
	uint32_t inode;
	int status = ls_union_follow(u, source, &source, err);

	if (status)
		return status;
	inode = ls_union_record(u, source)->inode;
	if (inode >= u->layers[source.layer]->header->record_count)
		return ls_union_fail(u, source, "is a link to an inode that is not there", err);
	t->is_visible[ls_union_place(u, (struct ls_source){source.layer, inode})] = 1;
	return LS_OK;
}

static int see_inodes(struct trace *t, const struct ls_version *versions, size_t count, struct ls_error *err)
{
	int status = LS_OK;

	t->is_visible = calloc(t->stack.record_count, 1);
	if (!t->is_visible)
		return ls_fail(err, LS_NO_MEMORY, "%s: out of memory for %zu records", t->stack.doing,
		               t->stack.record_count);
	for (size_t i = 0; i < count && !status; i++)
		if (versions[i].end == LS_VERSION_VISIBLE)
			status = see_inode(t, (struct ls_source){versions[i].layer, versions[i].record}, err);
	return status;
}

static void count_version(const struct trace *t, const struct ls_version *version, struct ls_layer_figures *figures)
{
	struct ls_source source = {version->layer, version->record};
	const struct ls_record *record = ls_union_record(&t->stack, source);
	struct ls_layer_figures *own = &figures[version->layer];

	if (version->is_change)
		own->changed++;
	else
		own->added++;
	if (version->end != LS_VERSION_VISIBLE && version->end != LS_VERSION_REPLACED)
		figures[version->end_layer].hidden++;
	if (!S_ISREG(record->mode) || record->inode != version->record)
		return;
	own->added_bytes += record->size;
	if (!t->is_visible[ls_union_place(&t->stack, source)])
		own->wasted_bytes += record->size;
}

static int count_versions(struct trace *t, struct ls_layer_figures *figures, struct ls_error *err)
{
	const struct ls_version *versions = (const struct ls_version *)t->versions->bytes;
	size_t count = count_of(t->versions, sizeof(*versions));
	int status = see_inodes(t, versions, count, err);

	if (status)
		return status;
	memset(figures, 0, t->stack.layer_count * sizeof(*figures));
	for (size_t i = 0; i < count; i++)
		count_version(t, &versions[i], figures);
	return LS_OK;
}

static int begin(struct trace *t, const struct ls_index *const *layers, size_t layer_count, struct ls_error *err)
{
	int status = ls_union_init(&t->stack, "tracing layers", layers, layer_count, err);

	if (!status && layers[0]->header->kind != LS_INDEX_LAYER)
		return ls_fail(err, LS_INVALID,
		               "tracing layers: the bottom is a chain, which says nothing of its layers");
	return status;
}

static void end(struct trace *t)
{
	ls_union_free(&t->stack);
	ls_buffer_free(&t->directories);
	ls_buffer_free(&t->sources);
	ls_buffer_free(&t->hidings);
	free(t->is_visible);
}

int ls_provenance(const struct ls_index *const *layers, size_t layer_count, struct ls_buffer *versions,
                  struct ls_layer_figures *figures, struct ls_error *err)
{
	struct trace t = {.versions = versions};
	int status = begin(&t, layers, layer_count, err);

	if (!status)
		status = trace_tree(&t, err);
	if (!status)
		status = count_versions(&t, figures, err);
	end(&t);
	return status;
}

/* One path */

/* The group of the records that the layers have of a path. */
static int look_up(struct ls_union *u, const char *path, size_t length, struct ls_error *err)
{
	u->group_count = 0;
	for (size_t layer = u->layer_count; layer-- > 0;) {
		uint32_t record;
		int status = ls_index_lookup(u->layers[layer], path, length, &record, err);

		if (status)
			return status;
		if (record != LS_NONE)
			u->group[u->group_count++] = (struct ls_source){(uint32_t)layer, record};
	}
	return LS_OK;
}

/* The directories above the path, the root first. */
static int look_above(struct trace *t, const char *path, size_t length, struct ls_error *err)
{
	struct ls_union *u = &t->stack;
	size_t parent = NOBODY;

	for (size_t i = 0; i < length; i++) {
		int status;

		if (i && path[i] != '/')
			continue;
		status = look_up(u, path, i, err);
		if (!status)
			status = add_directory(t, parent, u->group, u->group_count, err);
		if (status)
			return status;
		parent = count_of(&t->directories, sizeof(struct directory)) - 1;
	}
	return LS_OK;
}

int ls_provenance_path(const struct ls_index *const *layers, size_t layer_count, const char *path, size_t length,
                       struct ls_buffer *versions, struct ls_error *err)
{
	struct trace t = {.versions = versions};
	size_t depth;
	int status = begin(&t, layers, layer_count, err);

	if (!status)
		status = look_above(&t, path, length, err);
	if (!status)
		status = look_up(&t.stack, path, length, err);
	if (!status) {
		depth = count_of(&t.directories, sizeof(struct directory));
		status = trace_group(&t, depth ? directory_at(&t, depth - 1)->hider : NOBODY, t.stack.group,
		                     t.stack.group_count, err);
	}
	end(&t);
	return status;
}

int ls_provenance_follow(const struct ls_index *const *layers, size_t layer_count, uint32_t *layer, uint32_t *record,
                         struct ls_error *err)
{
	struct trace t = {0};
	struct ls_source source = {*layer, *record};
	int status = begin(&t, layers, layer_count, err);

	if (!status && (*layer >= layer_count || *record >= layers[*layer]->header->record_count))
		status = ls_fail(err, LS_INVALID, "tracing layers: layer %u of %zu has no record %u", *layer,
		                 layer_count, *record);
	if (!status)
		status = ls_union_follow(&t.stack, source, &source, err);
	if (!status) {
		*layer = source.layer;
		*record = source.record;
	}
	end(&t);
	return status;
}
