/* The extent map of a file: which of its bytes come from the image, which from a log, and which are zeros.
 *
 * The map is a step function. An extent says where a range begins and what its first byte comes from; the range ends
 * where the next one begins, the last one at the size of the file. So every byte below the size has a source, ranges
 * cannot overlap, and an extent is 16 bytes. No extent continues the one before it: they would be one.
 *
 * Extents lie in blocks of up to LS_EXTENT_BLOCK, which are counted and copied when they change: a clone
 * shares them. A lookup or a change costs O(log n) of n extents plus what it covers; a clone O(n / LS_EXTENT_BLOCK).
 *
 * A map may be read by many threads or changed by one at a time; maps that share blocks need no lock between them. After
 * an error a map is what it was before the call. */
#ifndef LS_EXTENTS_H
#define LS_EXTENTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Sources of a byte: zeros, the image's content at the same offset, or log number << LS_EXTENT_LOG_SHIFT | offset in the log. */
#define LS_EXTENT_ZERO UINT64_MAX
#define LS_EXTENT_IMAGE (UINT64_MAX - 1)
#define LS_EXTENT_LOG_SHIFT 48
#define LS_EXTENT_LOG_BYTES (UINT64_C(1) << LS_EXTENT_LOG_SHIFT)
#define LS_EXTENT_MAX_LOGS 0xffffu

#define LS_EXTENT_MAX_SIZE ((uint64_t)INT64_MAX)
#define LS_EXTENT_BLOCK 256

struct ls_piece {
	uint64_t start; /* bytes into the file */
	uint64_t length;
	uint64_t source; /* of the first byte */
};

struct ls_extent_slot {
	uint64_t first; /* where the block's first extent begins */
	struct ls_extent_block *block;
};

/* Zero-initialised: the map of an empty file. */
struct ls_extents {
	uint64_t size;  /* bytes of the file */
	uint64_t count; /* extents */
	struct ls_extent_slot *slots;
	size_t slot_count;
	size_t slot_capacity;
};

void ls_extents_free(struct ls_extents *map);

/* LS_OK for a range that lies below LS_EXTENT_MAX_SIZE (else LS_LIMIT) with a source that all of it can have (else LS_INVALID:
 * a log beyond the last number, or bytes of it from LS_EXTENT_LOG_BYTES - 1 on). */
int ls_piece_check(const struct ls_piece *piece, struct ls_error *err);

/* Have a range come from a source; what lies between the former size and its start becomes zeros. A length of 0 changes
 * nothing. As ls_piece_check, LS_NO_MEMORY. */
int ls_extents_write(struct ls_extents *map, const struct ls_piece *piece, struct ls_error *err);
/* Stops at the first error, which names the number of the piece; those before it are written. */
int ls_extents_write_many(struct ls_extents *map, const struct ls_piece *pieces, size_t n, struct ls_error *err);

/* Have what of a range lies below the size be zeros. */
int ls_extents_punch(struct ls_extents *map, uint64_t start, uint64_t length, struct ls_error *err);

/* Cut off, or add zeros. */
int ls_extents_truncate(struct ls_extents *map, uint64_t size, struct ls_error *err);

/* `clone` is uninitialised before, and empty after an error. */
int ls_extents_clone(struct ls_extents *clone, const struct ls_extents *map, struct ls_error *err);

/* The pieces, in order, of what of [start, end) lies below the size: at most `capacity` of them. Returns how many; when all
 * are used there may be more, from the end of the last one on. */
size_t ls_extents_lookup(const struct ls_extents *map, uint64_t start, uint64_t end, struct ls_piece *pieces,
                         size_t capacity);

/* One more than the highest number of a log in the map, 0 when there is none. */
uint32_t ls_extents_log_count(const struct ls_extents *map);
/* Add to live[number] the bytes that come from each log; there are ls_extents_log_count of them. */
void ls_extents_add_live(const struct ls_extents *map, uint64_t *live);

/* 1 when everything that this page says of a map holds. For tests: O(n). */
int ls_extents_is_sound(const struct ls_extents *map);

#endif
