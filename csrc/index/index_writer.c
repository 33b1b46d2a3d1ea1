#include "index_writer.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/table.h"
#include "hash/blake3.h"
#include "hash/siphash.h"
#include "trees.h"

/* Nodes become records where they are: first they are brought into the records' order, then each is read and the record
 * written over it and what is before it. So an index of millions of paths is not in memory twice. */
struct writer {
	uint8_t *block; /* room for a header, then the nodes; in the end the index */
	size_t block_bytes;
	struct ls_index_node *nodes; /* in the block; those before the record that is being written are gone */
	uint32_t node_count;
	uint32_t record_count;    /* nodes that are written */
	uint32_t directory_count; /* of them */
	enum ls_index_kind kind;
	uint32_t content_count;
	uint32_t layer_count;
	const uint8_t *hash_key;
	const struct ls_content *contents;
	uint32_t *first;      /* by node: where its children begin in `children`; one more to end the last */
	uint32_t *children;   /* node numbers, by parent, then by name */
	uint32_t *order;      /* by record: its node; behind them, those that are not written */
	uint32_t *first_link; /* by record that stands for an inode: the inode's first record, LS_NONE before */
	uint32_t *unhashed;   /* record numbers of the directories whose trees are to be computed */
	uint32_t tree_count, unhashed_count;
	struct ls_table xattrs; /* where the xattr blocks are that are in the heap already */
	struct ls_buffer heap;
	struct ls_tree *trees;
	struct ls_buffer *out;
	size_t slots_at, contents_at, trees_at, heap_at;
};

static struct ls_record *record_at(const struct writer *w, uint32_t number)
{
	return (struct ls_record *)(void *)(w->block + sizeof(struct ls_index_header)) + number;
}

static int fail_node(struct ls_error *err, int status, const struct ls_index_node *node, const char *why)
{
	return ls_fail(err, status, "writing an index: the node named \"%s\" %s",
	               LS_SHOWN(node->name, node->name_length), why);
}

/* Pass 1: group the written nodes by parent, in the order in which they were given. */
static int group_by_parent(struct writer *w, struct ls_error *err)
{
	w->record_count = 1;
	w->directory_count = 1;
	for (uint32_t i = 1; i < w->node_count; i++) {
		uint32_t parent = w->nodes[i].parent;

		if (parent == LS_NONE)
			continue;
		if (parent >= w->node_count)
			return fail_node(err, LS_INVALID, &w->nodes[i], "has a parent that is not there");
		w->first[parent]++;
		w->record_count++;
		w->directory_count += S_ISDIR(w->nodes[i].record.mode);
	}
	if (w->record_count > LS_INDEX_MAX_RECORDS)
		return ls_fail(err, LS_LIMIT, "writing an index: %u paths, the limit is %u", w->record_count,
		               LS_INDEX_MAX_RECORDS);
	/* From counts to the ends of the ranges, which filling them from behind turns into their begins. */
	for (uint32_t p = 1; p <= w->node_count; p++)
		w->first[p] += w->first[p - 1];
	for (uint32_t i = w->node_count - 1; i >= 1; i--)
		if (w->nodes[i].parent != LS_NONE)
			w->children[--w->first[w->nodes[i].parent]] = i;
	return LS_OK;
}

static int compare_names(const struct ls_index_node *a, const struct ls_index_node *b)
{
	return ls_compare(a->name, a->name_length, b->name, b->name_length);
}

static int compare_children(const void *a, const void *b, void *nodes)
{
	const struct ls_index_node *n = nodes;

	return compare_names(&n[*(const uint32_t *)a], &n[*(const uint32_t *)b]);
}

static int is_ascending(const struct writer *w, const uint32_t *children, uint32_t count)
{
	for (uint32_t i = 1; i < count; i++)
		if (compare_names(&w->nodes[children[i - 1]], &w->nodes[children[i]]) >= 0)
			return 0;
	return 1;
}

