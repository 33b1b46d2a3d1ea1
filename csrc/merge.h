/* Merges the layers of a chain into one index, what a union mount of them would show. */
#ifndef LS_MERGE_H
#define LS_MERGE_H

#include "buffer.h"
#include "index.h"

/* layers[0] is the bottom and may itself be a chain's index; the others are layer indexes. Records of
 * the result carry their layer's number counted from the bottom (a chain at the bottom counts for as many
 * as it holds). Whiteouts and opaque marks are applied and gone; an implied directory takes the description of the next
 * lower one that has it, and stays LS_RECORD_IMPLIED only when no layer describes it. A lower link is resolved in the view of the
 * layers below its own, shares the inode if that one is still visible, and is refused
 * (LS_INVALID, naming it) when there is no such non-directory. Contents hold only what a record uses, each digest once,
 * in record order. Time is linear in the records of all layers. Equal input gives equal bytes. */
int ls_merge(const struct ls_index *const *layers, size_t layer_count, const uint8_t hash_key[16],
             struct ls_buffer *out, struct ls_error *err);

#endif
