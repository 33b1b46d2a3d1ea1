#include "union.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* The next child of one source. */
struct ls_union_cursor {
	uint64_t prefix; /* the name's first 8 bytes, zero-padded, as a number that orders as they do */
	const char *name;
	size_t name_length;
	uint32_t layer;
	uint32_t record;
	uint32_t end;
	uint32_t parent;
};

int ls_union_fail(const struct ls_union *u, struct ls_source source, const char *why, struct ls_error *err)
{
	return ls_fail(err, LS_CORRUPT, "%s: record %u of layer %u %s; rebuild the layer's index", u->doing,
	               source.record, u->number[source.layer], why);
}

/* Setting up */

/* Number the layers and count their records. */
static int number_layers(struct ls_union *u, struct ls_error *err)
{
	for (size_t i = 0; i < u->layer_count; i++) {
		const struct ls_index_header *header = u->layers[i]->header;

		if (i && header->kind != LS_INDEX_LAYER)
			return ls_fail(err, LS_INVALID, "%s: number %zu is a chain, which only the bottom may be",
			               u->doing, i);
		u->number[i] = u->number_count;
		u->record_base[i] = u->record_count;
		u->number_count += header->layer_count;
		u->record_count += header->record_count;
	}
	if (u->number_count > LS_INDEX_MAX_LAYERS)
		return ls_fail(err, LS_LIMIT, "%s: %u of them, the limit is %u", u->doing, u->number_count,
		               LS_INDEX_MAX_LAYERS);
	if (u->record_count >= LS_NONE)
		return ls_fail(err, LS_LIMIT, "%s: %zu records in all, the limit is %u", u->doing, u->record_count,
		               LS_NONE - 1);
	return LS_OK;
}

int ls_union_init(struct ls_union *u, const char *doing, const struct ls_index *const *layers, size_t layer_count,
                  struct ls_error *err)
{
	*u = (struct ls_union){.layers = layers, .layer_count = layer_count, .doing = doing};
	if (!layer_count || layer_count > LS_INDEX_MAX_LAYERS)
		return ls_fail(err, LS_INVALID, "%s: %zu of them, from 1 to %u can be", doing, layer_count,
		               LS_INDEX_MAX_LAYERS);
	u->number = malloc(layer_count * sizeof(*u->number));
	u->record_base = malloc(layer_count * sizeof(*u->record_base));
	u->group = malloc(layer_count * sizeof(*u->group));
	u->cursors = malloc(layer_count * sizeof(*u->cursors));
	if (!u->number || !u->record_base || !u->group || !u->cursors)
		return ls_fail(err, LS_NO_MEMORY, "%s: out of memory for %zu layers", doing, layer_count);
	return number_layers(u, err);
}

void ls_union_free(struct ls_union *u)
{
	free(u->number);
	free(u->record_base);
	free(u->group);
	free(u->cursors);
	*u = (struct ls_union){0};
}

/* The cursors */

static uint64_t name_prefix(const char *name, size_t length)
{
	uint64_t prefix = 0;

	memcpy(&prefix, name, length < sizeof(prefix) ? length : sizeof(prefix));
	return be64toh(prefix);
}

static int compare_names(const struct ls_union_cursor *a, const struct ls_union_cursor *b)
{
	if (a->prefix != b->prefix)
		return a->prefix < b->prefix ? -1 : 1;
	return ls_compare(a->name, a->name_length, b->name, b->name_length);
}

static int comes_before(const struct ls_union_cursor *a, const struct ls_union_cursor *b)
{
	int order = compare_names(a, b);

	return order < 0 || (order == 0 && a->layer > b->layer);
}

static void sift_down(struct ls_union *u, size_t at)
{
	struct ls_union_cursor moving = u->cursors[at];

	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= u->cursor_count)
			break;
		if (child + 1 < u->cursor_count && comes_before(&u->cursors[child + 1], &u->cursors[child]))
			child++;
		if (!comes_before(&u->cursors[child], &moving))
			break;
		u->cursors[at] = u->cursors[child];
		at = child;
	}
	u->cursors[at] = moving;
}

/* Read the record that the cursor stands at. */
static int load(const struct ls_union *u, struct ls_union_cursor *cursor, struct ls_error *err)
{
	const struct ls_index *layer = u->layers[cursor->layer];
	struct ls_source source = {cursor->layer, cursor->record};
	const struct ls_record *record = ls_union_record(u, source);
	int status = ls_index_name(layer, record, &cursor->name, &cursor->name_length, err);

	if (status)
		return status;
	cursor->prefix = name_prefix(cursor->name, cursor->name_length);
	if (record->parent != cursor->parent)
		return ls_union_fail(u, source, "is not a child of the directory that lists it", err);
	if (layer->header->kind == LS_INDEX_CHAIN &&
	    record->flags & (LS_RECORD_WHITEOUT | LS_RECORD_OPAQUE | LS_RECORD_LOWER_LINK))
		return ls_union_fail(u, source, "has flags that a chain cannot have", err);
	return LS_OK;
}

/* Move the first cursor on, to the next child or out of the heap. */
static int advance(struct ls_union *u, struct ls_error *err)
{
	struct ls_union_cursor before = u->cursors[0];
	int status;

	if (++u->cursors[0].record == before.end) {
		u->cursors[0] = u->cursors[--u->cursor_count];
	} else {
		status = load(u, &u->cursors[0], err);
		if (status)
			return status;
		if (compare_names(&before, &u->cursors[0]) >= 0)
			return ls_union_fail(u, (struct ls_source){before.layer, before.record + 1},
			                     "does not follow the one before it by name", err);
	}
	if (u->cursor_count > 1)
		sift_down(u, 0);
	return LS_OK;
}

