#include "merge.h"

#include <stdlib.h>
#include <string.h>

#include "base/table.h"
#include "hash/siphash.h"
#include "index_writer.h"
#include "union.h"

/* The merge goes down the tree, directory by directory. A merged directory has sources: the directories of the
 * layers that show through in it, the topmost first. The union of their children gives the records of a name
 * together, and what is visible of them is decided there. Directories are queued as they appear: nodes come out
 * breadth-first and sorted. What is below a hidden directory is never looked at. */

struct directory {
	uint32_t node;
	uint32_t source_count;
	size_t first_source;
};

struct merge {
	struct ls_union stack;
	const uint8_t *hash_key;
	uint32_t *inode_node; /* by place of an inode: the node of its first visible link, LS_NONE before */

	uint8_t *block;              /* as ls_index_write_over takes it */
	struct ls_index_node *nodes; /* in the block */
	uint32_t node_count;
	struct directory *directories;
	size_t directory_count;
	struct ls_source *sources;
	size_t source_count;

	struct ls_content *contents;
	struct ls_table content_numbers; /* by the digest */
};

static int layer_number(const struct merge *m, struct ls_source source, uint16_t *number, struct ls_error *err)
{
	const struct ls_record *record = ls_union_record(&m->stack, source);

	if (record->layer >= m->stack.layers[source.layer]->header->layer_count)
		return ls_union_fail(&m->stack, source, "is of a layer that is not there", err);
	*number = (uint16_t)(m->stack.number[source.layer] + record->layer);
	return LS_OK;
}

/* Whether a content is the one that stands behind the last. */
static int is_same_content(const void *merge, uint32_t number)
{
	const struct merge *m = merge;

	return !memcmp(m->contents[number].digest, m->contents[m->content_numbers.count].digest,
	               sizeof(m->contents->digest));
}

/* The number of a content in the merged index. That its size is the record's is checked by the writer. */
static int put_content(struct merge *m, struct ls_source source, uint32_t *number, struct ls_error *err)
{
	const struct ls_index *layer = m->stack.layers[source.layer];
	const struct ls_content *content;
	uint64_t hash;

	if (*number == LS_NONE)
		return LS_OK;
	if (*number >= layer->header->content_count)
		return ls_union_fail(&m->stack, source, "has a content that is not there", err);
	content = &layer->contents[*number];
	hash = ls_siphash13(m->hash_key, content->digest, sizeof(content->digest));
	m->contents[m->content_numbers.count] = *content;
	return ls_table_number(&m->content_numbers, (uint32_t)hash, is_same_content, m, number, err);
}

/* Give the node the description of a record. */
static int describe(struct merge *m, struct ls_index_node *node, struct ls_source source, struct ls_error *err)
{
	const struct ls_index *layer = m->stack.layers[source.layer];
	const struct ls_record *record = ls_union_record(&m->stack, source);
	size_t xattrs_length = 0;
	int status;

	node->record = (struct ls_index_description){
	    .size = record->size,
	    .mtime_seconds = record->mtime_seconds,
	    .mtime_nanoseconds = record->mtime_nanoseconds,
	    .mode = record->mode,
	    .uid = record->uid,
	    .gid = record->gid,
	    .data = record->data,
	    .flags = record->flags & LS_RECORD_IMPLIED,
	};
	status = layer_number(m, source, &node->record.layer, err);
	if (!status && S_ISREG(record->mode))
		status = put_content(m, source, &node->record.data, err);
	if (!status && S_ISLNK(record->mode))
		status = ls_index_string(layer, record->data, record->size, &node->target, err);
	if (!status && record->xattrs)
		status = ls_index_xattr_block(layer, record->xattrs, &node->xattrs, &xattrs_length, err);
	node->xattrs_length = (uint32_t)xattrs_length;
	return status;
}

/* A node for the inode of a record that is no directory; shared with the inode's other visible links. */
static int put_link(struct merge *m, struct ls_index_node *node, struct ls_source source, struct ls_error *err)
{
	uint32_t inode = ls_union_record(&m->stack, source)->inode;
	uint32_t *first;

	if (inode >= m->stack.layers[source.layer]->header->record_count)
		return ls_union_fail(&m->stack, source, "is a link to an inode that is not there", err);
	first = &m->inode_node[ls_union_place(&m->stack, (struct ls_source){source.layer, inode})];
	if (*first == LS_NONE) {
		*first = node->inode;
		return describe(m, node, source, err);
	}
	node->inode = *first;
	node->record = m->nodes[*first].record;
	return layer_number(m, source, &node->record.layer, err);
}

/* A hard link into the view of the layers below. */
static int put_lower_link(struct merge *m, struct ls_index_node *node, struct ls_source link, struct ls_error *err)
{
	struct ls_source target;
	int status = ls_union_follow(&m->stack, link, &target, err);

	if (!status)
		status = put_link(m, node, target, err);
	return status ? status : layer_number(m, link, &node->record.layer, err);
}

/* The tree of a merged directory in which only one of a chain shows through: it is that one's, with all below. */
static const struct ls_tree *known_tree(const struct merge *m, const struct directory *directory)
{
	struct ls_source source = m->sources[directory->first_source];
	const struct ls_index *layer = m->stack.layers[source.layer];
	uint64_t number = ls_union_record(&m->stack, source)->size;

	if (directory->source_count != 1 || layer->header->kind != LS_INDEX_CHAIN)
		return NULL;
	return number < layer->header->tree_count ? &layer->trees[number] : NULL;
}

