/* The part of an index that leads to some of its inodes, found from these: time and memory depend on them and on their depth, but for
 * a bit a record.
 *
 * No state: safe for many threads. Damaged indexes and numbers of no record are LS_CORRUPT. */
#ifndef LS_BRANCHES_H
#define LS_BRANCHES_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "index.h"

/* Append to `out` (of uint32_t) the numbers of all records of these `n` inodes, each given by the number of its first record, and of
 * all directories above them, in ascending order and each once: so the root comes first, a directory before what is in it, and that
 * ordered by name. Where one of them has several names, that takes a pass over the index. */
int ls_index_branches(const struct ls_index *index, const uint32_t *inodes, size_t n, struct ls_buffer *out,
                      struct ls_error *err);

#endif