static int sort_children(struct writer *w, uint32_t *children, uint32_t count, struct ls_error *err)
{
	if (is_ascending(w, children, count))
		return LS_OK;
	qsort_r(children, count, sizeof(*children), compare_children, (void *)w->nodes);
	for (uint32_t i = 1; i < count; i++)
		if (!compare_names(&w->nodes[children[i - 1]], &w->nodes[children[i]]))
			return fail_node(err, LS_INVALID, &w->nodes[children[i]], "is there twice in its directory");
	return LS_OK;
}

static int check_name(const struct ls_index_node *node, struct ls_error *err)
{
	if (!node->name_length || ls_is_dots(node->name, node->name_length))
		return fail_node(err, LS_INVALID, node, "has a name that cannot stand in a directory");
	if (!ls_is_name(node->name, node->name_length))
		return fail_node(err, LS_INVALID, node, "has a '/' or NUL in its name");
	return LS_OK;
}

/* Make room for `length` more bytes of heap, which will begin at `offset`. The heap may move: no pointer into it is kept. */
static int reserve_heap(struct writer *w, size_t length, uint32_t *offset, struct ls_error *err)
{
	size_t used = w->heap.length;

	if (length > LS_INDEX_MAX_HEAP_BYTES - used)
		return ls_fail(err, LS_LIMIT, "writing an index: more than %u bytes of paths and xattrs",
		               LS_INDEX_MAX_HEAP_BYTES);
	*offset = (uint32_t)used;
	return ls_buffer_reserve(&w->heap, length, err);
}

static int append_heap(struct writer *w, const void *bytes, size_t length, uint32_t *offset, struct ls_error *err)
{
	int status = reserve_heap(w, length, offset, err);

	return status ? status : ls_buffer_append(&w->heap, bytes, length, err);
}

static int put_path(struct writer *w, uint32_t number, uint32_t parent, const struct ls_index_node *node,
                    struct ls_error *err)
{
	size_t above = number ? record_at(w, parent)->path_length : 0;
	size_t start = above ? above + 1 : 0;
	size_t length = start + (number ? node->name_length : 0);
	struct ls_path_head head = {number, (uint16_t)length};
	struct ls_record *record;
	uint32_t offset = 0;
	int status;

	if (length > LS_INDEX_MAX_PATH_BYTES)
		return fail_node(err, LS_LIMIT, node, "would have a path of more than 4,096 bytes");
	status = reserve_heap(w, sizeof(head) + length, &offset, err);
	if (status)
		return status;
	record = record_at(w, number);
	record->path = offset + sizeof(head);
	record->path_length = (uint16_t)length;
	record->name_start = (uint16_t)start;
	record->parent = parent;
	/* Room is there, so the parent's path does not move while it is appended, and nothing can fail. */
	ls_buffer_append(&w->heap, &head, sizeof(head), NULL);
	if (start) {
		ls_buffer_append(&w->heap, w->heap.bytes + record_at(w, parent)->path, above, NULL);
		ls_buffer_append(&w->heap, "/", 1, NULL);
	}
	return ls_buffer_append(&w->heap, node->name, length - start, err);
}

struct xattr_block {
	const struct ls_buffer *heap;
	const uint8_t *bytes;
	size_t length;
};

/* A block says itself how long it is, so that none is the beginning of another. */
static int is_block(const void *key, uint32_t offset)
{
	const struct xattr_block *block = key;

	return block->length <= block->heap->length - offset &&
	       !memcmp(block->heap->bytes + offset, block->bytes, block->length);
}

/* The heap offset of a block, which is stored at its first use. */
static int put_xattrs(struct writer *w, const uint8_t *block, size_t length, uint32_t *offset, struct ls_error *err)
{
	struct xattr_block key = {&w->heap, block, length};
	struct ls_table_slot *slot;
	uint32_t hash;
	int status;

	*offset = 0;
	if (!block)
		return LS_OK;
	if (length > LS_INDEX_MAX_HEAP_BYTES)
		return ls_fail(err, LS_LIMIT, "writing an index: %zu bytes of xattrs on one inode", length);
	status = ls_table_reserve(&w->xattrs, err);
	if (status)
		return status;
	hash = (uint32_t)ls_siphash13(w->hash_key, block, length);
	slot = ls_table_find(&w->xattrs, hash, is_block, &key);
	*offset = slot->number;
	if (*offset != LS_TABLE_FREE)
		return LS_OK;
	status = append_heap(w, block, length, offset, err);
	if (!status)
		ls_table_put(&w->xattrs, slot, hash, *offset);
	return status;
}

