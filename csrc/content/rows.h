/* What an index says of many paths at once, a fixed-size row for each: to be laid out as a numpy structured array. */
#ifndef LS_ROWS_H
#define LS_ROWS_H

#include "digests.h"
#include "index/index.h"

/* Where nothing is, the type is 0, layer and record are -1, the location is "none", and the rest is 0. */
struct ls_row {
	uint8_t found; /* 1 or 0 */
	char type;     /* f regular file, d directory, l symbolic link, c and b devices, p FIFO, s socket */
	uint16_t unused;
	uint32_t mode; /* as st_mode */
	uint32_t uid, gid;
	uint64_t size;    /* bytes, as st_size: of content or link target, else 0 */
	int64_t mtime_ns; /* nanoseconds since the epoch; a time outside of 1677 to 2262 is the nearest inside */
	int32_t layer;    /* from 0 at the bottom */
	int32_t record;
	struct ls_location location; /* of the content; "none" for an empty file and whatever is no regular file */
};
_Static_assert(sizeof(struct ls_row) == 48, "as view.pyx describes it to numpy");

/* The letter of ls_row.type, 0 for a mode without a type. */
char ls_type_letter(uint32_t mode);

/* Rows of `n` paths, symbolic links followed as ls_resolve does. `locations` has one for each content of the index.
 * Safe for many threads. */
int ls_rows_of_paths(const struct ls_index *index, const struct ls_location *locations, const struct ls_path *paths,
                     size_t n, int follow, struct ls_row *rows, struct ls_error *err);

#endif
