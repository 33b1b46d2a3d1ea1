/* What reading upper directories and cloning them ask of an entry: its extended attributes, also where it cannot be opened,
 * and whether it is still what it was. Private to this folder. -1 with errno where a system call fails. */
#ifndef LS_XATTRS_H
#define LS_XATTRS_H

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/xattr.h>

/* The most that the kernel gives for the names of an inode's attributes, and for one's value. */
#define LS_XATTRS_BYTES 65536

/* Whose attributes: those of a descriptor, or where there can be none (links, devices) those at a path. */
struct ls_subject {
	int fd; /* -1: at the path */
	char path[sizeof("/proc/self/fd/-2147483648/") + NAME_MAX];
};

static inline struct ls_subject ls_subject_at(int directory_fd, const char *name)
{
	struct ls_subject subject = {.fd = -1};

	snprintf(subject.path, sizeof(subject.path), "/proc/self/fd/%d/%s", directory_fd, name);
	return subject;
}

/* The length of the names, each with its NUL: 0 where the file system has no attributes. */
static inline ssize_t ls_xattrs_list(const struct ls_subject *of, char *names)
{
	ssize_t length =
	    of->fd >= 0 ? flistxattr(of->fd, names, LS_XATTRS_BYTES) : llistxattr(of->path, names, LS_XATTRS_BYTES);

	return length < 0 && errno == EOPNOTSUPP ? 0 : length;
}

/* The length of the value. */
static inline ssize_t ls_xattrs_get(const struct ls_subject *of, const char *name, char *value)
{
	return of->fd >= 0 ? fgetxattr(of->fd, name, value, LS_XATTRS_BYTES)
	                   : lgetxattr(of->path, name, value, LS_XATTRS_BYTES);
}

static inline int ls_xattrs_set(const struct ls_subject *of, const char *name, const char *value, size_t length)
{
	return of->fd >= 0 ? fsetxattr(of->fd, name, value, length, 0) : lsetxattr(of->path, name, value, length, 0);
}

/* Whether errno says that an entry is not what it was when its directory was read. */
static inline int ls_has_changed(int number)
{
	return number == ENOENT || number == ELOOP || number == ENOTDIR || number == EISDIR || number == ENXIO;
}

#endif
