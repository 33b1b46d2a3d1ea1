/* Uppers of one stack as one upper that shows the same: how a stack stays low. */
#ifndef LS_JOIN_TREES_H
#define LS_JOIN_TREES_H

#include <stddef.h>

#include "base/status.h"

/* Fill the empty directory `target_fd` with what the frozen uppers, top first and on its file system, are together, above
 * whatever is below them: read as upper.h says. Files, links and devices become other names of theirs, whatever their
 * contents. Made anew, with its content shared where the file system can, is a file whose attributes are in one upper and
 * its content in another, and what can have no more names. *has_copied: what was made has content that may not be on the disk before it is synced.
 *
 * Depth costs no descriptors. What was made before an error stays. LS_LIMIT for a path of more than 4,096 bytes.
 * Thread-safe. */
int ls_join_trees(const int *uppers, size_t count, int target_fd, int *has_copied, struct ls_error *err);

#endif
