/* What layer.c and layer_path.c share. */
#ifndef LS_LAYER_IMPL_H
#define LS_LAYER_IMPL_H

#include <sys/stat.h>

#include "base/arena.h"
#include "base/table.h"
#include "hash/siphash.h"
#include "index_writer.h"
#include "layer.h"

#define LEVELS (LS_LAYER_PATH_BYTES / 2) /* "a/a/a": a level takes two bytes, the first one */
#define LINK_ROOM (LS_LAYER_LINK_BYTES + LS_LAYER_LINKS)

/* One path on its way from an archive's spelling to a directory and a name.
 *
 * `rest` holds the cleaned path from LINK_ROOM on; the target of a symlink on the way is put in front of what is left
 * to walk, over what has been walked, and into the room before it.
 *
 * `text`, cut at end[i], is the resolved path of the first i levels, and node[i] is their node (LS_NONE: the layer has
 * none). They stay for the next path, which most often begins with the same directories: all of them are directories
 * and no symlinks, so that they are also what that spelling leads to. A directory that goes is never one of
 * `path`, which then stands at its parent; bury() makes `target` forget. */
struct walk {
	char rest[LINK_ROOM + LS_LAYER_PATH_BYTES];
	size_t length;     /* of the cleaned path */
	size_t name_start; /* where its last component begins in it */
	int is_marked;     /* a component, perhaps folded away since, begins with ".wh." */
	char text[LS_LAYER_PATH_BYTES];
	uint16_t end[LEVELS + 1];
	uint32_t node[LEVELS + 1];
	uint32_t depth;
	unsigned links;    /* symlinks followed */
	size_t link_bytes; /* bytes of their targets */
};

/* Nodes are never taken away. One that is replaced is buried (parent = LS_NONE) and its slot leads to its successor,
 * so that dropping a directory costs the same whatever is below it: a child has a greater number than its parent, and
 * one pass in finish finds those whose parent is buried. A hard link holds a copy of its target's record and names, as
 * its inode, the node of the inode's first link, buried or not; that too has the smaller number.
 *
 * Until finish a node with LS_RECORD_WHITEOUT only says that there was a whiteout of its path; a node that is
 * a whiteout and nothing else has mode 0. */
struct ls_layer_builder {
	uint8_t *block;              /* as ls_index_write_over takes it */
	struct ls_index_node *nodes; /* in the block */
	size_t block_bytes;
	uint32_t node_count;
	struct ls_table children; /* nodes by the hash of parent and name */
	struct ls_arena arena;    /* what lives as long as the builder */
	uint8_t hash_key[LS_SIPHASH_KEY_BYTES];
	uint64_t entries, implied;
	uint64_t xattr_bytes;
	uint64_t bytes; /* ls_layer_builder_bytes */
	const uint8_t *last_xattrs;
	size_t last_xattrs_length;
	const struct ls_tar_entry *entry; /* the one being added, for messages */
	struct walk path, target;
	uint8_t xattrs[LS_LAYER_XATTR_BLOCK_BYTES];
};

static inline int is_directory(const struct ls_index_node *node)
{
	return S_ISDIR(node->record.mode);
}

static inline int is_mere_whiteout(const struct ls_index_node *node)
{
	return !node->record.mode && !(node->record.flags & LS_RECORD_LOWER_LINK);
}

static inline const char *walk_name(const struct walk *walk)
{
	return walk->rest + LINK_ROOM + walk->name_start;
}

static inline size_t walk_name_length(const struct walk *walk)
{
	return walk->length - walk->name_start;
}

static inline size_t walk_path_length(const struct walk *walk)
{
	return walk->end[walk->depth] + 1u + walk_name_length(walk);
}

/* Fail with a message that names the entry being added, which `why` continues. */
int ls_layer_refuse(const struct ls_layer_builder *builder, int status, const char *why, struct ls_error *err);

/* The node of a child, LS_NONE where there is none; `name` has at most LS_LAYER_NAME_BYTES. */
uint32_t ls_layer_find_child(const struct ls_layer_builder *builder, uint32_t parent, const char *name, size_t length);

#endif
