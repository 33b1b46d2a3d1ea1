#include "merge.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "index_writer.h"
#include "siphash.h"

/* The merge goes down the tree, directory by directory. A merged directory has sources: the directories of the
 * layers that show through in it, the topmost first. Their children are sorted, so one pass over all of them, always
 * taking the least name, meets the records of a name together, the topmost layer's first, and what is visible of them
 * is decided there. Directories are queued as they appear: nodes come out breadth-first and sorted. What is
 * below a hidden directory is never looked at.
 *
 * On damaged layers this ends, because a child stands after its parent and names it (checked in `load`): each
 * record is met at most once. */

struct source {
	uint32_t layer;
	uint32_t record;
};

struct directory {
	uint32_t node;
	uint32_t source_count;
	size_t first_source;
};

/* The next child of one source. */
struct cursor {
	uint64_t prefix; /* the name's first 8 bytes, zero-padded, as a number that orders as they do */
	const char *name;
	size_t name_length;
	uint32_t layer;
	uint32_t record;
	uint32_t end;
	uint32_t parent;
};

struct merge {
	const struct ls_index *const *layers;
	size_t layer_count;
	const uint8_t *hash_key;

	uint32_t *number;     /* by layer: the number of its lowest layer in the chain */
	size_t *record_base;  /* by layer: where its records begin in `inode_node` */
	uint32_t *inode_node; /* by inode of a layer: the node of its first visible link, LS_NONE before */

	struct ls_index_node *nodes;
	uint32_t node_count;
	struct directory *directories;
	size_t directory_count;
	struct source *sources;
	size_t source_count;

	struct cursor *cursors; /* a binary heap */
	size_t cursor_count;
	struct source *group; /* the records of one name, the topmost layer's first */

	struct ls_content *contents;
	uint32_t content_count;
	uint32_t *content_slots; /* content numbers by keyed hash of the digest, LS_NONE is free */
	size_t content_mask;
};

static const struct ls_record *source_record(const struct merge *m, struct source source)
{
	return &m->layers[source.layer]->records[source.record];
}

static int fail_source(const struct merge *m, struct source source, const char *why, struct ls_error *err)
{
	return ls_fail(err, LS_CORRUPT, "merging layers: record %u of layer %u %s; rebuild the layer's index",
	               source.record, m->number[source.layer], why);
}

/* The cursors */

static uint64_t name_prefix(const char *name, size_t length)
{
	uint64_t prefix = 0;

	memcpy(&prefix, name, length < sizeof(prefix) ? length : sizeof(prefix));
	return be64toh(prefix);
}

static int compare_names(const struct cursor *a, const struct cursor *b)
{
	size_t shorter = a->name_length < b->name_length ? a->name_length : b->name_length;
	int order;

	if (a->prefix != b->prefix)
		return a->prefix < b->prefix ? -1 : 1;
	order = memcmp(a->name, b->name, shorter);
	if (order)
		return order;
	return (a->name_length > b->name_length) - (a->name_length < b->name_length);
}

static int comes_before(const struct cursor *a, const struct cursor *b)
{
	int order = compare_names(a, b);

	return order < 0 || (order == 0 && a->layer > b->layer);
}

static void sift_down(struct merge *m, size_t at)
{
	struct cursor moving = m->cursors[at];

	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= m->cursor_count)
			break;
		if (child + 1 < m->cursor_count && comes_before(&m->cursors[child + 1], &m->cursors[child]))
			child++;
		if (!comes_before(&m->cursors[child], &moving))
			break;
		m->cursors[at] = m->cursors[child];
		at = child;
	}
	m->cursors[at] = moving;
}

