#include "fscontext.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOG_SIZE 512

/* System calls by number: the C library has these wrappers only from glibc 2.36 on. */
static int set_option(const struct ls_fscontext *context, unsigned int command, const char *key, const void *value,
                      int auxiliary)
{
	return (int)syscall(SYS_fsconfig, context->fd, command, key, value, auxiliary);
}

/* Append the messages of the context's log, which reading takes out, to the string in `log`. */
static void drain_log(const struct ls_fscontext *context, char log[LOG_SIZE])
{
	char message[256];
	size_t used = strlen(log);
	ssize_t length;

	while ((length = read(context->fd, message, sizeof(message) - 1)) > 0) {
		size_t start = length > 2 && message[1] == ' ' ? 2 : 0; /* "e ", "w " or "i " */

		while ((size_t)length > start && message[length - 1] == '\n')
			length--;
		if (used + 8 > LOG_SIZE)
			continue;
		if (used) {
			memcpy(log + used, "; ", 2);
			used += 2;
		}
		ls_printable(log + used, LOG_SIZE - used, message + start, (size_t)length - start);
		used += strlen(log + used);
	}
}

static int refuse(const struct ls_fscontext *context, int sys_errno, const char *step, const char *log,
                  struct ls_error *err)
{
	const char *colon = *log ? ": " : "";

	if (sys_errno == EPERM)
		return ls_fail(err, LS_UNSUPPORTED, "cannot mount %s \"%s\": " LS_NEEDS_PRIVILEGE "%s%s", context->what,
		               LS_SHOWN_TEXT(context->subject), colon, log);
	errno = sys_errno;
	return ls_fail_errno(err, "cannot mount %s \"%s\": %s%s%s", context->what, LS_SHOWN_TEXT(context->subject),
	                     step, colon, log);
}

int ls_fscontext_open(struct ls_fscontext *context, struct ls_error *err)
{
	context->fd = (int)syscall(SYS_fsopen, context->type, FSOPEN_CLOEXEC);
	if (context->fd >= 0)
		return LS_OK;
	if (errno == ENOSYS)
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot mount %s: this kernel has no fsopen(2): Linux >= 6.12 is needed for EROFS "
		               "images in files, and >= 6.13 for overlay layers by descriptor",
		               context->what);
	if (errno == ENODEV)
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot mount %s: this kernel has no file system \"%s\": load its module (modprobe %s)",
		               context->what, context->type, context->type);
	return refuse(context, errno, "fsopen", "", err);
}

static int check_option(const struct ls_fscontext *context, int result, const char *key, struct ls_error *err)
{
	char log[LOG_SIZE] = "";
	int saved = errno;

	if (!result)
		return LS_OK;
	drain_log(context, log);
	if (strstr(log, "Unknown parameter"))
		return ls_fail(
		    err, LS_UNSUPPORTED,
		    "cannot mount %s: this kernel's %s does not know the option \"%s\": Linux >= 6.12 is needed",
		    context->what, context->type, key);
	return refuse(context, saved, key, log, err);
}

int ls_fscontext_flag(struct ls_fscontext *context, const char *key, struct ls_error *err)
{
	return check_option(context, set_option(context, FSCONFIG_SET_FLAG, key, NULL, 0), key, err);
}

int ls_fscontext_string(struct ls_fscontext *context, const char *key, const char *value, struct ls_error *err)
{
	return check_option(context, set_option(context, FSCONFIG_SET_STRING, key, value, 0), key, err);
}

static int refuse_directory(const struct ls_fscontext *context, int sys_errno, const char *key, const char *log,
                            struct ls_error *err)
{
	if (strstr(log, "Unknown parameter") || strstr(log, "Bad value"))
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot mount %s: this kernel's overlayfs does not take \"%s\" (%s): Linux >= 6.13 is "
		               "needed for layers by descriptor, and >= 6.12 for EROFS images in files",
		               context->what, key, log);
	return refuse(context, sys_errno, key, log, err);
}

int ls_fscontext_directory(struct ls_fscontext *context, const char *key, int directory_fd, struct ls_error *err)
{
	char path[sizeof("/proc/self/fd/-2147483648")];
	char log[LOG_SIZE] = "";
	int first;

	if (!set_option(context, FSCONFIG_SET_FD, key, NULL, directory_fd))
		return LS_OK;
	first = errno;
	drain_log(context, log);
	/* Before 6.13 a descriptor is EINVAL, and an O_PATH one EBADF for some releases after. */
	if (first == EINVAL || first == EBADF) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", directory_fd);
		if (!set_option(context, FSCONFIG_SET_STRING, key, path, 0))
			return LS_OK;
		drain_log(context, log);
	}
	return refuse_directory(context, first, key, log, err);
}

int ls_fscontext_create(struct ls_fscontext *context, struct ls_error *err)
{
	char log[LOG_SIZE] = "";
	int saved;

	if (!set_option(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return LS_OK;
	saved = errno;
	drain_log(context, log);
	return refuse(context, saved, "the kernel does not accept it", log, err);
}

int ls_fscontext_attach(struct ls_fscontext *context, unsigned int attributes, int target_fd, const char *target,
                        struct ls_error *err)
{
	int mount_fd = (int)syscall(SYS_fsmount, context->fd, FSMOUNT_CLOEXEC, attributes);
	int result, saved;

	if (mount_fd < 0)
		return refuse(context, errno, "fsmount", "", err);
	result = (int)syscall(SYS_move_mount, mount_fd, "", target_fd, target, MOVE_MOUNT_F_EMPTY_PATH);
	saved = errno;
	close(mount_fd);
	return result ? refuse(context, saved, "attaching it", LS_SHOWN_TEXT(target), err) : LS_OK;
}

void ls_fscontext_close(struct ls_fscontext *context)
{
	if (context->fd >= 0)
		close(context->fd);
	context->fd = -1;
}

int ls_mount_detached_read_only(const char *path)
{
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (fd >= 0 && syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attributes, sizeof(attributes))) {
		close(fd);
		return -1;
	}
	return fd;
}
