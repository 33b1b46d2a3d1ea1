/* Whether an index is what was written. */
#ifndef LS_INDEX_VERIFY_H
#define LS_INDEX_VERIFY_H

#include "index.h"

/* Compare body_digest and walk everything once: order, parents, ranges, links, xattr blocks, slots; the trees are
 * hashed again. */
int ls_index_verify(const struct ls_index *index, struct ls_error *err);

/* Only compare the digest of all bytes with the header's: what was written whole and verified before is still so. */
int ls_index_verify_digest(const struct ls_index *index, struct ls_error *err);

#endif
