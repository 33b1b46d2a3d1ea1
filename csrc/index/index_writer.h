/* Writes an index from a tree of nodes in any order: what the layer builder and the merge share. It orders the
 * records, joins the paths, counts children and links, fills the heap and the slots, and seals the header. */
#ifndef LS_INDEX_WRITER_H
#define LS_INDEX_WRITER_H

#include "base/buffer.h"
#include "index.h"

/* What is given of a record; the writer computes the rest. As in struct ls_record, but for a regular file's data: its content
 * number or LS_NONE. */
struct ls_index_description {
	uint64_t size;
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t mode;
	uint32_t uid, gid;
	uint32_t data;
	uint16_t flags;
	uint16_t layer;
};

/* Strings are borrowed until ls_index_write returns. A layer may have millions of nodes: they are kept small. */
struct ls_index_node {
	struct ls_index_description record;
	uint32_t parent; /* node number; node 0 is the root, its own parent; LS_NONE: this node is not
	                    written (nor may a written one be its child) */
	uint32_t inode;  /* the node number of one link of the inode, equal for all its links and so its
	                    own for that one; what belongs to the inode (record but for layer, target,
	                    xattrs) is taken from that node, even if it is not written */
	uint32_t xattrs_length;
	uint16_t name_length;
	const char *name; /* last component */
	union {
		const char *target;         /* symlink and lower link: record.size bytes; else NULL */
		const struct ls_tree *tree; /* directory of a chain: its tree where that is known, so that it need not
		                               be computed; else NULL */
	};
	const uint8_t *xattrs; /* an encoded xattr block, NULL for none; equal blocks are stored once */
};

_Static_assert(sizeof(struct ls_index_node) <= 80, "LS_LAYER_NODE_BYTES counts on it");

/* Nodes in memory of malloc, behind room for the header of an index. */
static inline size_t ls_index_block_bytes(size_t node_count)
{
	return sizeof(struct ls_index_header) + node_count * sizeof(struct ls_index_node);
}

static inline struct ls_index_node *ls_index_nodes(uint8_t *block)
{
	return (struct ls_index_node *)(void *)(block + sizeof(struct ls_index_header));
}

/* Write the index of the tree. Names must differ within a directory, be neither empty nor "." nor "..", contain neither
 * '/' nor NUL (LS_INVALID), and form paths of at most LS_INDEX_MAX_PATH_BYTES (LS_LIMIT, as for the other limits of
 * index.h). The result is appended to `out`, which starts empty, and depends on nothing but the arguments (not on
 * the order of nodes, as far as equal inodes are given equal descriptions). Near-linear: children that come sorted are
 * not sorted again. After an error `out` holds no index. */
int ls_index_write(enum ls_index_kind kind, uint32_t layer_count, const uint8_t hash_key[16],
                   const struct ls_index_node *nodes, uint32_t node_count, const struct ls_content *contents,
                   uint32_t content_count, struct ls_buffer *out, struct ls_error *err);

/* The same of nodes in a block of so many bytes, which is taken over, whatever comes of it: the index is written where they
 * are, so that it takes little memory beside it. */
int ls_index_write_over(enum ls_index_kind kind, uint32_t layer_count, const uint8_t hash_key[16], uint8_t *block,
                        size_t block_bytes, uint32_t node_count, const struct ls_content *contents,
                        uint32_t content_count, struct ls_buffer *out, struct ls_error *err);

#endif
