/* Writes EROFS images of metadata only, from the on-disk format as the kernel documents it
 * (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h): the tree of a chain, whose files
 * point elsewhere through overlayfs's metacopy and redirect attributes, and the index of a pack,
 * whose files are ranges of the pack, its one extra device. Output is reproducible byte for byte. */
#ifndef LS_EROFS_H
#define LS_EROFS_H

#include "base/buffer.h"
#include "content/contents.h"
#include "content/digests.h"
#include "index/index.h"

/* The tree of a chain index (block size 4,096, no extra devices). Every record: type, mode, owner, size,
 * nanosecond mtime, link count, xattrs. A regular file with content number c carries `trusted.overlay.metacopy`
 * (empty) and `trusted.overlay.redirect` = "/p<pack>/<slot>" or "/<2 hex>/<62 hex of the digest>" for locations[c]
 * (one for each content); its data chunk points past the end of the image, so that reading it without the overlay
 * gives EIO where the kernel fails such reads (Linux >= 7.0, late 6.18). The image's own
 * `trusted.overlay.*` xattrs are escaped as overlayfs reads them back
 * ("trusted.overlay.overlay.*"). A literal 0:0 character device, which overlayfs takes for a whiteout, is left out
 * (see erofs.c). The result goes to `out` (append, `out->length` is 0 at start). Thread-safe; time is linear in
 * records and bytes.
 *
 * An xattr outside user.*, trusted.*, security.* and the POSIX ACLs is left out. LS_LIMIT for what exceeds a limit of EROFS or Linux (docs/format/erofs.md lists them); LS_INVALID for an empty symlink target or a layer's
 * index; LS_CORRUPT for a damaged index. All but the layer's name the path. */
int ls_erofs_write_tree(const struct ls_index *chain, const struct ls_location *locations, struct ls_buffer *out,
                        struct ls_error *err);

#endif
