/* Builds the index of one layer from the entries of its tar, in the tar's order, by the rules of the
 * OCI image specification ("Image Layer Filesystem Changeset") and as docker and umoci apply them:
 *
 * - A path is cleaned ("./a//b/" is "a/b", a leading '/' is dropped); ".." is folded lexically and refused
 *   (LS_INVALID, naming the entry) where it would leave the root. A parent that is a symlink in the same
 *   layer is followed inside the root as in a chroot (".." of the root is the root; a link may point to what the layer
 *   does not have), so that entries land where docker puts them. The last component is never followed.
 * - A later entry replaces an earlier one of the same path; a directory over a directory keeps the
 *   children; anything else over a directory drops them. An entry below a non-directory is refused.
 * - Missing parents are made, LS_RECORD_IMPLIED. The root is implied until an entry ("./") describes it, and may be
 *   nothing but a directory.
 * - ".wh.NAME" is a whiteout of NAME for the layers below, whatever its type; ".wh..wh..opq" makes its directory
 *   opaque; other names that begin with ".wh..wh." are AUFS's own and dropped with what is below them; a whiteout of
 *   "", "." or ".." is refused, and so is an entry below any other directory named ".wh.NAME". A whiteout and an entry
 *   of the same path in one layer, in either order: the entry stays, and a directory is then opaque.
 * - A hard link to a path of the same layer shares its inode (and the content number), a symlink's too; to anything
 *   else it becomes a LS_RECORD_LOWER_LINK for the merge to resolve (a link to such a one has the same target). The
 *   target's name is cleaned and its parents are followed, as a path's. The inode keeps the mode, owner, times and
 *   xattrs of its first entry, those of the link's own header are ignored; replacing one link leaves the others alone.
 *   Refused: a link to a directory of the same layer, to itself, or to something below itself.
 * - A symlink's mode is 0777, whatever its header says, as Linux has it.
 *
 * Time is linear in the bytes of the paths and the targets followed; memory in those of the entries.
 * Not safe for use by two threads at once. After an error, and after finish, only ls_layer_builder_free is allowed. */
#ifndef LS_LAYER_H
#define LS_LAYER_H

#include "base/buffer.h"
#include "index.h"
#include "tar/tar.h"

/* Limits (LS_LIMIT). */
#define LS_LAYER_PATH_BYTES 4096                 /* a path, cleaned and again when resolved; a symlink's target */
#define LS_LAYER_NAME_BYTES 255                  /* a component, or the name of an xattr */
#define LS_LAYER_LINKS 40                        /* symlinks followed on the way to one path ... */
#define LS_LAYER_LINK_BYTES 4096                 /* ... and the bytes of their targets together */
#define LS_LAYER_XATTR_BLOCK_BYTES 65536         /* the encoded xattrs of one entry */
#define LS_LAYER_XATTR_BYTES ((uint64_t)1 << 30) /* of all entries, a run of equal ones counted once */
/* Implied directories. Replacing a directory and implying what was in it through one symlink, again and again,
 * would otherwise make thousands from three short entries. */
#define LS_LAYER_IMPLIED_BASE 65536u
#define LS_LAYER_IMPLIED_PER_ENTRY 16u

/* What a path takes at most until the index is written, beside its text: of the builder, and of the index. */
#define LS_LAYER_NODE_BYTES 320u

struct ls_layer_builder;

int ls_layer_builder_new(struct ls_layer_builder **builder, struct ls_error *err);
void ls_layer_builder_free(struct ls_layer_builder *builder);

/* Add the tar's next entry. `content` is the number that a regular file's content will have in the contents
 * given to finish, LS_NONE for an empty file and for other types. Everything is copied. An entry that is dropped (a
 * whiteout, or replaced later) has its content's number all the same. */
int ls_layer_builder_add(struct ls_layer_builder *builder, const struct ls_tar_entry *entry, uint32_t content,
                         struct ls_error *err);

/* What the entries so far take in memory and will take in the index: LS_LAYER_NODE_BYTES for each path, those that were
 * replaced counted, the paths themselves, targets of links, and xattrs (a run of equal ones once). */
uint64_t ls_layer_builder_bytes(const struct ls_layer_builder *builder);

/* Write the index to `out`, which starts empty. `contents` are kept in this order and number, whether or not a record
 * still uses each: the layer's recipe counts on it. LS_INVALID where an entry's content is not there or of another
 * size. The result does not depend on anything but the entries and the arguments. */
int ls_layer_builder_finish(struct ls_layer_builder *builder, const uint8_t hash_key[16],
                            const struct ls_content *contents, uint32_t content_count, struct ls_buffer *out,
                            struct ls_error *err);

#endif
