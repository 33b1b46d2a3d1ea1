#include "network.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

struct making {
	int fd;
	int error;
};

/* In a thread of its own, which the namespace is of until it ends. */
static void *make(void *argument)
{
	struct making *making = argument;

	if (!unshare(CLONE_NEWNET))
		making->fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	making->error = errno;
	return NULL;
}

int ls_network_make(int *fd, struct ls_error *err)
{
	struct making making = {.fd = -1};
	pthread_t thread;

	errno = pthread_create(&thread, NULL, make, &making);
	if (errno)
		return ls_fail_errno(err, "cannot start a thread that makes a network namespace");
	pthread_join(thread, NULL);
	errno = making.error;
	if (making.fd < 0 && errno == EPERM)
		return ls_fail(err, LS_UNSUPPORTED, "cannot make a network namespace: that needs root (CAP_SYS_ADMIN)");
	if (making.fd < 0)
		return ls_fail_errno(err, "cannot make a network namespace");
	*fd = making.fd;
	return LS_OK;
}
