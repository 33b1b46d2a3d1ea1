#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

int ls_punch_holes(int fd, const struct ls_range *ranges, size_t n, struct ls_error *err)
{
	for (size_t i = 0; i < n; i++) {
		while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)ranges[i].offset,
		                 (off_t)ranges[i].length)) {
			if (errno == EINTR)
				continue;
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

int ls_vectors_advance(struct iovec *vectors, int count, size_t done)
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
