/* Cloning a directory tree within one file system: what a fork or a snapshot of an overlay's upper directory is.
 *
 * Every entry comes along with its type, permission bits, owner, times (nanoseconds), extended attributes (POSIX ACLs,
 * capabilities and overlayfs's own among them: reading trusted.* needs CAP_SYS_ADMIN), holes, device numbers and hard
 * links. The content of a regular file is shared with the original (FICLONE, ioctl_ficlonerange(2)) but for that of
 * LS_CLONE_COPIED_BYTES or less that is not on the disk yet, which is copied: quicker, as cloning waits for the disk. Where
 * the file system cannot share, contents are copied, holes left out. Thread-safe; no global state.
 *
 * *has_copied: whether any content was copied. It may not be on the disk although its file is; what is shared is there
 * before anything that the file system does later.
 *
 * The tree may be in use meanwhile, also as the upper directory of a mounted overlay:
 * - The content of a file is that of one moment where it is shared or at most LS_CLONE_COPIED_BYTES; where it is copied,
 *   what is written meanwhile may be in it or not.
 * - Entries are of different moments. One that goes or moves while its directory is read has the directory read again,
 *   so that a file that is replaced by rename(2), the old or the new one, is always there; LS_CLONE_PASSES times at most.
 * - A file whose data overlayfs is just copying up is taken before or after that, never in between. */
#ifndef LS_CLONE_TREE_H
#define LS_CLONE_TREE_H

#include "base/status.h"

#define LS_CLONE_COPIED_BYTES 4096
#define LS_CLONE_PASSES 16

/* Clone the directory `source`, relative to the directory `source_fd`, to `target`, relative to `target_fd`, which is
 * made unless it is there and empty. Symbolic links are not followed. Beside the target `<target>.links` exists
 * meanwhile when the tree has hard links. Takes two descriptors for each level of depth, so that a depth of 500 is
 * refused with EMFILE under the usual limit. What was made before an error stays, for the caller to remove. */
int ls_clone_tree(int source_fd, const char *source, int target_fd, const char *target, int *has_copied,
                  struct ls_error *err);

#endif