static int check_flags(const struct writer *w, const struct ls_index_node *node, struct ls_error *err)
{
	const struct ls_index_description *r = &node->record;
	unsigned allowed = S_ISDIR(r->mode) ? LS_RECORD_IMPLIED : 0;

	if (w->kind == LS_INDEX_LAYER)
		allowed |= S_ISDIR(r->mode) ? LS_RECORD_OPAQUE : LS_RECORD_WHITEOUT | LS_RECORD_LOWER_LINK;
	if (r->flags & ~allowed)
		return fail_node(err, LS_INVALID, node, "has flags that its type or the index cannot have");
	if (r->flags & (LS_RECORD_WHITEOUT | LS_RECORD_LOWER_LINK) ? r->mode : !ls_mode_has_type(r->mode))
		return fail_node(err, LS_INVALID, node, "has no type, or one that its flags exclude");
	return LS_OK;
}

static int check_node(const struct writer *w, const struct ls_index_node *node, struct ls_error *err)
{
	const struct ls_index_description *r = &node->record;

	if (r->mtime_nanoseconds >= 1000000000)
		return fail_node(err, LS_INVALID, node, "has a time of 1,000,000,000 nanoseconds or more");
	if (!S_ISREG(r->mode))
		return check_flags(w, node, err);
	if (!r->size != (r->data == LS_NONE))
		return fail_node(err, LS_INVALID, node, "is empty with a content, or not empty without one");
	if (r->size && (r->data >= w->content_count || w->contents[r->data].size != r->size))
		return fail_node(err, LS_INVALID, node, "has a content that is not there or of another size");
	return check_flags(w, node, err);
}

/* The data of a record that is neither a regular file nor a directory. */
static int put_target(struct writer *w, const struct ls_index_node *node, uint32_t *data, struct ls_error *err)
{
	*data = LS_NONE;
	if (!S_ISLNK(node->record.mode) && !(node->record.flags & LS_RECORD_LOWER_LINK))
		return LS_OK;
	if (!node->target || node->record.size > LS_INDEX_MAX_PATH_BYTES)
		return fail_node(err, LS_LIMIT, node, "has a target of more than 4,096 bytes");
	return append_heap(w, node->target, node->record.size, data, err);
}

/* What belongs to the inode, for its first link. */
static int put_inode(struct writer *w, uint32_t number, const struct ls_index_node *node, struct ls_error *err)
{
	const struct ls_index_description *given = &node->record;
	uint32_t data = given->data, xattrs = 0;
	struct ls_record *record;
	int status = check_node(w, node, err);

	if (!status && !S_ISREG(given->mode))
		status = put_target(w, node, &data, err);
	if (!status)
		status = put_xattrs(w, node->xattrs, node->xattrs_length, &xattrs, err);
	if (status)
		return status;
	record = record_at(w, number);
	record->mode = given->mode;
	record->uid = given->uid;
	record->gid = given->gid;
	record->size = given->size;
	record->mtime_seconds = given->mtime_seconds;
	record->mtime_nanoseconds = given->mtime_nanoseconds;
	record->data = data;
	record->count = S_ISDIR(given->mode) ? 0 : 1;
	record->inode = number;
	record->xattrs = xattrs;
	record->flags = given->flags;
	return LS_OK;
}

