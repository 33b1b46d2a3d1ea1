/* Where the contents of the store are: a table from BLAKE3 digest to location, in memory, over the
 * records of the digest log (docs/format/digests.md), which stays mapped by the caller. Building costs one cache miss
 * a record, a lookup in a batch about the same. The position in the table is keyed by random bits of this process, so that no
 * set of contents can be made to collide in it. One writer or many readers at a time: the caller locks. */
#ifndef LS_DIGESTS_H
#define LS_DIGESTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define LS_LOCATION_OBJECT UINT32_MAX
#define LS_LOCATION_NONE (UINT32_MAX - 1)

/* Slot `slot` of pack `pack`; an object of its own (pack is LS_LOCATION_OBJECT, slot 0); or not stored
 * (pack is LS_LOCATION_NONE). */
struct ls_location {
	uint32_t pack;
	uint32_t slot;
};

struct ls_digest_record {
	uint8_t digest[32];
	uint64_t size; /* bytes, never 0 */
	struct ls_location location;
};
_Static_assert(sizeof(struct ls_digest_record) == 48, "format");

struct ls_digests {
	const struct ls_digest_record *records; /* borrowed */
	uint32_t count;
	uint32_t slot_count; /* a power of two, or 0 */
	uint64_t *slots;     /* tag << 32 | record number + 1; 0 is free */
	uint64_t key[2];
};

int ls_digests_init(struct ls_digests *digests, struct ls_error *err);
void ls_digests_free(struct ls_digests *digests);

/* Say that the log now has `count` records at `records` (of which those known before are unchanged), and take
 * the new ones in; `count` never falls. LS_LIMIT for more than 2^30. Of records of the same digest, the last one is found. */
int ls_digests_extend(struct ls_digests *digests, const struct ls_digest_record *records, size_t count,
                      struct ls_error *err);

/* The number of the record of that digest, or UINT32_MAX. */
uint32_t ls_digests_find(const struct ls_digests *digests, const uint8_t digest[32]);

/* numbers[i], as ls_digests_find gives it, of the digest at bytes + i * stride, prefetched ahead. */
void ls_digests_find_many(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                          uint32_t *numbers);

/* marks[number] = 1 for the record of each of these digests that has one. Returns how many were 0; positions, which has
 * room for n, says which of the digests these are. */
size_t ls_digests_mark_many(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                            uint8_t *marks, uint32_t *positions);

/* locations[i] for the digest at bytes + i * stride, prefetched ahead. */
void ls_digests_locate_many(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                            struct ls_location *locations);

#endif
