/* libFuzzer: bytes as sizes and a content, which every kernel must cut where the definition says.
 *
 * An input is the logarithm of the average, two bytes each of the least and the most beside it, and the content. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/kernel.h"
#include "hash/chunker.h"
#include "poison.h"
#include "require.h"

#define HEADER_BYTES 5
#define MOST_CONTENT ((size_t)1 << 16)

static uint8_t tripled(uint8_t v)
{
	return (uint8_t)(v ^ v << 1 ^ (v & 0x80 ? 0x1b : 0));
}

/* h of the 16 bytes before `end`. */
static uint8_t hash(const uint8_t *end)
{
	uint8_t h = 0;

	for (int i = 16; i > 0; i--)
		h = tripled(h) ^ end[-i];
	return h;
}

/* m of the 32 bytes before `end`. */
static uint64_t second_hash(const uint8_t *end)
{
	uint64_t m = 0;

	for (int word = 4; word > 0; word--) {
		uint64_t number = 0;

		for (int i = 7; i >= 0; i--)
			number = number << 8 | end[i - 8 * word];
		m = (m + number) * 0x9e3779b97f4a7c15;
	}
	return m;
}

static int is_cut(const uint8_t *end, unsigned bits)
{
	unsigned hashed = bits < 16 ? bits : 16;
	unsigned zeros = (1u << (hashed + 1) / 2) - 1, ones = (1u << hashed / 2) - 1;

	if (hash(end) & zeros || (hash(end - 16) & ones) != ones)
		return 0;
	return bits <= 16 || second_hash(end) >> (64 - (bits - 16)) == 0;
}

static size_t first_length(const struct ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length)
{
	unsigned bits = (unsigned)__builtin_ctz(sizes->average);
	size_t p = sizes->min;

	if (length <= sizes->min)
		return length;
	while (p < length && p < sizes->max && !is_cut(bytes + p, p < sizes->average ? bits + 2 : bits - 2))
		p++;
	return p;
}

static struct ls_chunk_sizes sizes_of(const uint8_t *bytes)
{
	struct ls_chunk_sizes sizes;
	struct ls_error err;

	sizes.average = 1u << (8 + bytes[0] % 32 % 17);
	sizes.min = 64 + (bytes[1] | (uint32_t)bytes[2] << 8) % (sizes.average - 63);
	sizes.max = sizes.average + (bytes[3] | (uint32_t)bytes[4] << 8);
	REQUIRE(ls_chunk_sizes_check(&sizes, &err) == LS_OK);
	return sizes;
}

static void check_cuts(const struct ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length)
{
	const struct ls_cut_kernel *kernel;

	for (size_t at = 0, expected; at < length; at += expected) {
		expected = first_length(sizes, bytes + at, length - at);
		for (size_t i = 0; (kernel = ls_cut_kernel_at(i)); i++)
			if (ls_kernel_runs_here(kernel))
				REQUIRE(ls_chunk_length(kernel, sizes, bytes + at, length - at) == expected);
	}
}

/* That all of a content comes to be in batches as it does chunk by chunk. */
static void check_digests(const struct ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length)
{
	struct ls_buffer ends = {0}, again = {0}, digests = {0};
	const struct ls_cut_kernel *kernel;
	const struct ls_b3_kernel *hash;
	struct ls_error err;
	uint64_t start = 0;

	REQUIRE(ls_cut_kernel_find("auto", &kernel, &err) == LS_OK);
	REQUIRE(ls_b3_kernel_find("auto", &hash, &err) == LS_OK);
	REQUIRE(ls_chunk_ends(kernel, sizes, bytes, length, &ends, &err) == LS_OK);
	REQUIRE(ls_chunk_digests(kernel, hash, sizes, bytes, length, &again, &digests, &err) == LS_OK);
	REQUIRE(again.length == ends.length && digests.length == ends.length / 8 * LS_B3_DIGEST_BYTES);
	REQUIRE(!ends.length || !memcmp(ends.bytes, again.bytes, ends.length));
	for (size_t i = 0; i < ends.length / 8; i++) {
		uint64_t end = ((const uint64_t *)ends.bytes)[i];
		const uint8_t *chunk = bytes + start;
		size_t chunk_length = end - start;
		uint8_t digest[LS_B3_DIGEST_BYTES];

		REQUIRE(ls_b3_hash_many(hash, &chunk, &chunk_length, 1, digest, &err) == LS_OK);
		REQUIRE(!memcmp(digest, digests.bytes + i * LS_B3_DIGEST_BYTES, sizeof(digest)));
		start = end;
	}
	REQUIRE(start == length);
	ls_buffer_free(&ends);
	ls_buffer_free(&again);
	ls_buffer_free(&digests);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	struct ls_chunk_sizes sizes;
	uint8_t *content;

	if (length < HEADER_BYTES || length > MOST_CONTENT)
		return 0;
	sizes = sizes_of(bytes);
	length -= HEADER_BYTES;
	content = lend(bytes + HEADER_BYTES, length);
	check_cuts(&sizes, content, length);
	if (bytes[0] & 0x80)
		check_digests(&sizes, content, length);
	take_back(content, length);
	return 0;
}