int ls_union_start(struct ls_union *u, const struct ls_source *sources, size_t count, struct ls_error *err)
{
	u->cursor_count = 0;
	for (size_t i = 0; i < count; i++) {
		struct ls_source source = sources[i];
		struct ls_union_cursor *cursor = &u->cursors[u->cursor_count];
		uint32_t first, children;
		int status = ls_index_children(u->layers[source.layer], source.record, &first, &children, err);

		if (status)
			return status;
		if (!children)
			continue;
		*cursor = (struct ls_union_cursor){
		    .layer = source.layer, .record = first, .end = first + children, .parent = source.record};
		status = load(u, cursor, err);
		if (status)
			return status;
		u->cursor_count++;
	}
	for (size_t at = u->cursor_count / 2; at-- > 0;)
		sift_down(u, at);
	return LS_OK;
}

int ls_union_next(struct ls_union *u, struct ls_error *err)
{
	struct ls_union_cursor first;
	int status;

	u->group_count = 0;
	if (!u->cursor_count)
		return LS_OK;
	first = u->cursors[0];
	u->name = first.name;
	u->name_length = first.name_length;
	do {
		u->group[u->group_count++] = (struct ls_source){u->cursors[0].layer, u->cursors[0].record};
		status = advance(u, err);
		/* A layer has a name once: should its next one come first, this name's group is complete. */
	} while (!status && u->cursor_count && u->cursors[0].layer != first.layer &&
	         !compare_names(&u->cursors[0], &first));
	return status;
}

int ls_union_root(struct ls_union *u, struct ls_error *err)
{
	u->name = "";
	u->name_length = 0;
	u->group_count = u->layer_count;
	for (size_t i = 0; i < u->layer_count; i++) {
		struct ls_source root = {(uint32_t)(u->layer_count - 1 - i), 0};

		if (!S_ISDIR(ls_union_record(u, root)->mode))
			return ls_union_fail(u, root, "is not a root directory", err);
		u->group[i] = root;
	}
	return LS_OK;
}

/* Lower links */

/* The longest path above this one; the root's is empty. */
static size_t parent_length(const char *path, size_t length)
{
	while (length && path[length - 1] != '/')
		length--;
	return length ? length - 1 : 0;
}

/* Whether a layer that does not have the path hides what lower layers have there: something above it is no directory,
 * or an opaque one. */
static int hides(const struct ls_index *layer, const char *path, size_t length, int *hidden, struct ls_error *err)
{
	*hidden = 0;
	while (length && !*hidden) {
		uint32_t record;
		int status;

		length = parent_length(path, length);
		status = ls_index_lookup(layer, path, length, &record, err);
		if (status)
			return status;
		if (record == LS_NONE)
			continue;
		*hidden = !S_ISDIR(layer->records[record].mode) || layer->records[record].flags & LS_RECORD_OPAQUE;
	}
	return LS_OK;
}

/* What the view of the layers below `layer` shows at a path. */
static int look_below(const struct ls_union *u, uint32_t layer, const char *path, size_t length,
                      struct ls_source *found, struct ls_error *err)
{
	*found = (struct ls_source){0, LS_NONE};
	while (layer-- > 0) {
		uint32_t record;
		int hidden = 0;
		int status = ls_index_lookup(u->layers[layer], path, length, &record, err);

		if (!status && record == LS_NONE)
			status = hides(u->layers[layer], path, length, &hidden, err);
		if (status || hidden)
			return status;
		if (record == LS_NONE)
			continue;
		if (!(u->layers[layer]->records[record].flags & LS_RECORD_WHITEOUT))
			*found = (struct ls_source){layer, record};
		return LS_OK;
	}
	return LS_OK;
}

static int fail_link(const struct ls_union *u, struct ls_source link, struct ls_error *err)
{
	const struct ls_index *layer = u->layers[link.layer];
	const struct ls_record *record = ls_union_record(u, link);
	const char *path, *target;
	int status = ls_index_string(layer, record->path, record->path_length, &path, err);

	if (!status)
		status = ls_index_string(layer, record->data, record->size, &target, err);
	if (status)
		return status;
	return ls_fail(err, LS_INVALID,
	               "%s: \"%s\" of layer %u is a hard link to \"%s\", and the layers below it show no file there; "
	               "the image is broken: build or pull it again",
	               u->doing, LS_SHOWN(path, record->path_length), u->number[link.layer],
	               LS_SHOWN(target, record->size));
}

int ls_union_follow(const struct ls_union *u, struct ls_source link, struct ls_source *found, struct ls_error *err)
{
	*found = link;
	while (ls_union_record(u, *found)->flags & LS_RECORD_LOWER_LINK) {
		const struct ls_record *record = ls_union_record(u, *found);
		const char *target = NULL;
		int status = ls_index_string(u->layers[found->layer], record->data, record->size, &target, err);

		if (!status)
			status = look_below(u, found->layer, target, record->size, found, err);
		if (status)
			return status;
		if (found->record == LS_NONE || S_ISDIR(ls_union_record(u, *found)->mode))
			return fail_link(u, link, err);
	}
	return LS_OK;
}
