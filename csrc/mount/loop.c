#include "loop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICES "/sys/block"
#define BLOCK_SIZE_BYTES 4096
/* Another process may take the number that the kernel has just called free. */
#define MAX_RACES 64

static int fail(struct ls_error *err, const char *what, const char *path)
{
	if (errno == EPERM || errno == EACCES)
		return ls_fail(err, LS_UNSUPPORTED, "cannot %s %s: loop devices need CAP_SYS_ADMIN: run as root", what,
		               path);
	if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot %s %s: it is not there: load the module (modprobe loop), and in a container "
		               "have the devices in /dev",
		               what, path);
	return ls_fail_errno(err, "cannot %s %s", what, path);
}

/* Is this a loop device in use? They have a directory "loop" below theirs; those that are free do not. */
static int is_attached(const char *name)
{
	char path[sizeof(DEVICES "/") + 256 + sizeof("/loop/backing_file")];

	if (strncmp(name, "loop", 4))
		return 0;
	snprintf(path, sizeof(path), DEVICES "/%s/loop/backing_file", name);
	return !access(path, F_OK);
}

/* Does the kernel name the device's file as it names this one? */
static int has_path_of(const char *name, int image_fd)
{
	char link[64], image[PATH_MAX], attached[PATH_MAX],
	    path[sizeof(DEVICES "/") + 256 + sizeof("/loop/backing_file")];
	ssize_t length, own;
	int fd;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", image_fd);
	snprintf(path, sizeof(path), DEVICES "/%s/loop/backing_file", name);
	own = readlink(link, image, sizeof(image));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	length = fd < 0 ? -1 : read(fd, attached, sizeof(attached));
	if (fd >= 0)
		close(fd);
	return own > 0 && length == own + 1 && !memcmp(image, attached, (size_t)own);
}

/* The kernel asks the device's file what it is. May that fail without this file being it? It was looked at just now, so one on
 * a file system that does not answer any more (FUSE or NFS whose server is gone) is another. */
static int is_of_a_dead_file(const char *name, int image_fd, int number)
{
	return number != EPERM && number != EACCES && number != ENOMEM && !has_path_of(name, image_fd);
}

/* Open the device if it is the file's. Returns 1 if it is, 0 if not, -1 with errno. */
static int open_if_of(const char *name, int image_fd, const struct stat *image, struct ls_loop *loop)
{
	struct loop_info64 info;

	snprintf(loop->path, sizeof(loop->path), "/dev/%.20s", name);
	loop->fd = open(loop->path, O_RDWR | O_CLOEXEC);
	if (loop->fd < 0)
		return errno == ENXIO ? 0 : -1;
	if (!ioctl(loop->fd, LOOP_GET_STATUS64, &info)) {
		if (info.lo_inode == image->st_ino && info.lo_device == image->st_dev) {
			loop->direct_io = (info.lo_flags & LO_FLAGS_DIRECT_IO) != 0;
			return 1;
		}
	} else if (errno != ENXIO) {
		int cause = errno;

		if (!is_of_a_dead_file(name, image_fd, cause)) {
			errno = cause;
			return -1;
		}
	}
	close(loop->fd); /* it is another file's, or has none any more */
	loop->fd = -1;
	return 0;
}

int ls_loop_find(int image_fd, struct ls_loop *loop, struct ls_error *err)
{
	DIR *devices = opendir(DEVICES);
	const struct dirent *entry;
	struct stat image;
	int found = 0;

	*loop = (struct ls_loop){.fd = -1};
	if (!devices)
		return fail(err, "look for loop devices in", DEVICES);
	if (fstat(image_fd, &image))
		found = -1;
	while (!found && (entry = readdir(devices)))
		if (is_attached(entry->d_name))
			found = open_if_of(entry->d_name, image_fd, &image, loop);
	if (found < 0) {
		int status = fail(err, "ask which file is attached to", loop->path);

		if (loop->fd >= 0)
			close(loop->fd);
		loop->fd = -1;
		closedir(devices);
		return status;
	}
	closedir(devices);
	return LS_OK;
}

static int open_free(struct ls_loop *loop, struct ls_error *err)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int number;

	if (control < 0)
		return fail(err, "open", "/dev/loop-control");
	number = ioctl(control, LOOP_CTL_GET_FREE);
	close(control);
	if (number < 0)
		return fail(err, "find a free loop device with", "/dev/loop-control");
	snprintf(loop->path, sizeof(loop->path), "/dev/loop%d", number);
	loop->fd = open(loop->path, O_RDWR | O_CLOEXEC);
	return loop->fd < 0 ? fail(err, "open", loop->path) : LS_OK;
}

int ls_loop_attach(int image_fd, struct ls_loop *loop, struct ls_error *err)
{
	struct loop_config config = {
	    .fd = (unsigned int)image_fd,
	    .block_size = BLOCK_SIZE_BYTES,
	    .info = {.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO},
	};
	struct loop_info64 info;

	*loop = (struct ls_loop){.fd = -1};
	for (int race = 0; race < MAX_RACES; race++) {
		int status = open_free(loop, err);

		if (status)
			return status;
		if (!ioctl(loop->fd, LOOP_CONFIGURE, &config)) {
			loop->direct_io =
			    !ioctl(loop->fd, LOOP_GET_STATUS64, &info) && (info.lo_flags & LO_FLAGS_DIRECT_IO);
			return LS_OK;
		}
		if (errno != EBUSY) {
			status = fail(err, "attach a file to", loop->path);
			close(loop->fd);
			loop->fd = -1;
			return status;
		}
		close(loop->fd);
		loop->fd = -1;
	}
	return ls_fail(err, LS_LIMIT, "other processes took %d free loop devices in a row; try again", MAX_RACES);
}

int ls_loop_resize(const struct ls_loop *loop, struct ls_error *err)
{
	if (ioctl(loop->fd, LOOP_SET_CAPACITY))
		return fail(err, "give a new size to", loop->path);
	return LS_OK;
}
