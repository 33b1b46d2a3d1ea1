/* The tree image of a chain while it is made: what the passes that lay it out hand to those that write it. Order of
 * the image:
 *
 *     superblock | inodes, each with its xattrs and tail or chunk | shared xattrs | blocks of directories and symlinks
 *
 * Inodes stand in the order of the index: the root first, the children of a directory together. */
#ifndef LS_EROFS_TREE_H
#define LS_EROFS_TREE_H

#include <sys/stat.h>

#include "erofs.h"
#include "erofs_dir.h"
#include "erofs_xattr.h"

#define LS_EROFS_BLOCK_BITS 12
#define LS_EROFS_BLOCK_BYTES 4096u

/* Where the content of every file is said to be: 8 TiB from the start, past the end of any image. Linux >= 7.0 and late
 * 6.18 fail such a read with EIO (eade54040384); a hole would read as zeros in any. */
#define LS_EROFS_NOWHERE_BLOCK 0x7ffffff0u

struct erofs_place {
	uint64_t position;  /* of the inode, bytes from the image's start */
	uint64_t size;      /* directory, symlink: bytes */
	uint32_t blocks;    /* directory, symlink: blocks outside the inode */
	uint32_t block;     /* the first of them */
	uint32_t tail;      /* directory, symlink: bytes after the inode and its xattrs */
	uint32_t xattr_set; /* LS_NONE without one */
	uint32_t xattr_bytes;
	uint32_t subdirectories;
};

struct erofs_tree {
	const struct ls_index *index;
	const struct ls_location *locations;
	struct erofs_xattrs *xattrs;
	struct erofs_place *places; /* one a record; filled for those that are inodes of the image */
	uint64_t inode_count;
	uint64_t shared_position;
	uint64_t image_bytes;
};

/* Fail with a message that names the record's path. Returns `status`. */
__attribute__((format(printf, 5, 6))) int erofs_refuse(const struct ls_index *index, uint32_t record, int status,
                                                       struct ls_error *err, const char *format, ...);

/* A literal 0:0 character device: see erofs.c. */
int erofs_is_hidden(const struct ls_record *record);

/* Whether the record is the one that its inode is written for: shown, and the first of its links. */
int erofs_is_inode(const struct erofs_tree *tree, uint32_t record);

/* The number of a regular file's content, LS_NONE for anything else. */
uint32_t erofs_content(const struct ls_record *record);

/* The number of the inode of a record, once it is placed. */
uint64_t erofs_inode_number(const struct erofs_tree *tree, uint32_t record);

/* Walk the entries of a directory as the image has them: sorted bytewise, "." and ".." among them, hidden ones left
 * out. LS_OK with a NULL name after the last; LS_CORRUPT where names are out of order. */
struct erofs_tree_cursor {
	uint32_t directory;
	uint32_t next; /* child record */
	uint32_t dots; /* of "." and "..", how many were given */
	const char *previous;
	uint16_t previous_length;
};

void erofs_tree_cursor_init(const struct erofs_tree *tree, struct erofs_tree_cursor *cursor, uint32_t directory);
int erofs_tree_next(const struct erofs_tree *tree, struct erofs_tree_cursor *cursor, struct erofs_dir_entry *entry,
                    struct ls_error *err);

#endif