/* Read the record that the cursor stands at. */
static int load(const struct merge *m, struct cursor *cursor, struct ls_error *err)
{
	const struct ls_index *layer = m->layers[cursor->layer];
	struct source source = {cursor->layer, cursor->record};
	const struct ls_record *record = source_record(m, source);
	int status = ls_index_name(layer, record, &cursor->name, &cursor->name_length, err);

	if (status)
		return status;
	cursor->prefix = name_prefix(cursor->name, cursor->name_length);
	if (record->parent != cursor->parent)
		return fail_source(m, source, "is not a child of the directory that lists it", err);
	if (layer->header->kind == LS_INDEX_CHAIN &&
	    record->flags & (LS_RECORD_WHITEOUT | LS_RECORD_OPAQUE | LS_RECORD_LOWER_LINK))
		return fail_source(m, source, "has flags that a chain cannot have", err);
	return LS_OK;
}

/* Move the first cursor on, to the next child or out of the heap. */
static int advance(struct merge *m, struct ls_error *err)
{
	struct cursor before = m->cursors[0];
	int status;

	if (++m->cursors[0].record == before.end) {
		m->cursors[0] = m->cursors[--m->cursor_count];
	} else {
		status = load(m, &m->cursors[0], err);
		if (status)
			return status;
		if (compare_names(&before, &m->cursors[0]) >= 0)
			return fail_source(m, (struct source){before.layer, before.record + 1},
			                   "does not follow the one before it by name", err);
	}
	if (m->cursor_count > 1)
		sift_down(m, 0);
	return LS_OK;
}

static int start_cursors(struct merge *m, const struct directory *directory, struct ls_error *err)
{
	m->cursor_count = 0;
	for (uint32_t i = 0; i < directory->source_count; i++) {
		struct source source = m->sources[directory->first_source + i];
		struct cursor *cursor = &m->cursors[m->cursor_count];
		uint32_t first, count;
		int status = ls_index_children(m->layers[source.layer], source.record, &first, &count, err);

		if (status)
			return status;
		if (!count)
			continue;
		*cursor = (struct cursor){
		    .layer = source.layer, .record = first, .end = first + count, .parent = source.record};
		status = load(m, cursor, err);
		if (status)
			return status;
		m->cursor_count++;
	}
	for (size_t at = m->cursor_count / 2; at-- > 0;)
		sift_down(m, at);
	return LS_OK;
}

/* The nodes */

static int layer_number(const struct merge *m, struct source source, uint16_t *number, struct ls_error *err)
{
	const struct ls_record *record = source_record(m, source);

	if (record->layer >= m->layers[source.layer]->header->layer_count)
		return fail_source(m, source, "is of a layer that is not there", err);
	*number = (uint16_t)(m->number[source.layer] + record->layer);
	return LS_OK;
}

/* The number of a content in the merged index. That its size is the record's is checked by the writer. */
static int put_content(struct merge *m, struct source source, uint32_t *number, struct ls_error *err)
{
	const struct ls_index *layer = m->layers[source.layer];
	const struct ls_content *content;
	size_t at;

	if (*number == LS_NONE)
		return LS_OK;
	if (*number >= layer->header->content_count)
		return fail_source(m, source, "has a content that is not there", err);
	content = &layer->contents[*number];
	at = ls_siphash13(m->hash_key, content->digest, sizeof(content->digest)) & m->content_mask;
	for (; m->content_slots[at] != LS_NONE; at = (at + 1) & m->content_mask) {
		const struct ls_content *other = &m->contents[m->content_slots[at]];

		if (memcmp(other->digest, content->digest, sizeof(content->digest)))
			continue;
		*number = m->content_slots[at];
		return LS_OK;
	}
	m->contents[m->content_count] = *content;
	*number = m->content_slots[at] = m->content_count++;
	return LS_OK;
}

/* Give the node the description of a record. */
static int describe(struct merge *m, struct ls_index_node *node, struct source source, struct ls_error *err)
{
	const struct ls_index *layer = m->layers[source.layer];
	const struct ls_record *record = source_record(m, source);
	int status;

	node->record = *record;
	node->record.flags = record->flags & LS_RECORD_IMPLIED;
	status = layer_number(m, source, &node->record.layer, err);
	if (!status && S_ISREG(record->mode))
		status = put_content(m, source, &node->record.data, err);
	if (!status && S_ISLNK(record->mode))
		status = ls_index_string(layer, record->data, record->size, &node->target, err);
	if (!status && record->xattrs)
		status = ls_index_xattr_block(layer, record->xattrs, &node->xattrs, &node->xattrs_length, err);
	return status;
}

