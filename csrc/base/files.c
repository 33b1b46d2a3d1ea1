#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bytes.h"
#include "retry.h"

int ls_punch_holes(int fd, const struct ls_range *ranges, size_t n, struct ls_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (TEMP_FAILURE_RETRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		                                 (off_t)ranges[i].offset, (off_t)ranges[i].length))) {
			if (errno == EOPNOTSUPP)
				return ls_fail(err, LS_UNSUPPORTED,
				               "the store's file system cannot punch holes; use ext4, XFS "
				               "or btrfs");
			return ls_fail_errno(err, "cannot give back %llu bytes at byte %llu of a pack",
			                     (unsigned long long)ranges[i].length,
			                     (unsigned long long)ranges[i].offset);
		}
	}
	return LS_OK;
}

/* Drop the first `done` bytes; returns how many vectors are left, moved to the front. */
static int advance(struct iovec *vectors, int count, size_t done)
{
	int first = 0;

	while (first < count && done >= vectors[first].iov_len)
		done -= vectors[first++].iov_len;
	if (first < count) {
		vectors[first].iov_base = (uint8_t *)vectors[first].iov_base + done;
		vectors[first].iov_len -= done;
	}
	memmove(vectors, vectors + first, (size_t)(count - first) * sizeof(*vectors));
	return count - first;
}

/* Most calls are of one vector, of which the kernel need not copy a list in. */
static ssize_t transfer(int fd, int is_write, const struct iovec *vectors, int count, off_t position)
{
	if (count > 1)
		return (is_write ? pwritev : preadv)(fd, vectors, count, position);
	return is_write ? pwrite(fd, vectors->iov_base, vectors->iov_len, position)
	                : pread(fd, vectors->iov_base, vectors->iov_len, position);
}

static int transfer_all(int fd, int is_write, struct iovec *vectors, int *count, uint64_t *position)
{
	while ((*count = advance(vectors, *count, 0))) {
		ssize_t done = TEMP_FAILURE_RETRY(transfer(fd, is_write, vectors, *count, (off_t)*position));

		if (!done && is_write) {
			errno = EIO; /* as some file systems in user space do */
			done = -1;
		}
		if (done <= 0)
			return (int)done;
		*position += (uint64_t)done;
		*count = advance(vectors, *count, (size_t)done);
	}
	return 0;
}

int ls_read_vectors(int fd, struct iovec *vectors, int *count, uint64_t *position)
{
	return transfer_all(fd, 0, vectors, count, position);
}

int ls_write_vectors(int fd, struct iovec *vectors, int *count, uint64_t *position)
{
	return transfer_all(fd, 1, vectors, count, position);
}

ssize_t ls_read_at(int fd, void *bytes, size_t length, uint64_t position)
{
	struct iovec rest = {bytes, length};
	int count = 1, failed = ls_read_vectors(fd, &rest, &count, &position);

	return failed ? -1 : (ssize_t)(count ? length - rest.iov_len : length);
}

int ls_write_at(int fd, const void *bytes, size_t length, uint64_t position)
{
	struct iovec rest = {(void *)(uintptr_t)bytes, length};
	int count = 1;

	return ls_write_vectors(fd, &rest, &count, &position);
}

int ls_open_resolved(int directory_fd, const char *path, int flags, uint64_t resolve, int tries)
{
	struct open_how how = {.flags = (unsigned int)(flags | O_CLOEXEC), .resolve = resolve};
	int fd;

	do
		fd = (int)syscall(SYS_openat2, directory_fd, path, &how, sizeof(how));
	while (fd < 0 && (errno == EAGAIN || errno == EINTR) && --tries > 0);
	return fd;
}

DIR *ls_read_directory(int fd)
{
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);

	if (fd >= 0 && !directory)
		close(fd);
	return directory;
}

const struct dirent *ls_next_entry(DIR *directory)
{
	const struct dirent *entry;

	do {
		errno = 0;
		entry = readdir(directory);
	} while (entry && ls_is_dots(entry->d_name, strlen(entry->d_name)));
	return entry;
}

int ls_map(int fd, struct ls_mapping *mapping, struct ls_error *err)
{
	struct stat status;
	void *bytes;

	*mapping = (struct ls_mapping){NULL, 0};
	if (fstat(fd, &status))
		return ls_fail_errno(err, "cannot ask for the size of a file to be mapped");
	if (!status.st_size)
		return LS_OK;
	bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED)
		return ls_fail_errno(err, "cannot map a file of %llu bytes", (unsigned long long)status.st_size);
	*mapping = (struct ls_mapping){bytes, (size_t)status.st_size};
	return LS_OK;
}

void ls_unmap(struct ls_mapping *mapping)
{
	if (mapping->bytes)
		munmap((void *)(uintptr_t)mapping->bytes, mapping->length);
	*mapping = (struct ls_mapping){NULL, 0};
}
