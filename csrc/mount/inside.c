#include <errno.h>
#include <linux/openat2.h>
#include <string.h>

#include "base/files.h"
#include "inside.h"

#define MAX_RACES 32

int ls_open_inside(int root_fd, const char *path, int flags, int links, int *fd, struct ls_error *err)
{
	uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (links ? 0 : RESOLVE_NO_SYMLINKS);

	*fd = ls_open_resolved(root_fd, path, flags, resolve, MAX_RACES);
	if (*fd >= 0)
		return LS_OK;
	if (errno == ENOSYS)
		return ls_fail(
		    err, LS_UNSUPPORTED,
		    "this kernel cannot open a path inside a root directory (openat2): Linux >= 5.6 is needed");
	return ls_fail_errno(err, "cannot open \"%s\" inside the root directory", LS_SHOWN_TEXT(path));
}