/* A node for the inode of a record that is no directory; shared with the inode's other visible links. */
static int put_link(struct merge *m, struct ls_index_node *node, struct source source, struct ls_error *err)
{
	uint32_t inode = source_record(m, source)->inode;
	uint32_t *first;

	if (inode >= m->layers[source.layer]->header->record_count)
		return fail_source(m, source, "is a link to an inode that is not there", err);
	first = &m->inode_node[m->record_base[source.layer] + inode];
	if (*first == LS_NONE) {
		*first = node->inode;
		return describe(m, node, source, err);
	}
	node->inode = *first;
	node->record = m->nodes[*first].record;
	return layer_number(m, source, &node->record.layer, err);
}

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
static int look_below(const struct merge *m, uint32_t layer, const char *path, size_t length, struct source *found,
                      struct ls_error *err)
{
	*found = (struct source){0, LS_NONE};
	while (layer-- > 0) {
		uint32_t record;
		int hidden = 0;
		int status = ls_index_lookup(m->layers[layer], path, length, &record, err);

		if (!status && record == LS_NONE)
			status = hides(m->layers[layer], path, length, &hidden, err);
		if (status || hidden)
			return status;
		if (record == LS_NONE)
			continue;
		if (!(m->layers[layer]->records[record].flags & LS_RECORD_WHITEOUT))
			*found = (struct source){layer, record};
		return LS_OK;
	}
	return LS_OK;
}

static int fail_lower_link(const struct merge *m, struct source link, struct ls_error *err)
{
	const struct ls_index *layer = m->layers[link.layer];
	const struct ls_record *record = source_record(m, link);
	const char *path, *target;
	char path_text[400], target_text[400];
	int status = ls_index_string(layer, record->path, record->path_length, &path, err);

	if (!status)
		status = ls_index_string(layer, record->data, record->size, &target, err);
	if (status)
		return status;
	ls_printable(path_text, sizeof(path_text), path, record->path_length);
	ls_printable(target_text, sizeof(target_text), target, record->size);
	return ls_fail(
	    err, LS_INVALID,
	    "merging layers: \"%s\" of layer %u is a hard link to \"%s\", and the layers below it show no file "
	    "there; the image is broken: build or pull it again",
	    path_text, m->number[link.layer], target_text);
}

/* A hard link into the view of the layers below. What it finds there may be another such link. */
static int put_lower_link(struct merge *m, struct ls_index_node *node, struct source link, struct ls_error *err)
{
	struct source at = link;
	int status = LS_OK;

	while (source_record(m, at)->flags & LS_RECORD_LOWER_LINK) {
		const struct ls_record *record = source_record(m, at);
		const char *target = NULL;

		status = ls_index_string(m->layers[at.layer], record->data, record->size, &target, err);
		if (!status)
			status = look_below(m, at.layer, target, record->size, &at, err);
		if (status)
			return status;
		if (at.record == LS_NONE || S_ISDIR(source_record(m, at)->mode))
			return fail_lower_link(m, link, err);
	}
	status = put_link(m, node, at, err);
	return status ? status : layer_number(m, link, &node->record.layer, err);
}

/* The tree of a merged directory in which only one of a chain shows through: it is that one's, with all below. */
static const struct ls_tree *known_tree(const struct merge *m, const struct directory *directory)
{
	struct source source = m->sources[directory->first_source];
	const struct ls_index *layer = m->layers[source.layer];
	uint64_t number = source_record(m, source)->size;

	if (directory->source_count != 1 || layer->header->kind != LS_INDEX_CHAIN)
		return NULL;
	return number < layer->header->tree_count ? &layer->trees[number] : NULL;
}

/* A directory, from the directories on top of the group. Those down to an opaque one become its sources; the first
 * that is described, even below an opaque one, describes it. */
static int put_directory(struct merge *m, struct ls_index_node *node, const struct source *group, size_t count,
                         struct ls_error *err)
{
	struct directory *directory = &m->directories[m->directory_count++];
	struct source description = group[0];
	int described = 0, opaque = 0;

