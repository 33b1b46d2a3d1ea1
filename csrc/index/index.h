/* The path index: one immutable, position-independent buffer that answers for a layer or for a
 * merged chain of layers. docs/format/index.md describes the bytes; this header is the C view of
 * them. Little-endian; sections start at multiples of 8.
 *
 *     header | records | slots | contents | trees | heap
 *
 * Records are in breadth-first order: the root first, then level by level, ordered within a level by
 * (parent's record number, name bytewise). So a parent stands before its children, and the children of
 * a directory are one range. Slots are an open-addressing table (linear probing) over a keyed hash
 * (SipHash-1-3) of the path, the key derived by the writer from the identity of what is indexed, so that equal
 * input gives equal bytes and no archive can be made to collide in it.
 *
 * A chain has a digest for every directory, of all that is below it (a Merkle tree, as git's): two directories that
 * hold the same have the same digest, whatever layers they come from.
 *
 * An ls_index borrows its buffer: keep it alive and unchanged. Reading is safe from many threads.
 * ls_index_open checks the header and the section bounds; every accessor checks the offsets that it
 * follows and fails with LS_CORRUPT, so that damaged bytes give an error and never a wild read. */
#ifndef LS_INDEX_H
#define LS_INDEX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h> /* S_ISDIR and its like, for `mode` */

#include "base/status.h"

#define LS_INDEX_MAGIC "LSINDEX\n"
#define LS_INDEX_VERSION 1u
#define LS_INDEX_MAX_LAYERS 65536u /* a record's layer has 16 bits */
#define LS_INDEX_MAX_RECORDS (1u << 30)
#define LS_INDEX_MAX_HEAP_BYTES UINT32_MAX /* heap offsets have 32 bits */
#define LS_INDEX_MAX_PATH_BYTES 4096u
#define LS_NONE UINT32_MAX

enum ls_index_kind { LS_INDEX_LAYER = 1, LS_INDEX_CHAIN = 2 };

enum ls_record_flags {
	LS_RECORD_WHITEOUT = 1, /* layer only: hides the path in the layers below; nothing else is set */
	LS_RECORD_OPAQUE = 2,   /* layer only: a directory that hides what the layers below have in it */
	LS_RECORD_IMPLIED = 4,  /* a directory that the layer needs but does not describe: mode 0755, owner 0, time 0 */
	LS_RECORD_LOWER_LINK = 8, /* layer only: a hard link to a path of a lower layer; data is the target's path */
};

struct ls_record {
	uint32_t path; /* heap offset, a head stands before it; no leading '/'; the root's is empty */
	uint16_t path_length;
	uint16_t name_start; /* where the last component begins in the path */
	uint32_t parent;     /* record number; the root's is 0 */
	uint32_t mode;       /* as st_mode; 0 for a whiteout and a lower link */
	uint32_t uid, gid;
	uint64_t size; /* regular: bytes; symlink, lower link: bytes of the target; device: major << 32 | minor;
	                  directory of a chain: number of its tree */
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t data;   /* regular: content number, LS_NONE when empty; symlink, lower link: heap offset of the
	                    target; directory: record number of the first child (LS_NONE without) */
	uint32_t count;  /* directory: number of children; others: links to the inode in this index */
	uint32_t inode;  /* record number of the inode's first link in this index: its own unless hard-linked */
	uint32_t xattrs; /* heap offset of an xattr block, 0 for none */
	uint16_t flags;
	uint16_t layer; /* chain: the layer, from 0 at the bottom, that the record comes from */
};

/* A mode of 16 bits and one of the seven types; the others are nothing that a file system can hold. */
static inline int ls_mode_has_type(uint32_t mode)
{
	if (mode > UINT16_MAX)
		return 0;
	return S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode) || S_ISCHR(mode) || S_ISBLK(mode) || S_ISFIFO(mode) ||
	       S_ISSOCK(mode);
}

struct ls_content {
	uint8_t digest[32]; /* BLAKE3-256 of the logical content */
	uint64_t size;      /* bytes, never 0 */
};

/* Of a directory: BLAKE3-256 of what is in it, at any depth. */
struct ls_tree {
	uint8_t digest[32];
};

struct ls_slot {
	uint32_t tag;  /* high 32 bits of the path hash */
	uint32_t path; /* heap offset of the path's head, LS_NONE when free */
};

/* Stands in the heap right before each path, unaligned, so that a lookup goes from the slot to the path and need
 * not touch the record. */
struct ls_path_head {
	uint32_t record;
	uint16_t length;
} __attribute__((packed));

