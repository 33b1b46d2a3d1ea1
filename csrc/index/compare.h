/* Compares two chains: what one has that the other has not. */
#ifndef LS_COMPARE_H
#define LS_COMPARE_H

#include "base/buffer.h"
#include "index.h"

enum ls_change_kind { LS_ADDED = 'A', LS_CHANGED = 'C', LS_DELETED = 'D' };

/* One path that differs. */
struct ls_change {
	uint32_t kind; /* enum ls_change_kind */
	uint32_t a, b; /* its record in either, LS_NONE where there is none */
};

/* Append to `changes` a struct ls_change for each path that b has and a has not (added), that both have, with another
 * type, mode, owner, time, size, content, target, device number or xattrs (changed), or that a alone has (deleted).
 * A directory in which something differs is no change for that; below one that was added, deleted, or became or was
 * something else, each path is one. They come as a walk meets them: a directory before what is in it, names bytewise.
 * Which paths are links of one inode, and which layer they come from, makes no difference.
 *
 * Directories with equal trees are not entered, so the time is linear in the children of the directories whose trees
 * differ; `read` is set to the number of records that were compared. Both must be chains (LS_INVALID). They need not
 * have been verified: what is wrong with them gives LS_CORRUPT or a wrong answer. After an error `changes` holds some
 * of them. */
int ls_index_compare(const struct ls_index *a, const struct ls_index *b, struct ls_buffer *changes, uint64_t *read,
                     struct ls_error *err);

#endif