/* A further link of the inode whose first record is `first`. */
static void put_link(struct writer *w, uint32_t number, uint32_t first)
{
	struct ls_record *record = record_at(w, number);
	struct ls_record link = *record_at(w, first);

	link.path = record->path;
	link.path_length = record->path_length;
	link.name_start = record->name_start;
	link.parent = record->parent;
	*record = link;
	record_at(w, first)->count++;
}

static int put_record(struct writer *w, uint32_t number, const struct ls_index_node *node, struct ls_error *err)
{
	/* Until it has a record the node that stands for the inode is this one or comes later. */
	const struct ls_index_node *inode = node->inode == number ? node : &w->nodes[node->inode];
	uint32_t *first = &w->first_link[node->inode];
	uint32_t mode = *first == LS_NONE ? inode->record.mode : record_at(w, *first)->mode;
	int status = LS_OK;

	if (node->inode != number && (S_ISDIR(node->record.mode) || S_ISDIR(mode)))
		return fail_node(err, LS_INVALID, node, "is a hard link to a directory");
	if (node->record.layer >= w->layer_count)
		return fail_node(err, LS_INVALID, node, "is of a layer that is not there");
	if (number)
		status = check_name(node, err);
	if (!status)
		status = put_path(w, number, node->parent, node, err);
	if (status)
		return status;
	if (*first == LS_NONE) {
		*first = number;
		status = put_inode(w, number, inode, err);
	} else {
		put_link(w, number, *first);
	}
	record_at(w, number)->layer = node->record.layer;
	return status;
}

/* What a record has that only a directory has. */
static void put_directory(struct writer *w, uint32_t number, const struct ls_index_node *node, uint32_t first,
                          uint32_t count)
{
	struct ls_record *record = record_at(w, number);

	record->size = 0;
	record->data = count ? first : LS_NONE;
	record->count = count;
	if (w->kind != LS_INDEX_CHAIN)
		return;
	record->size = w->tree_count++;
	if (node->tree)
		w->trees[record->size] = *node->tree;
	else
		w->unhashed[w->unhashed_count++] = number;
}

/* Pass 2: the order of the records, level by level; `order` is the queue. */
static int order_records(struct writer *w, struct ls_error *err)
{
	uint32_t tail = 1;

	w->order[0] = 0;
	for (uint32_t i = 0; i < tail; i++) {
		uint32_t node = w->order[i];
		uint32_t *children = w->children + w->first[node];
		uint32_t count = w->first[node + 1] - w->first[node];
		int status;

		if (count && !S_ISDIR(w->nodes[node].record.mode))
			return fail_node(err, LS_INVALID, &w->nodes[node], "has children but is not a directory");
		status = sort_children(w, children, count, err);
		if (status)
			return status;
		if (count)
			memcpy(w->order + tail, children, count * sizeof(*children));
		tail += count;
	}
	if (tail != w->record_count)
		return ls_fail(err, LS_INVALID, "writing an index: %u of %u nodes cannot be reached from the root",
		               w->record_count - tail, w->record_count);
	return LS_OK;
}

static int check_inodes(const struct writer *w, struct ls_error *err)
{
	for (uint32_t i = 0; i < w->record_count; i++) {
		const struct ls_index_node *node = &w->nodes[w->order[i]];

		if (node->inode >= w->node_count || w->nodes[node->inode].inode != node->inode)
			return fail_node(err, LS_INVALID, node, "is a link to an inode that is not there");
	}
	return LS_OK;
}

/* Have the first written link of an inode stand for it where the node that did is not written. */
static void describe_link(struct ls_index_node *link, const struct ls_index_node *inode)
{
	uint16_t layer = link->record.layer;

	link->record = inode->record;
	link->record.layer = layer;
	link->target = inode->target;
	link->xattrs = inode->xattrs;
	link->xattrs_length = inode->xattrs_length;
}

