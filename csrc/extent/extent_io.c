#include "extent_io.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/files.h"
#include "base/retry.h"

/* Bytes between two ranges that cost less to read than another system call does. */
#define NEAR 512
#define VECTORS 128

/* A run of reads that one system call does. */
struct run {
	struct iovec vectors[VECTORS];
	int count;
	uint64_t end; /* in the file */
	uint8_t between[NEAR];
};

static int read_run(struct run *run, int fd, uint64_t offset, struct ls_error *err)
{
	if (ls_read_vectors(fd, run->vectors, &run->count, &offset))
		return ls_fail_errno(err, "cannot read the content of a file at byte %llu of where it is",
		                     (unsigned long long)offset);
	if (run->count)
		return ls_fail(
		    err, LS_CORRUPT,
		    "a log or a content of the store ends at byte %llu, before byte %llu that an extent needs",
		    (unsigned long long)offset, (unsigned long long)run->end);
	return LS_OK;
}

static int is_near(const struct run *run, const struct ls_read *first, const struct ls_read *next)
{
	return next->fd == first->fd && run->count + 2 <= VECTORS && next->offset >= run->end &&
	       next->offset - run->end <= NEAR;
}

static void add(struct run *run, const struct ls_read *read)
{
	if (read->offset > run->end)
		run->vectors[run->count++] = (struct iovec){run->between, (size_t)(read->offset - run->end)};
	run->vectors[run->count++] = (struct iovec){read->into, read->length};
	run->end = read->offset + read->length;
}

int ls_read_all(const struct ls_read *reads, size_t n, struct ls_error *err)
{
	size_t i = 0;

	while (i < n) {
		const struct ls_read *first = &reads[i];
		struct run run;
		int status;

		if (first->fd == LS_READ_ZEROS) {
			memset(first->into, 0, first->length);
			i++;
			continue;
		}
		run.count = 0;
		run.end = first->offset;
		do
			add(&run, &reads[i++]);
		while (i < n && is_near(&run, first, &reads[i]));
		status = read_run(&run, first->fd, first->offset, err);
		if (status)
			return status;
	}
	return LS_OK;
}

static struct iovec vector(const void *bytes, size_t length)
{
	return (struct iovec){(void *)(uintptr_t)bytes, length};
}

int ls_log_append(int fd, uint64_t position, const uint8_t *records, size_t length, const struct ls_log_record *record,
                  const uint8_t *payload, struct ls_error *err)
{
	static const uint8_t padding[LS_LOG_ALIGN];
	struct iovec vectors[4] = {vector(records, length)};
	uint64_t at = position;
	int n = 1, cause;

	if (record) {
		vectors[n++] = vector(record, sizeof(*record));
		vectors[n++] = vector(payload, record->payload_length);
		vectors[n++] = vector(padding, ls_log_padding(record->payload_length));
	}
	if (!ls_write_vectors(fd, vectors, &n, &at))
		return LS_OK;
	cause = errno;
	/* Should this fail too, the next append writes over the rest; who reads the log before that may find records in it. */
	(void)TEMP_FAILURE_RETRY(ftruncate(fd, (off_t)position));
	errno = cause;
	return ls_fail_errno(err, "cannot append to the log of a writable layer at byte %llu; free space and try again",
	                     (unsigned long long)position);
}
