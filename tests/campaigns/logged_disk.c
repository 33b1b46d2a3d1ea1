/* A disk that remembers: a FUSE file system whose file `disk` is an image, and which logs every write and flush of it.
 *
 *     logged_disk IMAGE LOG MOUNTPOINT
 *
 * `disk` is as long as IMAGE and shows it. Whatever is written to it, or zeroed or punched (fallocate), is done to IMAGE at
 * once and appended to LOG; an fsync, which is what a loop device makes of FLUSH and FUA, is a record of its own. What is
 * written to `mark` is logged as it is: how whoever uses the disk says at which point of the log they are.
 *
 * One thread, so the log has the order in which requests were answered: a flush covers all records before it. The
 * records are read by tests/campaigns/logged_disk.py. */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { WRITE = 1, ZERO = 2, FLUSH = 3, MARK = 4 };

struct record {
	uint64_t kind;
	uint64_t offset;
	uint64_t length; /* of a WRITE and a MARK this many bytes follow */
};

static int image_fd, log_fd;
static off_t disk_bytes;

static int write_all(int fd, const void *bytes, size_t length, off_t offset)
{
	const char *from = bytes;

	while (length) {
		ssize_t done = offset < 0 ? write(fd, from, length) : pwrite(fd, from, length, offset);

		if (done < 0)
			return -errno;
		from += done;
		length -= (size_t)done;
		offset += offset < 0 ? 0 : done;
	}
	return 0;
}

/* A log without a record would have states that never were: then nothing is answered any more. */
static void log_record(enum kind kind, off_t offset, const void *bytes, size_t length)
{
	struct record record = {kind, (uint64_t)offset, length};

	if (write_all(log_fd, &record, sizeof(record), -1) || (bytes && write_all(log_fd, bytes, length, -1))) {
		perror("logged_disk: cannot write the log");
		abort();
	}
}

static int is_disk(const char *path)
{
	return !strcmp(path, "/disk");
}

static int is_mark(const char *path)
{
	return !strcmp(path, "/mark");
}

static int disk_getattr(const char *path, struct stat *status, struct fuse_file_info *file)
{
	(void)file;
	memset(status, 0, sizeof(*status));
	status->st_nlink = 1;
	status->st_mode = S_IFREG | 0600;
	if (!strcmp(path, "/"))
		status->st_mode = S_IFDIR | 0700;
	else if (is_disk(path))
		status->st_size = disk_bytes;
	else if (!is_mark(path))
		return -ENOENT;
	return 0;
}

static int disk_open(const char *path, struct fuse_file_info *file)
{
	if (!is_disk(path) && !is_mark(path))
		return -ENOENT;
	file->direct_io = 1; /* each write is a request, as the kernel issued it */
	return 0;
}

static int disk_read(const char *path, char *into, size_t length, off_t offset, struct fuse_file_info *file)
{
	ssize_t done = is_disk(path) ? pread(image_fd, into, length, offset) : 0;

	(void)file;
	return done < 0 ? -errno : (int)done;
}

static int disk_write(const char *path, const char *from, size_t length, off_t offset, struct fuse_file_info *file)
{
	int status;

	(void)file;
	if (is_mark(path)) {
		log_record(MARK, 0, from, length);
		return (int)length;
	}
	if (offset + (off_t)length > disk_bytes)
		return -ENOSPC;
	status = write_all(image_fd, from, length, offset);
	if (status)
		return status;
	log_record(WRITE, offset, from, length);
	return (int)length;
}

/* A device that discards may give back anything after that; this one gives back zeros. */
static int disk_fallocate(const char *path, int mode, off_t offset, off_t length, struct fuse_file_info *file)
{
	(void)file;
	if (!is_disk(path) || !(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
		return -EOPNOTSUPP;
	if (fallocate(image_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length))
		return -errno;
	log_record(ZERO, offset, NULL, (size_t)length);
	return 0;
}

static int disk_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
	(void)data_only;
	(void)file;
	if (is_disk(path))
		log_record(FLUSH, 0, NULL, 0);
	return 0;
}

static int disk_truncate(const char *path, off_t size, struct fuse_file_info *file)
{
	(void)size;
	(void)file;
	return is_mark(path) ? 0 : -EPERM;
}

static void *disk_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
	connection->max_write = 1 << 20;
	config->nullpath_ok = 0;
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct fuse_operations operations = {
	    .getattr = disk_getattr,
	    .open = disk_open,
	    .read = disk_read,
	    .write = disk_write,
	    .fallocate = disk_fallocate,
	    .fsync = disk_fsync,
	    .truncate = disk_truncate,
	    .init = disk_init,
	};
	struct stat status;

	if (argc != 4) {
		fprintf(stderr, "usage: %s IMAGE LOG MOUNTPOINT\n", argv[0]);
		return 2;
	}
	image_fd = open(argv[1], O_RDWR | O_CLOEXEC);
	log_fd = open(argv[2], O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
	if (image_fd < 0 || log_fd < 0 || fstat(image_fd, &status)) {
		perror("logged_disk");
		return 1;
	}
	disk_bytes = status.st_size;
	return fuse_main(5, ((char *[]){argv[0], "-f", "-s", "-ofsname=logged_disk", argv[3], NULL}), &operations,
	                 NULL);
}
