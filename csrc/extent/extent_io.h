/* Reading what extents name, and appending to logs. No state: safe for many threads; descriptors are borrowed, and must
 * stay open meanwhile. */
#ifndef LS_EXTENT_IO_H
#define LS_EXTENT_IO_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "log.h"

/* `length` bytes at `offset` of a file are wanted at `into`; zeros where fd is LS_READ_ZEROS. */
#define LS_READ_ZEROS (-1)

struct ls_read {
	int fd;
	uint64_t offset;
	uint8_t *into;
	size_t length;
};

/* Do all of them. Neighbours that are near in one file are read in one system call: data written one block after another lies in
 * a log with a record's header between. LS_CORRUPT for a file that ends before, LS_SYSTEM. */
int ls_read_all(const struct ls_read *reads, size_t n, struct ls_error *err);

/* Write at byte `position`, the end of a log: the `length` bytes of records that are encoded already and, unless it is NULL, one
 * more record, which is sealed, with its payload. One system call unless the kernel writes less. Where it fails (LS_SYSTEM) the
 * file ends at `position` again. */
int ls_log_append(int fd, uint64_t position, const uint8_t *records, size_t length, const struct ls_log_record *record,
                  const uint8_t *payload, struct ls_error *err);

#endif
