/* The extended attributes of a tree image: which of them the inodes share, how much room they take, and their bytes.
 *
 * In an image, the attributes of an inode are a header, the numbers of shared entries, and the inode's own entries.
 * Here a "set" is what one xattr block of the index says; inodes with equal blocks have the same set. An inode with
 * content has, besides its set, overlayfs's metacopy and redirect.
 *
 *     collect() for each inode  ->  share()  ->  size() for each inode  ->  write_shared(), write() for each inode
 *
 * The index and the locations are borrowed. */
#ifndef LS_EROFS_XATTR_H
#define LS_EROFS_XATTR_H

#include "erofs.h"
#include "erofs_format.h"

struct erofs_xattrs;

int erofs_xattrs_new(struct erofs_xattrs **xattrs, const struct ls_index *index, const struct ls_location *locations,
                     struct ls_error *err);
void erofs_xattrs_free(struct erofs_xattrs *xattrs);

/* Count the attributes of the inode of a record; its set (LS_NONE without one) goes to *set. LS_UNSUPPORTED for an
 * attribute that EROFS has no place for, LS_LIMIT for one that is too large, both naming the path. */
int erofs_xattrs_collect(struct erofs_xattrs *xattrs, uint32_t record, uint32_t *set, struct ls_error *err);

/* Decide what is shared, and give it places. LS_LIMIT, naming the path, for a set that fits nowhere. */
int erofs_xattrs_share(struct erofs_xattrs *xattrs, struct ls_error *err);

uint64_t erofs_xattrs_shared_bytes(const struct erofs_xattrs *xattrs);

/* Say where the shared entries begin, relative to the block that shared numbers count from; a multiple of 4. */
void erofs_xattrs_place_shared(struct erofs_xattrs *xattrs, uint32_t offset);

/* What an inode with this set and content (LS_NONE: none) needs after its 64 bytes: 0, or header and more. */
uint32_t erofs_xattrs_size(const struct erofs_xattrs *xattrs, uint32_t set, uint32_t content);

/* Write exactly that, or exactly the shared bytes. */
void erofs_xattrs_write(const struct erofs_xattrs *xattrs, uint32_t set, uint32_t content, uint8_t *out);
void erofs_xattrs_write_shared(const struct erofs_xattrs *xattrs, uint8_t *out);

#endif
