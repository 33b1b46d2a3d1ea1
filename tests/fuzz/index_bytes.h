/* What the harnesses of indexes share: a damaged index whose digests are right all the same, so that what is behind them
 * is reached, and mutations that leave the records where they are. */
#ifndef INDEX_BYTES_H
#define INDEX_BYTES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hash/blake3.h"
#include "index/index.h"
#include "require.h"

/* A copy in memory of its own, so that reading past its end is seen. */
static uint8_t *copy_of(const uint8_t *bytes, size_t length)
{
	uint8_t *copy = malloc(length ? length : 1);

	REQUIRE(copy);
	memcpy(copy, bytes, length);
	return copy;
}

/* Have the heap end where the bytes do, and the digests be those of the bytes. */
static void seal(uint8_t *bytes, size_t length, int with_body)
{
	struct ls_index_header *header = (struct ls_index_header *)bytes;
	struct ls_index index;
	uint8_t digest[32];
	size_t heap_at;

	if (length < sizeof(*header))
		return;
	ls_index_layout(&index, bytes);
	heap_at = (uintptr_t)index.heap - (uintptr_t)bytes;
	if (heap_at < length)
		header->heap_bytes = length - heap_at;
	if (with_body)
		REQUIRE(!ls_b3_hash(header + 1, length - sizeof(*header), header->body_digest, NULL));
	REQUIRE(!ls_b3_hash(header, offsetof(struct ls_index_header, header_digest), digest, NULL));
	memcpy(header->header_digest, digest, sizeof(header->header_digest));
}

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed);

/* Most mutations that insert or remove bytes move all that follows to where it means nothing: mutate a few in place. */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed)
{
	size_t width = 1u << seed / 8 % 5;
	size_t at = length > width ? seed / 64 * width % (length - width) : 0;

	if (seed % 8 == 0 || length <= width)
		return LLVMFuzzerMutate(bytes, length, most);
	LLVMFuzzerMutate(bytes + at, width, width);
	return length;
}

#endif
