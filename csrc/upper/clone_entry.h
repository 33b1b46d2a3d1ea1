/* One entry of a tree that is cloned. Private to the clone_*.c. */
#ifndef LS_CLONE_ENTRY_H
#define LS_CLONE_ENTRY_H

#include "clone_impl.h"

/* Fail with the present errno over the entry `name`. */
int ls_clone_fail(const struct ls_clone *clone, const char *name);

/* Clone a regular file; anything but a regular file or directory; a directory's own attributes, once all is in it.
 * The first two return LS_CLONE_CHANGED too, and the first one LS_CLONE_LATER if `may_defer`. */
int ls_clone_file(struct ls_clone *clone, int source_dir, int target_dir, const char *name, int may_defer);
int ls_clone_special(struct ls_clone *clone, int source_dir, int target_dir, const char *name);
/* Of what `status` says, without regard to other names that it has. */
int ls_clone_special_anew(struct ls_clone *clone, int source_dir, int target_dir, const char *name,
                          const struct stat *status);
int ls_clone_attributes(struct ls_clone *clone, int source, int target, const struct stat *status, const char *name);

#endif
