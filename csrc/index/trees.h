/* Computes the trees of a chain's index: for each directory the digest of what is in it ("Trees" of
 * docs/format/index.md), many directories at once. */
#ifndef LS_TREES_H
#define LS_TREES_H

#include "index.h"

/* Compute the trees of `directories`, record numbers that ascend, to `trees` (the number of a directory's tree is its
 * record's size). The trees of all other directories that are directly in these must be there already. `trees` has
 * header->tree_count of them and may be the index's own. Every offset that is followed is checked: LS_CORRUPT. */
int ls_index_hash_trees(const struct ls_index *index, const uint32_t *directories, size_t count, struct ls_tree *trees,
                        struct ls_error *err);

#endif
