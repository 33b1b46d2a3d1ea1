/* Removal of the directories of containers, which enters no mount. */
#ifndef LS_REMOVAL_H
#define LS_REMOVAL_H

#include <stddef.h>

#include "base/status.h"

/* Remove names[i] and everything below it, for each; missing is fine. Symbolic links are removed, not followed, and no
 * mount is entered: where names[i]/root is one still, that is LS_SYSTEM with EBUSY and nothing of the container is
 * touched. Depth costs neither stack nor descriptors, of which it needs ten. Goes on after an error; the first one is reported. */
int ls_container_remove_many(int containers_fd, const char *const *names, size_t n, struct ls_error *err);

#endif