	*directory = (struct directory){.node = node->inode, .first_source = m->source_count};
	for (size_t i = 0; i < count && !(described && opaque); i++) {
		const struct ls_record *record = source_record(m, group[i]);

		if (!S_ISDIR(record->mode))
			break;
		if (!opaque) {
			m->sources[m->source_count++] = group[i];
			directory->source_count++;
		}
		if (!described && !(record->flags & LS_RECORD_IMPLIED)) {
			description = group[i];
			described = 1;
		}
		opaque = opaque || record->flags & LS_RECORD_OPAQUE;
	}
	node->tree = known_tree(m, directory);
	return describe(m, node, description, err);
}

/* What is visible of the records of one name. */
static int put_group(struct merge *m, uint32_t parent, const char *name, size_t name_length, const struct source *group,
                     size_t count, struct ls_error *err)
{
	const struct ls_record *top = source_record(m, group[0]);
	struct ls_index_node *node;

	if (top->flags & LS_RECORD_WHITEOUT)
		return LS_OK;
	node = &m->nodes[m->node_count];
	*node = (struct ls_index_node){
	    .parent = parent, .inode = m->node_count, .name = name, .name_length = (uint16_t)name_length};
	m->node_count++;
	if (S_ISDIR(top->mode))
		return put_directory(m, node, group, count, err);
	if (top->flags & LS_RECORD_LOWER_LINK)
		return put_lower_link(m, node, group[0], err);
	return put_link(m, node, group[0], err);
}

static int merge_directory(struct merge *m, const struct directory *directory, struct ls_error *err)
{
	int status = start_cursors(m, directory, err);

	while (m->cursor_count && !status) {
		struct cursor first = m->cursors[0];
		size_t count = 0;

		do {
			m->group[count++] = (struct source){m->cursors[0].layer, m->cursors[0].record};
			status = advance(m, err);
		} while (!status && m->cursor_count && !compare_names(&m->cursors[0], &first));
		if (!status)
			status = put_group(m, directory->node, first.name, first.name_length, m->group, count, err);
	}
	return status;
}

static int merge_tree(struct merge *m, struct ls_error *err)
{
	int status;

	for (size_t i = 0; i < m->layer_count; i++) {
		struct source root = {(uint32_t)(m->layer_count - 1 - i), 0};

		if (!S_ISDIR(source_record(m, root)->mode))
			return fail_source(m, root, "is not a root directory", err);
		m->group[i] = root;
	}
	status = put_group(m, 0, "", 0, m->group, m->layer_count, err);
	for (size_t i = 0; i < m->directory_count && !status; i++)
		status = merge_directory(m, &m->directories[i], err);
	return status;
}

/* Setting up: no more nodes, sources or contents can come out than the layers have records and contents. Memory that
 * turns out not to be needed is never touched. */

static int check_layers(struct merge *m, size_t *records, size_t *contents, uint32_t *chain_layers,
                        struct ls_error *err)
{
	*records = *contents = *chain_layers = 0;
	if (!m->layer_count || m->layer_count > LS_INDEX_MAX_LAYERS)
		return ls_fail(err, LS_INVALID, "merging %zu layers: from 1 to %u can be", m->layer_count,
		               LS_INDEX_MAX_LAYERS);
	for (size_t i = 0; i < m->layer_count; i++) {
		const struct ls_index_header *header = m->layers[i]->header;

		if (i && header->kind != LS_INDEX_LAYER)
			return ls_fail(err, LS_INVALID,
			               "merging layers: number %zu is a chain, which only the bottom may be", i);
		*records += header->record_count;
		*contents += header->content_count;
		*chain_layers += header->layer_count;
	}
	if (*chain_layers > LS_INDEX_MAX_LAYERS)
		return ls_fail(err, LS_LIMIT, "merging layers: %u of them, the limit is %u", *chain_layers,
		               LS_INDEX_MAX_LAYERS);
	if (*records >= LS_NONE || *contents >= LS_NONE)
		return ls_fail(err, LS_LIMIT, "merging layers: %zu records and %zu contents in all, the limit is %u",
		               *records, *contents, LS_NONE - 1);
	return LS_OK;
}

