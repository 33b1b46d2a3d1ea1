#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/files.h"
#include "base/retry.h"
#include "clone_content.h"
#include "clone_tree.h"

#define CACHESTAT 451 /* the same number on every architecture */

/* Copy [at, end) through memory. A source that has become shorter gives what it has. */
static int copy_through(struct ls_clone *clone, int source, int target, off_t at, off_t end)
{
	while (at < end) {
		size_t wanted = end - at < LS_XATTRS_BYTES ? (size_t)(end - at) : LS_XATTRS_BYTES;
		ssize_t length = TEMP_FAILURE_RETRY(pread(source, clone->value, wanted, at));

		if (length <= 0)
			return (int)length;
		if (ls_write_at(target, clone->value, (size_t)length, (uint64_t)at))
			return -1;
		at += length;
	}
	return 0;
}

static int copy_range(struct ls_clone *clone, int source, int target, off_t at, off_t end)
{
	while (at < end) {
		off_t from = at, to = at;
		ssize_t length = TEMP_FAILURE_RETRY(copy_file_range(source, &from, target, &to, (size_t)(end - at), 0));

		if (length < 0 && (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP || errno == EXDEV))
			return copy_through(clone, source, target, at, end);
		if (length <= 0)
			return (int)length;
		at += length;
	}
	return 0;
}

static int copy_data(struct ls_clone *clone, int source, int target, off_t size)
{
	off_t at = 0;

	while (at < size) {
		off_t data = lseek(source, at, SEEK_DATA);
		off_t hole = data < 0 ? data : lseek(source, data, SEEK_HOLE);

		if (data < 0 || hole < 0)
			return errno == ENXIO ? 0 : -1; /* nothing but a hole, or the end, follows */
		if (copy_range(clone, source, target, data, hole < size ? hole : size))
			return -1;
		at = hole;
	}
	return 0;
}

/* FICLONE of a file system that cannot, or between two that do not share. */
static int says_that_it_cannot(int number)
{
	return number == EOPNOTSUPP || number == ENOTTY || number == EINVAL || number == EXDEV || number == ENOSYS;
}

static int is_small(const struct stat *status)
{
	return status->st_size <= LS_CLONE_COPIED_BYTES && (off_t)status->st_blocks * 512 >= status->st_size;
}

/* cachestat(2), of Linux 6.5; the C library has no wrapper. -1 where there is none. */
static int has_unwritten(int fd)
{
	struct {
		uint64_t offset, length;
	} all = {0};
	struct {
		uint64_t cached, dirty, writeback, evicted, recently_evicted;
	} pages;

	if (syscall(CACHESTAT, fd, &all, &pages, 0))
		return -1;
	return pages.dirty || pages.writeback;
}

int ls_clone_begin_writing(const struct ls_clone *clone, int source, const struct stat *status)
{
	if (atomic_load(&clone->shared->no_reflink) || is_small(status) || has_unwritten(source) <= 0)
		return 0;
	return !sync_file_range(source, 0, 0, SYNC_FILE_RANGE_WRITE);
}

int ls_clone_content(struct ls_clone *clone, int source, int target, const struct stat *status)
{
	if (!status->st_size)
		return 0;
	if (!atomic_load(&clone->shared->no_reflink) && (!is_small(status) || !has_unwritten(source))) {
		if (!ioctl(target, FICLONE, source))
			return 0;
		if (!says_that_it_cannot(errno))
			return -1;
		atomic_store(&clone->shared->no_reflink, 1);
	}
	atomic_store(&clone->shared->has_copied, 1);
	if (is_small(status))
		return copy_through(clone, source, target, 0, status->st_size);
	if (copy_data(clone, source, target, status->st_size))
		return -1;
	return ftruncate(target, status->st_size);
}