/* Pass 3: nodes name others by their records. `number` is by node. */
static void renumber(struct writer *w, uint32_t *number)
{
	uint32_t unwritten = w->record_count;

	memset(number, 0xff, w->node_count * sizeof(*number));
	for (uint32_t i = 0; i < w->record_count; i++)
		number[w->order[i]] = i;
	for (uint32_t i = 0; i < w->record_count; i++) {
		struct ls_index_node *node = &w->nodes[w->order[i]];

		if (number[node->inode] == LS_NONE) {
			describe_link(node, &w->nodes[node->inode]);
			number[node->inode] = i;
		}
		node->inode = number[node->inode];
		node->parent = number[node->parent];
	}
	for (uint32_t i = 0; i < w->node_count; i++)
		if (i && w->nodes[i].parent == LS_NONE)
			w->order[unwritten++] = i;
}

/* Pass 4: bring the nodes into the records' order, cycle by cycle of the permutation. */
static void permute(struct writer *w)
{
	for (uint32_t i = 0; i < w->node_count; i++) {
		struct ls_index_node moved;
		uint32_t at = i;

		if (w->order[i] == i)
			continue;
		moved = w->nodes[i];
		while (w->order[at] != i) {
			uint32_t from = w->order[at];

			w->nodes[at] = w->nodes[from];
			w->order[at] = at;
			at = from;
		}
		w->nodes[at] = moved;
		w->order[at] = at;
	}
}

/* Pass 5: write the records. The children of a directory stand together, behind it. */
static int put_records(struct writer *w, struct ls_error *err)
{
	uint32_t child = 1;
	int status = LS_OK;

	for (uint32_t i = 0; i < w->record_count && !status; i++) {
		struct ls_index_node node = w->nodes[i];
		uint32_t first = child;

		while (child < w->record_count && w->nodes[child].parent == i)
			child++;
		status = put_record(w, i, &node, err);
		if (!status && S_ISDIR(node.record.mode))
			put_directory(w, i, &node, first, child - first);
	}
	return status;
}

/* Pass 6: every link says how many there are. */
static void spread_link_counts(struct writer *w)
{
	struct ls_record *records = record_at(w, 0);

	for (uint32_t i = 0; i < w->record_count; i++)
		if (records[i].inode != i)
			records[i].count = records[records[i].inode].count;
}

/* Pass 7: the trees that are not known. What is read is well-formed. */
static int put_trees(struct writer *w, struct ls_error *err)
{
	struct ls_index index;

	ls_index_layout(&index, w->out->bytes);
	return ls_index_hash_trees(&index, w->unhashed, w->unhashed_count,
	                           (struct ls_tree *)(w->out->bytes + w->trees_at), err);
}

/* Pass 8. The home slots of a window of paths are fetched ahead: in a large index each is a cache miss. */
#define WINDOW 16

static void put_slots(struct writer *w)
{
	const struct ls_record *records = (const struct ls_record *)(w->out->bytes + sizeof(struct ls_index_header));
	struct ls_slot *slots = (struct ls_slot *)(w->out->bytes + w->slots_at);
	const uint8_t *heap = w->out->bytes + w->heap_at;
	uint32_t slot_count = ls_index_slot_count(w->record_count);
	uint64_t hashes[WINDOW];

	memset(slots, 0xff, slot_count * sizeof(*slots));
	for (uint32_t begin = 0; begin < w->record_count; begin += WINDOW) {
		uint32_t n = w->record_count - begin < WINDOW ? w->record_count - begin : WINDOW;

		for (uint32_t i = 0; i < n; i++) {
			const struct ls_record *record = &records[begin + i];

			hashes[i] = ls_siphash13(w->hash_key, heap + record->path, record->path_length);
			__builtin_prefetch(&slots[(uint32_t)hashes[i] & (slot_count - 1)], 1);
		}
		for (uint32_t i = 0; i < n; i++) {
			uint32_t at = (uint32_t)hashes[i] & (slot_count - 1);

			while (slots[at].path != LS_NONE)
				at = (at + 1) & (slot_count - 1);
			slots[at].tag = (uint32_t)(hashes[i] >> 32);
			slots[at].path = records[begin + i].path - sizeof(struct ls_path_head);
		}
	}
}

