/* Merges the layers of a chain into one index, what a union mount of them would show. */
#ifndef LS_MERGE_H
#define LS_MERGE_H

#include "base/buffer.h"
#include "index.h"

/* layers[0] is the bottom and may itself be a chain's index; the others are layer indexes. Merging a chain
 * with the layers above it gives the bytes that merging all of its layers with them gives. Records of the result
 * carry the number of the layer that describes them, counted from the bottom (a chain at the bottom counts for as many
 * as it holds). Whiteouts and opaque marks are applied and gone.
 *
 * An implied directory takes the description of the next lower directory at its path that has one, and stays
 * LS_RECORD_IMPLIED only when there is none; an opaque one too, for it hides what the lower one has in it and not
 * what it is. A lower link is resolved in the view of the layers below its own, following no symlinks, shares the inode
 * if that one is still visible, and is refused (LS_INVALID, naming it) when there is no such non-directory.
 *
 * Contents hold only what a record uses, each digest once, in record order. Time is linear in the records that are
 * visible or directly hidden, times the logarithm of the number of layers that share a directory. Equal input gives
 * equal bytes. The layers need not have been verified: what is wrong with them gives LS_CORRUPT or a wrong view. */
int ls_merge(const struct ls_index *const *layers, size_t layer_count, const uint8_t hash_key[16],
             struct ls_buffer *out, struct ls_error *err);

/* Whether every lower link of the layers from number `first` on can be resolved so, also one that layers above it hide:
 * what makes a tree of one layer after the other meets each. LS_INVALID, naming one that cannot. */
int ls_merge_check_links(const struct ls_index *const *layers, size_t layer_count, size_t first, struct ls_error *err);

#endif
