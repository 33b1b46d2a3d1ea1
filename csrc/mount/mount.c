#include "mount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fscontext.h"
#include "mountpoint.h"

#define EROFS_SUPERBLOCK_OFFSET 1024
static const unsigned char EROFS_MAGIC[4] = {0xe2, 0xe1, 0xf5, 0xe0}; /* 0xe0f5e1e2, little-endian */

/* A path as an option's value: itself, or /proc/self/fd/N where it is longer than the kernel reads. */
struct short_path {
	char descriptor[sizeof("/proc/self/fd/-2147483648")];
	const char *text;
	int fd;
};

static int shorten(struct short_path *out, const char *path, struct ls_error *err)
{
	out->fd = -1;
	out->text = path;
	if (strlen(path) < 256)
		return LS_OK;
	out->fd = open(path, O_PATH | O_CLOEXEC);
	if (out->fd < 0)
		return ls_fail_errno(err, "cannot open \"%s\"", LS_SHOWN_TEXT(path));
	snprintf(out->descriptor, sizeof(out->descriptor), "/proc/self/fd/%d", out->fd);
	out->text = out->descriptor;
	return LS_OK;
}

static void release(struct short_path *path)
{
	if (path->fd >= 0)
		close(path->fd);
}

static int has_erofs_magic(const char *path)
{
	unsigned char magic[sizeof(EROFS_MAGIC)];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t length;

	if (fd < 0)
		return 1; /* not known to be wrong */
	length = pread(fd, magic, sizeof(magic), EROFS_SUPERBLOCK_OFFSET);
	close(fd);
	return length == sizeof(magic) && !memcmp(magic, EROFS_MAGIC, sizeof(magic));
}

/* EROFS says why only to the kernel's log, not to the context's: say it in its place. */
static int explain_erofs(const char *image, const char *device, int sys_errno, int status, struct ls_error *err)
{
	const char *shown = LS_SHOWN_TEXT(image);

	if (sys_errno == ENOTBLK)
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot mount the EROFS image \"%s\"%s%s from a file: the store must be on ext4, XFS or "
		               "btrfs (not tmpfs, not an overlay), on Linux >= 6.12 with EROFS_FS_BACKED_BY_FILE",
		               shown, device ? " with device " : "", device ? LS_SHOWN_TEXT(device) : "");
	if (sys_errno == EINVAL && !has_erofs_magic(image))
		return ls_fail(err, LS_CORRUPT, "\"%s\" is not an EROFS image: it has no EROFS superblock", shown);
	if (sys_errno == EUCLEAN || sys_errno == EBADMSG)
		return ls_fail(err, LS_CORRUPT, "the EROFS image \"%s\" is damaged: the kernel's log says how (dmesg)",
		               shown);
	return status;
}

static int configure_erofs(struct ls_fscontext *context, const char *image, const char *device, struct ls_error *err)
{
	int status = ls_fscontext_string(context, "source", image, err);

	if (!status && device)
		status = ls_fscontext_string(context, "device", device, err);
	if (!status)
		status = ls_fscontext_flag(context, "ro", err);
	return status;
}

static int mount_short(const char *image, const char *device, const char *source, const char *source_device,
                       const char *target, struct ls_error *err)
{
	struct ls_fscontext context = {.fd = -1, .type = "erofs", .what = "the EROFS image", .subject = image};
	int status = ls_fscontext_open(&context, err);

	if (!status)
		status = configure_erofs(&context, source, source_device, err);
	if (!status) {
		status = ls_fscontext_create(&context, err);
		if (status == LS_SYSTEM)
			status = explain_erofs(image, device, err->sys_errno, status, err);
	}
	if (!status)
		status = ls_fscontext_attach(&context, MOUNT_ATTR_RDONLY, AT_FDCWD, target, err);
	ls_fscontext_close(&context);
	return status;
}

int ls_mount_erofs(const char *image, const char *device, const char *target, struct ls_error *err)
{
	struct ls_error own;
	struct short_path source = {.fd = -1}, source_device = {.fd = -1};
	int status;

	err = err ? err : &own;
	status = shorten(&source, image, err);
	if (!status && device)
		status = shorten(&source_device, device, err);
	if (!status)
		status = mount_short(image, device, source.text, source_device.text, target, err);
	release(&source);
	release(&source_device);
	return status;
}

int ls_umount(const char *path, int lazy, struct ls_error *err)
{
	return ls_mountpoint_umount(AT_FDCWD, path, lazy, path, err);
}

int ls_is_mounted(const char *path, int *mounted, struct ls_error *err)
{
	return ls_mountpoint_test(AT_FDCWD, path, mounted, err);
}

static int is_filesystem(const char *type)
{
	struct ls_fscontext context = {.fd = -1, .type = type, .what = "", .subject = ""};
	int known = !ls_fscontext_open(&context, NULL);

	ls_fscontext_close(&context);
	return known;
}

void ls_mount_features(struct ls_mount_features *features)
{
	int fd = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);

	*features = (struct ls_mount_features){0};
	features->new_mount_api = fd >= 0 || errno != ENOSYS;
	features->may_mount = fd >= 0 || (errno != EPERM && errno != ENOSYS);
	if (fd >= 0)
		close(fd);
	features->overlay = is_filesystem("overlay");
	features->erofs = is_filesystem("erofs");
}

int ls_syncfs(int fd, struct ls_error *err)
{
	if (syncfs(fd))
		return ls_fail_errno(err, "cannot write the file system of descriptor %d to its device (syncfs)", fd);
	return LS_OK;
}