static int seal(struct writer *w, struct ls_error *err)
{
	struct ls_index_header *header = (struct ls_index_header *)w->out->bytes;
	uint8_t digest[32];
	int status = ls_b3_hash(header + 1, w->out->length - sizeof(*header), header->body_digest, err);

	if (!status)
		status = ls_b3_hash(header, offsetof(struct ls_index_header, header_digest), digest, err);
	if (!status)
		memcpy(header->header_digest, digest, sizeof(header->header_digest));
	return status;
}

/* The header, but for its digests: once the heap is complete. */
static void put_header(struct writer *w)
{
	struct ls_index_header header = {
	    .version = LS_INDEX_VERSION,
	    .kind = w->kind,
	    .record_count = w->record_count,
	    .content_count = w->content_count,
	    .slot_count = ls_index_slot_count(w->record_count),
	    .layer_count = w->layer_count,
	    .heap_bytes = w->out->length - w->heap_at,
	    .tree_count = w->tree_count,
	};

	memcpy(header.magic, LS_INDEX_MAGIC, sizeof(header.magic));
	memcpy(header.hash_key, w->hash_key, sizeof(header.hash_key));
	memcpy(w->out->bytes, &header, sizeof(header));
}

static int append(struct writer *w, const void *bytes, size_t length, size_t *at, struct ls_error *err)
{
	*at = w->out->length;
	return ls_buffer_append(w->out, bytes, length, err);
}

/* The sections, in the block: it is `out` from here on. */
static int lay_out(struct writer *w, struct ls_error *err)
{
	size_t slots_bytes = ls_index_slot_count(w->record_count) * sizeof(struct ls_slot);
	int status;

	ls_buffer_free(w->out);
	*w->out = (struct ls_buffer){
	    .bytes = w->block,
	    .length = sizeof(struct ls_index_header) + w->record_count * sizeof(struct ls_record),
	    .capacity = w->block_bytes,
	};
	w->block = NULL;
	status = append(w, NULL, slots_bytes, &w->slots_at, err);
	if (!status)
		status = append(w, w->contents, w->content_count * sizeof(*w->contents), &w->contents_at, err);
	if (!status)
		status = append(w, w->trees, w->tree_count * sizeof(*w->trees), &w->trees_at, err);
	if (!status)
		status = append(w, w->heap.bytes, w->heap.length, &w->heap_at, err);
	ls_buffer_free(&w->heap);
	if (!status)
		put_header(w);
	return status;
}

static int check_arguments(const struct writer *w, struct ls_error *err)
{
	if (w->out->length)
		return ls_fail(err, LS_INVALID, "writing an index: to a buffer that is not empty");
	if (!w->node_count || w->node_count == LS_NONE || w->nodes[0].parent != 0 || !S_ISDIR(w->nodes[0].record.mode))
		return ls_fail(err, LS_INVALID, "writing an index: node 0 must be the root directory");
	if (w->content_count == LS_NONE)
		return ls_fail(err, LS_LIMIT, "writing an index: too many contents");
	if (w->layer_count > LS_INDEX_MAX_LAYERS)
		return ls_fail(err, LS_LIMIT, "writing an index: %u layers, the limit is %u", w->layer_count,
		               LS_INDEX_MAX_LAYERS);
	if ((w->kind != LS_INDEX_LAYER && w->kind != LS_INDEX_CHAIN) || !w->layer_count ||
	    (w->kind == LS_INDEX_LAYER && w->layer_count != 1))
		return ls_fail(err, LS_INVALID, "writing an index of kind %d: %u layers", w->kind, w->layer_count);
	for (uint32_t i = 0; i < w->content_count; i++)
		if (!w->contents[i].size)
			return ls_fail(err, LS_INVALID, "writing an index: content %u is empty; an empty file has none",
			               i);
	return LS_OK;
}

static uint32_t *numbers(const struct writer *w)
{
	return malloc(((size_t)w->node_count + 1) * sizeof(uint32_t));
}

