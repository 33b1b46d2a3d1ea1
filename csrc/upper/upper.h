/* What the upper directory of an overlay holds, or a stack of them as one, against the chain below it.
 *
 * Read as overlayfs reads it (Linux, Documentation/filesystems/overlayfs.rst, with metacopy and redirect_dir, and one lower
 * layer: the tree of the chain's index): 0:0 character devices are whiteouts, trusted.overlay.opaque directories hide the
 * chain's, trusted.overlay.redirect says where a moved directory or file was, trusted.overlay.metacopy that a file has
 * the attributes alone and the content of what is below. Of a stack the first is the overlay's upper directory, and the others
 * are lower layers above the chain, top first, which nobody changes.
 *
 * The container may be in use. What goes between the reading of its directory and its own is taken as gone before; what
 * becomes something else in that time is read as that. Nothing is followed, no device or fifo opened. Depth costs neither
 * stack nor descriptors. A path of more than 4,096 bytes is LS_LIMIT. Reading overlayfs's attributes needs CAP_SYS_ADMIN:
 * without it a moved directory is told as a new one. The index must be a chain's (LS_INVALID) and stays the caller's; so
 * do the descriptors of the upper directories, which need not stay open. */
#ifndef LS_UPPER_H
#define LS_UPPER_H

#include "base/bytes.h"
#include "index/index.h"

/* Which file has a content. */
struct ls_upper_content {
	uint64_t device, inode;
	size_t layer;         /* which of the uppers */
	struct ls_bytes path; /* in that one; the entry's in the topmost */
};

/* One entry of a layer that makes of the chain what the container is: what there are, and in which order, says
 * layerstore/trees/entries.py. Sockets count as nothing; of extended attributes, those are left out that begin
 * with trusted.overlay., security.selinux, security.ima or security.evm. */
struct ls_upper_entry {
	struct ls_bytes path; /* without a leading '/'; empty for the root */
	uint32_t mode;        /* as st_mode; 0 for a whiteout, of which the path alone counts */
	uint32_t uid, gid;
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t device_major, device_minor;
	struct ls_bytes target; /* of a symlink */
	struct ls_bytes link;   /* path of an earlier entry of the same inode; the rest is its, but for the content */
	const struct ls_xattr *xattrs; /* sorted by name */
	size_t xattr_count;
	int is_opaque;
	uint64_t size;  /* of a regular file */
	uint32_t lower; /* the chain's record that has the content; LS_NONE: the upper directory's file has it */
	uint64_t device, inode;          /* of that file; of the first in an upper that has several names */
	struct ls_upper_content content; /* where `lower` has none */
	struct ls_bytes bytes; /* the content, where it was read; for the caller to set where `lower` has it */
	int fd;                /* that file, open, where its content was to be read and is too large; else -1 */
};

struct ls_upper;

/* Begin. Contents are left alone, or, `with_contents`, read where they have at most `whole_bytes`: then an entry's
 * size is that of what was read. */
int ls_upper_open(struct ls_upper **upper, const struct ls_index *index, const int *uppers, size_t upper_count,
                  int with_contents, size_t whole_bytes, struct ls_error *err);
void ls_upper_close(struct ls_upper *upper);

/* The next entries, some 1 MiB with their contents; none after the last. They live until the next call, and so do their
 * descriptors: whoever wants to keep one sets `fd` to -1. Of the contents of more than `whole_bytes` a batch has at most
 * one, that of its last entry. Not safe for use by two threads at once; after an error only ls_upper_close is allowed. */
int ls_upper_next(struct ls_upper *upper, struct ls_upper_entry **entries, size_t *count, struct ls_error *err);

#endif
