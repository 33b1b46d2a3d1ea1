/* The names that changed; read as upper.h says. */
#ifndef LS_UPPER_CHANGES_H
#define LS_UPPER_CHANGES_H

#include "base/buffer.h"
#include "index/index.h"

/* Every path added ('A'), changed ('C') or deleted ('D'), sorted bytewise, appended to `changes` as: u8 kind, u16
 * length, the path with a '/' in front. A directory that the upper one has counts as changed. Below a deleted directory,
 * and below what is no directory any more, nothing is told. Regular files are not looked at. */
int ls_upper_changes(const struct ls_index *index, const int *uppers, size_t upper_count, struct ls_buffer *changes,
                     struct ls_error *err);

#endif
