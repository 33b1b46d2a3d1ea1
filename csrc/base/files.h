/* File operations that Python or the C library do not have. Thread-safe. */
#ifndef LS_FILES_H
#define LS_FILES_H

#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "status.h"

struct ls_range {
	uint64_t offset;
	uint64_t length;
};

/* Give the blocks of these ranges of the file back to the file system, keeping the file's size; the ranges
 * read as zeros then (fallocate(2), FALLOC_FL_PUNCH_HOLE). LS_UNSUPPORTED where the file system cannot. */
int ls_punch_holes(int fd, const struct ls_range *ranges, size_t n, struct ls_error *err);

/* Read or write all of the vectors, from *position on, across short calls and signals: -1 and errno where a call fails.
 * What is left to do is then in *vectors, *count and *position, and so it is where the file ends before all was read. */
int ls_read_vectors(int fd, struct iovec *vectors, int *count, uint64_t *position);
int ls_write_vectors(int fd, struct iovec *vectors, int *count, uint64_t *position);

/* The same of one run of bytes. ls_read_at returns how many were read, less than `length` only where the file ends. */
ssize_t ls_read_at(int fd, void *bytes, size_t length, uint64_t position);
int ls_write_at(int fd, const void *bytes, size_t length, uint64_t position);

/* Open an existing path below a directory as openat2(2) does with `resolve` (RESOLVE_*): -1 and errno, which is ENOSYS before
 * Linux 5.6. O_CLOEXEC is added to the flags. EAGAIN says that something was renamed at each of so many tries, and so the
 * kernel could not tell whether the path stayed where it must. */
int ls_open_resolved(int directory_fd, const char *path, int flags, uint64_t resolve, int tries);

/* Read the open directory, whose descriptor is closed with it, and at once where that fails: NULL and errno then, and where
 * `fd` is -1. */
DIR *ls_read_directory(int fd);

/* The next entry but "." and ".."; NULL with errno, which is 0 after the last. */
const struct dirent *ls_next_entry(DIR *directory);

/* A file in memory, read-only. */
struct ls_mapping {
	const uint8_t *bytes; /* NULL for an empty file */
	size_t length;
};

/* Map the whole file, which may then be closed: a store has more indexes and packs than a process may have descriptors.
 * Undone by ls_unmap, which takes a zeroed mapping too. */
int ls_map(int fd, struct ls_mapping *mapping, struct ls_error *err);
void ls_unmap(struct ls_mapping *mapping);

#endif
