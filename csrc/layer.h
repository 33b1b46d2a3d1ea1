/* Builds the index of one layer from the entries of its tar, in the tar's order, by the rules of the
 * OCI image specification ("Image Layer Filesystem Changeset") and as docker and umoci apply them:
 *
 * - A path is cleaned ("./a//b/" is "a/b", a leading '/' is dropped); ".." is folded lexically and refused
 *   (LS_INVALID, naming the entry) where it would leave the root. A parent that is a symlink in the same
 *   layer is followed inside the root (at most 40 links), so that entries land where docker puts them.
 * - A later entry replaces an earlier one of the same path; a directory over a directory keeps the
 *   children; anything else over a directory drops them. An entry below a non-directory is refused.
 * - Missing parents are made, LS_RECORD_IMPLIED.
 * - ".wh.NAME" is a whiteout of NAME for the layers below; ".wh..wh..opq" makes its directory opaque;
 *   other names that begin with ".wh..wh." are AUFS's own and dropped; a whiteout of "", "." or ".." is
 *   refused. A whiteout and an entry of the same path in one layer: the entry stays, and a directory is then opaque.
 * - A hard link to a path of the same layer shares its inode (and the content number); to anything else it becomes a
 *   LS_RECORD_LOWER_LINK for the merge to resolve. To a directory of the same layer: refused.
 *
 * Not safe for use by two threads at once. After an error only ls_layer_builder_free is allowed. */
#ifndef LS_LAYER_H
#define LS_LAYER_H

#include "buffer.h"
#include "index.h"
#include "tar.h"

struct ls_layer_builder;

int ls_layer_builder_new(struct ls_layer_builder **builder, struct ls_error *err);
void ls_layer_builder_free(struct ls_layer_builder *builder);

/* Add the tar's next entry. `content` is the number that a regular file's content will have in the contents
 * given to finish, LS_NONE for an empty file and for other types. Everything is copied. */
int ls_layer_builder_add(struct ls_layer_builder *builder, const struct ls_tar_entry *entry, uint32_t content,
                         struct ls_error *err);

/* Write the index. `contents` are kept in this order and number, whether or not a record still uses
 * each: the layer's recipe counts on it. The result does not depend on anything but the arguments. */
int ls_layer_builder_finish(struct ls_layer_builder *builder, const uint8_t hash_key[16],
                            const struct ls_content *contents, uint32_t content_count, struct ls_buffer *out,
                            struct ls_error *err);

#endif