static int allocate(struct writer *w, struct ls_error *err)
{
	w->first = numbers(w);
	w->children = numbers(w);
	w->order = numbers(w);
	w->unhashed = numbers(w);
	if (!w->first || !w->children || !w->order || !w->unhashed)
		return ls_fail(err, LS_NO_MEMORY, "writing an index: out of memory for %u nodes", w->node_count);
	memset(w->first, 0, ((size_t)w->node_count + 1) * sizeof(*w->first));
	return LS_OK;
}

static int order_nodes(struct writer *w, struct ls_error *err)
{
	int status = group_by_parent(w, err);

	if (!status)
		status = order_records(w, err);
	if (!status)
		status = check_inodes(w, err);
	if (status)
		return status;
	renumber(w, w->children);
	permute(w);
	w->first_link = w->order;
	w->order = NULL;
	memset(w->first_link, 0xff, w->node_count * sizeof(*w->first_link));
	free(w->first);
	free(w->children);
	w->first = w->children = NULL;
	return LS_OK;
}

static int write_records(struct writer *w, struct ls_error *err)
{
	uint32_t offset;
	int status = append_heap(w, NULL, 1, &offset, err);

	if (!status && w->kind == LS_INDEX_CHAIN) {
		w->trees = malloc(w->directory_count * sizeof(*w->trees));
		if (!w->trees)
			status = ls_fail(err, LS_NO_MEMORY, "writing an index: out of memory for %u directories",
			                 w->directory_count);
	}
	if (!status)
		status = put_records(w, err);
	if (!status)
		spread_link_counts(w);
	return status;
}

/* The block may be longer than the index, which may be kept for long. */
static void trim(struct ls_buffer *out)
{
	uint8_t *bytes = realloc(out->bytes, out->length);

	if (!bytes)
		return;
	out->bytes = bytes;
	out->capacity = out->length;
}

static int write_index(struct writer *w, struct ls_error *err)
{
	int status = check_arguments(w, err);

	if (!status)
		status = allocate(w, err);
	if (!status)
		status = order_nodes(w, err);
	if (!status)
		status = write_records(w, err);
	if (!status)
		status = lay_out(w, err);
	if (!status)
		status = put_trees(w, err);
	if (status)
		return status;
	put_slots(w);
	trim(w->out);
	return seal(w, err);
}

int ls_index_write_over(enum ls_index_kind kind, uint32_t layer_count, const uint8_t hash_key[16], uint8_t *block,
                        size_t block_bytes, uint32_t node_count, const struct ls_content *contents,
                        uint32_t content_count, struct ls_buffer *out, struct ls_error *err)
{
	struct writer w = {
	    .kind = kind,
	    .block = block,
	    .block_bytes = block_bytes,
	    .nodes = ls_index_nodes(block),
	    .node_count = node_count,
	    .content_count = content_count,
	    .layer_count = layer_count,
	    .hash_key = hash_key,
	    .contents = contents,
	    .out = out,
	};
	int status = write_index(&w, err);

	free(w.block);
	free(w.first);
	free(w.children);
	free(w.order);
	free(w.first_link);
	free(w.unhashed);
	free(w.trees);
	ls_table_free(&w.xattrs);
	ls_buffer_free(&w.heap);
	if (status)
		out->length = 0;
	return status;
}

int ls_index_write(enum ls_index_kind kind, uint32_t layer_count, const uint8_t hash_key[16],
                   const struct ls_index_node *nodes, uint32_t node_count, const struct ls_content *contents,
                   uint32_t content_count, struct ls_buffer *out, struct ls_error *err)
{
	size_t block_bytes = ls_index_block_bytes(node_count);
	uint8_t *block = malloc(block_bytes);

	if (!block)
		return ls_fail(err, LS_NO_MEMORY, "writing an index: out of memory for %u nodes", node_count);
	if (node_count)
		memcpy(ls_index_nodes(block), nodes, node_count * sizeof(*nodes));
	return ls_index_write_over(kind, layer_count, hash_key, block, block_bytes, node_count, contents, content_count,
	                           out, err);
}
