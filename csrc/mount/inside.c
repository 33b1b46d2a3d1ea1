#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inside.h"

#define MAX_RACES 32

int ls_open_inside(int root_fd, const char *path, int flags, int links, int *fd, struct ls_error *err)
{
	struct open_how how = {
	    .flags = (uint64_t)(unsigned int)(flags | O_CLOEXEC),
	    .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (links ? 0 : RESOLVE_NO_SYMLINKS),
	};
	int races = 0;

	/* EAGAIN: something was renamed while ".." was looked up, and the kernel could not tell whether it stayed inside. */
	do
		*fd = (int)syscall(SYS_openat2, root_fd, path, &how, sizeof(how));
	while (*fd < 0 && (errno == EAGAIN || errno == EINTR) && ++races < MAX_RACES);
	if (*fd >= 0)
		return LS_OK;
	if (errno == ENOSYS)
		return ls_fail(
		    err, LS_UNSUPPORTED,
		    "this kernel cannot open a path inside a root directory (openat2): Linux >= 5.6 is needed");
	return ls_fail_errno(err, "cannot open \"%s\" inside the root directory", LS_SHOWN_TEXT(path));
}