static int allocate(struct merge *m, size_t records, size_t contents, struct ls_error *err)
{
	size_t content_slots = 2;

	while (content_slots < contents + contents / 2)
		content_slots *= 2;
	m->content_mask = content_slots - 1;
	m->number = malloc(m->layer_count * sizeof(*m->number));
	m->record_base = malloc(m->layer_count * sizeof(*m->record_base));
	m->inode_node = malloc(records * sizeof(*m->inode_node));
	m->nodes = malloc(records * sizeof(*m->nodes));
	m->directories = malloc(records * sizeof(*m->directories));
	m->sources = malloc(records * sizeof(*m->sources));
	m->cursors = malloc(m->layer_count * sizeof(*m->cursors));
	m->group = malloc(m->layer_count * sizeof(*m->group));
	m->contents = malloc((contents + 1) * sizeof(*m->contents));
	m->content_slots = malloc(content_slots * sizeof(*m->content_slots));
	if (!m->number || !m->record_base || !m->inode_node || !m->nodes || !m->directories || !m->sources ||
	    !m->cursors || !m->group || !m->contents || !m->content_slots)
		return ls_fail(err, LS_NO_MEMORY, "merging layers: out of memory for %zu records", records);
	memset(m->inode_node, 0xff, records * sizeof(*m->inode_node));
	memset(m->content_slots, 0xff, content_slots * sizeof(*m->content_slots));
	return LS_OK;
}

static void number_layers(struct merge *m)
{
	uint32_t number = 0;
	size_t base = 0;

	for (size_t i = 0; i < m->layer_count; i++) {
		m->number[i] = number;
		m->record_base[i] = base;
		number += m->layers[i]->header->layer_count;
		base += m->layers[i]->header->record_count;
	}
}

/* No string comes out that is not in a layer: reserving once for all saves growing, and costs address space only. */
static int reserve(const struct merge *m, struct ls_buffer *out, struct ls_error *err)
{
	size_t heap = 1;

	for (size_t i = 0; i < m->layer_count; i++)
		heap += m->layers[i]->header->heap_bytes;
	return ls_buffer_reserve(out,
	                         sizeof(struct ls_index_header) + m->node_count * sizeof(struct ls_record) +
	                             ls_index_slot_count(m->node_count) * sizeof(struct ls_slot) +
	                             m->content_count * sizeof(struct ls_content) +
	                             m->directory_count * sizeof(struct ls_tree) + heap,
	                         err);
}

static int merge(struct merge *m, struct ls_buffer *out, struct ls_error *err)
{
	size_t records, contents;
	uint32_t chain_layers;
	int status = check_layers(m, &records, &contents, &chain_layers, err);

	if (!status)
		status = allocate(m, records, contents, err);
	if (status)
		return status;
	number_layers(m);
	status = merge_tree(m, err);
	if (!status)
		status = reserve(m, out, err);
	if (status)
		return status;
	status = ls_index_write(LS_INDEX_CHAIN, chain_layers, m->hash_key, m->nodes, m->node_count, m->contents,
	                        m->content_count, out, err);
	/* The tree is well-formed: what the writer will not take came from a layer. */
	if (status == LS_INVALID) {
		status = LS_CORRUPT;
		if (err)
			err->status = status;
	}
	return status;
}

int ls_merge(const struct ls_index *const *layers, size_t layer_count, const uint8_t hash_key[16],
             struct ls_buffer *out, struct ls_error *err)
{
	struct merge m = {.layers = layers, .layer_count = layer_count, .hash_key = hash_key};
	int status = merge(&m, out, err);

	free(m.number);
	free(m.record_base);
	free(m.inode_node);
	free(m.nodes);
	free(m.directories);
	free(m.sources);
	free(m.cursors);
	free(m.group);
	free(m.contents);
	free(m.content_slots);
	return status;
}