/* An xattr block: u16 count, then for each, sorted by name: u16 name length, u32 value length, name, value. */

struct ls_index_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t kind;
	uint32_t record_count;
	uint32_t content_count;
	uint32_t slot_count;  /* the least power of two from 2 that is at least 1.5 x record_count */
	uint32_t layer_count; /* layer: 1 */
	uint64_t heap_bytes;  /* the first heap byte is 0, so that offset 0 means nothing */
	uint8_t hash_key[16];
	uint32_t tree_count; /* chain: the directories; layer: 0 */
	uint8_t reserved[28];
	uint8_t body_digest[32];  /* BLAKE3-256 of every byte after the header */
	uint8_t header_digest[8]; /* the first 8 bytes of the BLAKE3-256 of the header's bytes before it */
};

_Static_assert(sizeof(struct ls_record) == 64, "format");
_Static_assert(sizeof(struct ls_content) == 40, "format");
_Static_assert(sizeof(struct ls_tree) == 32, "format");
_Static_assert(sizeof(struct ls_slot) == 8, "format");
_Static_assert(sizeof(struct ls_path_head) == 6, "format");
_Static_assert(sizeof(struct ls_index_header) == 128, "format");

struct ls_index {
	const struct ls_index_header *header;
	const struct ls_record *records;
	const struct ls_slot *slots;
	const struct ls_content *contents;
	const struct ls_tree *trees;
	const uint8_t *heap;
};

int ls_index_open(struct ls_index *index, const void *bytes, size_t length, struct ls_error *err);

/* The record of a path of that spelling (no leading '/', no "." or ".."; "" is the root), or LS_NONE. */
int ls_index_lookup(const struct ls_index *index, const char *path, size_t length, uint32_t *record,
                    struct ls_error *err);

/* The same of what is at a name, or several with '/' between, in a directory. */
int ls_index_lookup_below(const struct ls_index *index, uint32_t directory, const char *name, size_t length,
                          uint32_t *record, struct ls_error *err);

/* The same for `n` paths; prefetches across the batch. */
struct ls_path {
	const char *bytes;
	size_t length;
};
int ls_index_find_many(const struct ls_index *index, const struct ls_path *paths, size_t n, uint32_t *records,
                       struct ls_error *err);

/* A record by its number. */
int ls_index_record(const struct ls_index *index, uint32_t number, const struct ls_record **record,
                    struct ls_error *err);

/* The last component of a record's path. */
int ls_index_name(const struct ls_index *index, const struct ls_record *record, const char **name, size_t *length,
                  struct ls_error *err);

/* The records of a directory's children; none for whatever is not a directory. They stand after `number`, so
 * that going down always ends. */
int ls_index_children(const struct ls_index *index, uint32_t number, uint32_t *first, uint32_t *count,
                      struct ls_error *err);

/* The content of a regular file, NULL when it is empty. */
int ls_index_content(const struct ls_index *index, const struct ls_record *file, const struct ls_content **content,
                     struct ls_error *err);

/* The tree of a directory of a chain; LS_CORRUPT where the index has none for it. */
int ls_index_tree(const struct ls_index *index, const struct ls_record *directory, const struct ls_tree **tree,
                  struct ls_error *err);

/* Pointer into the heap, checked. */
int ls_index_string(const struct ls_index *index, uint32_t offset, uint64_t length, const char **string,
                    struct ls_error *err);

/* Walk an xattr block: start with cursor = {0}; LS_OK with name NULL after the last. */
struct ls_xattr_cursor {
	uint32_t position;
	uint32_t left;
	int started;
	const char *name;
	size_t name_length;
	const uint8_t *value;
	size_t value_length;
};
int ls_index_xattr_next(const struct ls_index *index, uint32_t block, struct ls_xattr_cursor *cursor,
                        struct ls_error *err);

/* The bytes of an xattr block, to be copied as they are; NULL and 0 for offset 0. */
int ls_index_xattr_block(const struct ls_index *index, uint32_t block, const uint8_t **bytes, size_t *length,
                         struct ls_error *err);

/* Whether two blocks, of one index or two, are equal. */
int ls_index_same_xattrs(const struct ls_index *a, uint32_t block_a, const struct ls_index *b, uint32_t block_b,
                         int *same, struct ls_error *err);

/* For whoever writes an index. */
uint32_t ls_index_slot_count(uint32_t record_count);
void ls_index_layout(struct ls_index *index, const void *bytes); /* point at the sections that the header describes */

#endif
