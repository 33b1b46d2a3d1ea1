/* File operations that Python or the C library do not have. Thread-safe. */
#ifndef LS_FILES_H
#define LS_FILES_H

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

/* Drop the first `done` bytes of vectors, after a short read or write; returns how many vectors are left, moved to the
 * front. */
int ls_vectors_advance(struct iovec *vectors, int count, size_t done);

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
