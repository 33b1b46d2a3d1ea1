/* Which record a path leads to when symbolic links are followed: path_resolution(7), as the kernel does it in a
 * chroot(2) to the root of the index. Absolute targets begin at that root, and ".." of the root is the root; so nothing
 * outside is ever meant. A relative path begins at the root, too. ".." after a link is the parent of where it leads.
 *
 * A path that the kernel would not find is no failure: LS_OK, the record LS_NONE, and sys_errno the kernel's answer:
 * ENOENT, ENOTDIR, ELOOP (more than 40 links), or ENAMETOOLONG (a path of 4096 bytes or more; a name of more than 255
 * that is not there). Whoever reads is taken for root: no permission is asked for.
 *
 * Nothing is allocated. A damaged index gives LS_CORRUPT or another record of it, in time bound by the lengths of the
 * path and of 40 targets. Safe for many threads. */
#ifndef LS_RESOLVE_H
#define LS_RESOLVE_H

#include "index.h"

#define LS_RESOLVE_MAX_LINKS 40

/* follow: also where the path itself is a link (one that has more of the path behind it is followed anyway). */
int ls_resolve(const struct ls_index *index, struct ls_path path, int follow, uint32_t *record, int *sys_errno,
               struct ls_error *err);

/* The same for `n` paths, with cache misses of different paths side by side. */
int ls_resolve_many(const struct ls_index *index, const struct ls_path *paths, size_t n, int follow, uint32_t *records,
                    struct ls_error *err);

/* Where the record of that number leads: a link to its target, everything else to itself. */
int ls_resolve_link(const struct ls_index *index, uint32_t number, uint32_t *record, int *sys_errno,
                    struct ls_error *err);

#endif