/* A directory, from the directories on top of the group. Those down to an opaque one become its sources; the first
 * that is described, even below an opaque one, describes it. */
static int put_directory(struct merge *m, struct ls_index_node *node, const struct ls_source *group, size_t count,
                         struct ls_error *err)
{
	struct directory *directory = &m->directories[m->directory_count++];
	struct ls_source description = group[0];
	int described = 0, opaque = 0;

	*directory = (struct directory){.node = node->inode, .first_source = m->source_count};
	for (size_t i = 0; i < count && !(described && opaque); i++) {
		const struct ls_record *record = ls_union_record(&m->stack, group[i]);

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
static int put_group(struct merge *m, uint32_t parent, struct ls_error *err)
{
	const struct ls_union *u = &m->stack;
	const struct ls_record *top = ls_union_record(u, u->group[0]);
	struct ls_index_node *node;

	if (top->flags & LS_RECORD_WHITEOUT)
		return LS_OK;
	node = &m->nodes[m->node_count];
	*node = (struct ls_index_node){
	    .parent = parent, .inode = m->node_count, .name = u->name, .name_length = (uint16_t)u->name_length};
	m->node_count++;
	if (S_ISDIR(top->mode))
		return put_directory(m, node, u->group, u->group_count, err);
	if (top->flags & LS_RECORD_LOWER_LINK)
		return put_lower_link(m, node, u->group[0], err);
	return put_link(m, node, u->group[0], err);
}

static int merge_directory(struct merge *m, const struct directory *directory, struct ls_error *err)
{
	struct ls_union *u = &m->stack;
	int status = ls_union_start(u, &m->sources[directory->first_source], directory->source_count, err);

	while (!status && !(status = ls_union_next(u, err)) && u->group_count)
		status = put_group(m, directory->node, err);
	return status;
}

static int merge_tree(struct merge *m, struct ls_error *err)
{
	int status = ls_union_root(&m->stack, err);

	if (!status)
		status = put_group(m, 0, err);
	for (size_t i = 0; i < m->directory_count && !status; i++)
		status = merge_directory(m, &m->directories[i], err);
	return status;
}

/* Setting up: no more nodes, sources or contents can come out than the layers have records and contents. Memory that
 * turns out not to be needed is never touched. */

static int count_contents(const struct ls_union *u, size_t *contents, struct ls_error *err)
{
	*contents = 0;
	for (size_t i = 0; i < u->layer_count; i++)
		*contents += u->layers[i]->header->content_count;
	if (*contents >= LS_NONE)
		return ls_fail(err, LS_LIMIT, "merging layers: %zu contents in all, the limit is %u", *contents,
		               LS_NONE - 1);
	return LS_OK;
}

static int allocate(struct merge *m, size_t contents, struct ls_error *err)
{
	size_t records = m->stack.record_count;

	m->inode_node = malloc(records * sizeof(*m->inode_node));
	m->block = malloc(ls_index_block_bytes(records));
	m->directories = malloc(records * sizeof(*m->directories));
	m->sources = malloc(records * sizeof(*m->sources));
	m->contents = malloc((contents + 1) * sizeof(*m->contents));
	if (!m->inode_node || !m->block || !m->directories || !m->sources || !m->contents)
		return ls_fail(err, LS_NO_MEMORY, "merging layers: out of memory for %zu records", records);
	m->nodes = ls_index_nodes(m->block);
	memset(m->inode_node, 0xff, records * sizeof(*m->inode_node));
	return LS_OK;
}

static int merge(struct merge *m, struct ls_buffer *out, struct ls_error *err)
{
	size_t contents;
	uint8_t *block;
	int status = count_contents(&m->stack, &contents, err);

	if (!status)
		status = allocate(m, contents, err);
	if (!status)
		status = merge_tree(m, err);
	if (status)
		return status;
	block = m->block;
	m->block = NULL;
	status = ls_index_write_over(LS_INDEX_CHAIN, m->stack.number_count, m->hash_key, block,
	                             ls_index_block_bytes(m->stack.record_count), m->node_count, m->contents,
	                             m->content_numbers.count, out, err);
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
	struct merge m = {.hash_key = hash_key};
	int status = ls_union_init(&m.stack, "merging layers", layers, layer_count, err);

	if (!status)
		status = merge(&m, out, err);
	ls_union_free(&m.stack);
	free(m.inode_node);
	free(m.block);
	free(m.directories);
	free(m.sources);
	free(m.contents);
	ls_table_free(&m.content_numbers);
	return status;
}

static int check_links(const struct ls_union *u, uint32_t layer, struct ls_error *err)
{
	int status = LS_OK;

	for (uint32_t i = 0; i < u->layers[layer]->header->record_count && !status; i++) {
		struct ls_source link = {layer, i}, target;

		if (ls_union_record(u, link)->flags & LS_RECORD_LOWER_LINK)
			status = ls_union_follow(u, link, &target, err);
	}
	return status;
}

int ls_merge_check_links(const struct ls_index *const *layers, size_t layer_count, size_t first, struct ls_error *err)
{
	struct ls_union u;
	int status = ls_union_init(&u, "looking at the layers of an image", layers, layer_count, err);

	for (size_t i = first; i < layer_count && !status; i++)
		status = check_links(&u, (uint32_t)i, err);
	ls_union_free(&u);
	return status;
}
