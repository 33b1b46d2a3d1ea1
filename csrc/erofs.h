/* Writes EROFS images of metadata only, from the on-disk format as the kernel documents it
 * (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h): the tree of a chain, whose files
 * point elsewhere through overlayfs's metacopy and redirect attributes, and the index of a pack,
 * whose files are ranges of the pack, its one extra device. Output is reproducible byte for byte. */
#ifndef LS_EROFS_H
#define LS_EROFS_H

#include "buffer.h"
#include "contents.h"
#include "digests.h"
#include "index.h"

/* The tree of a chain index (block size 4,096, zero extra devices). Every record: type, mode, owner, size,
 * nanosecond mtime, link count, xattrs. A regular file with content number c carries `trusted.overlay.metacopy` (empty) and
 * `trusted.overlay.redirect` = "/p<pack>/<slot>" or "/<2 hex>/<62 hex of the digest>" for locations[c]; its data
 * chunk points past the end of the image, so that reading it without the overlay gives EIO, not zeros.
 * The image's own `trusted.overlay.*` xattrs are escaped as overlayfs reads them back
 * ("trusted.overlay.overlay.*"). A literal 0:0 character device is shown as it is in the image only as far as overlayfs can: it
 * must not act as a whiteout (see erofs.c). The result goes to `out` (append, `out->length` is 0 at start). */
int ls_erofs_write_tree(const struct ls_index *chain, const struct ls_location *locations, struct ls_buffer *out,
                        struct ls_error *err);

/* The index of pack `pack`: directory "/p<pack>" with a regular file named by its decimal number for each
 * slot, block size LS_PACK_BLOCK_BYTES, one extra device of `pack_bytes` (a multiple of it). */
int ls_erofs_write_pack(uint32_t pack, uint64_t pack_bytes, const struct ls_pack_slot *slots, uint32_t slot_count,
                        struct ls_buffer *out, struct ls_error *err);

#endif
