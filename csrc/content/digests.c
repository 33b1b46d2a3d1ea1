#include "digests.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define FIRST_SLOTS 4096u
#define AHEAD 16

static uint64_t slot_hash(const struct ls_digests *digests, const uint8_t *digest)
{
	uint64_t word;

	memcpy(&word, digest, sizeof(word));
	return (word ^ digests->key[0]) * digests->key[1];
}

/* The topmost bits of the product: only they depend on the whole word, so that digests made to agree in a part of it do
 * not share a slot whatever the key (Dietzfelbinger, Hagerup, Katajainen, Penttonen, "A Reliable Randomized Algorithm for
 * the Closest-Pair Problem", 1997, section 2: multiply-shift is universal). */
static uint32_t first_slot(const struct ls_digests *digests, uint64_t hash)
{
	return (uint32_t)((hash >> 32) * digests->slot_count >> 32);
}

/* The low half of the product is the tag: the slot comes from the high half. */
static uint64_t slot_entry(uint64_t hash, uint32_t record)
{
	return hash << 32 | (record + 1u);
}

int ls_digests_init(struct ls_digests *digests, struct ls_error *err)
{
	*digests = (struct ls_digests){0};
	if (getrandom(digests->key, sizeof(digests->key), 0) != (ssize_t)sizeof(digests->key))
		return ls_fail_errno(err, "cannot get random bits for the digest table");
	digests->key[1] |= 1;
	return LS_OK;
}

void ls_digests_free(struct ls_digests *digests)
{
	free(digests->slots);
	*digests = (struct ls_digests){0};
}

/* The slot that holds the digest, or the free one where it belongs. */
static uint64_t *find_slot(const struct ls_digests *digests, const uint8_t *digest, uint64_t hash)
{
	uint32_t mask = digests->slot_count - 1;
	uint32_t tag = (uint32_t)hash;

	for (uint32_t i = first_slot(digests, hash);; i = (i + 1) & mask) {
		uint64_t *slot = &digests->slots[i];

		if (!*slot)
			return slot;
		if ((uint32_t)(*slot >> 32) == tag && !memcmp(digests->records[(uint32_t)*slot - 1].digest, digest, 32))
			return slot;
	}
}

static void put(struct ls_digests *digests, uint32_t record)
{
	const uint8_t *digest = digests->records[record].digest;
	uint64_t hash = slot_hash(digests, digest);

	*find_slot(digests, digest, hash) = slot_entry(hash, record);
}

static void prefetch_slot(const struct ls_digests *digests, const uint8_t *digest)
{
	__builtin_prefetch(&digests->slots[first_slot(digests, slot_hash(digests, digest))]);
}

int ls_digests_extend(struct ls_digests *digests, const struct ls_digest_record *records, size_t count,
                      struct ls_error *err)
{
	uint32_t slots = digests->slot_count ? digests->slot_count : FIRST_SLOTS;
	uint32_t from = digests->count;

	if (count > 1u << 30)
		return ls_fail(err, LS_LIMIT, "the store holds %zu contents; at most %u are supported", count,
		               1u << 30);
	while (slots < 2 * count)
		slots *= 2;
	digests->records = records;
	if (slots != digests->slot_count) {
		uint64_t *fresh = calloc(slots, sizeof(*fresh));

		if (!fresh)
			return ls_fail(err, LS_NO_MEMORY, "out of memory for a digest table of %u slots", slots);
		free(digests->slots);
		digests->slots = fresh;
		digests->slot_count = slots;
		from = 0;
	}
	for (uint32_t i = from; i < (uint32_t)count; i++) {
		if (i + AHEAD < count)
			prefetch_slot(digests, records[i + AHEAD].digest);
		put(digests, i);
	}
	digests->count = (uint32_t)count;
	return LS_OK;
}

uint32_t ls_digests_find(const struct ls_digests *digests, const uint8_t digest[32])
{
	if (!digests->slot_count)
		return UINT32_MAX;
	return (uint32_t)*find_slot(digests, digest, slot_hash(digests, digest)) - 1u;
}

/* The number of the record of the i-th of n digests, of which later ones are fetched meanwhile. */
static uint32_t find_ahead(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n, size_t i)
{
	if (i + AHEAD < n && digests->slot_count)
		prefetch_slot(digests, bytes + (i + AHEAD) * stride);
	return ls_digests_find(digests, bytes + i * stride);
}

void ls_digests_find_many(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                          uint32_t *numbers)
{
	for (size_t i = 0; i < n; i++)
		numbers[i] = find_ahead(digests, bytes, stride, n, i);
}

size_t ls_digests_mark_many(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                            uint8_t *marks, uint32_t *positions)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++) {
		uint32_t number = find_ahead(digests, bytes, stride, n, i);

		if (number == UINT32_MAX || marks[number])
			continue;
		marks[number] = 1;
		positions[count++] = (uint32_t)i;
	}
	return count;
}

void ls_digests_locate_many(const struct ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                            struct ls_location *locations)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t record = find_ahead(digests, bytes, stride, n, i);

		locations[i] = record == UINT32_MAX ? (struct ls_location){LS_LOCATION_NONE, 0}
		                                    : digests->records[record].location;
	}
}
