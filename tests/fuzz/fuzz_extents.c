/* libFuzzer: bytes as changes of two extent maps that share blocks, against an array with the source of every byte.
 *
 * An operation is 8 bytes: what, two of position, two of length, three of source. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "extent/extents.h"
#include "require.h"

#define MOST 4096

struct pair {
	struct ls_extents map;
	uint64_t sources[MOST];
	uint64_t size;
};

static uint64_t next_of(uint64_t source)
{
	return source >= LS_EXTENT_IMAGE ? source : source + 1;
}

static void set(struct pair *pair, uint64_t start, uint64_t end, uint64_t source)
{
	for (uint64_t at = start; at < end; at++) {
		pair->sources[at] = source;
		source = next_of(source);
	}
}

static void extend(struct pair *pair, uint64_t size)
{
	if (size <= pair->size)
		return;
	set(pair, pair->size, size, LS_EXTENT_ZERO);
	pair->size = size;
}

static void write_piece(struct pair *pair, struct ls_piece piece)
{
	struct ls_error err;

	REQUIRE(ls_extents_write(&pair->map, &piece, &err) == LS_OK);
	if (!piece.length)
		return;
	extend(pair, piece.start + piece.length);
	set(pair, piece.start, piece.start + piece.length, piece.source);
}

/* Many small extents, so that blocks fill, divide and join. */
static void scatter(struct pair *pair, uint64_t start, uint64_t n, uint64_t step, uint64_t source)
{
	for (uint64_t i = 0; i < n && start + i * step < MOST; i++)
		write_piece(pair,
		            (struct ls_piece){start + i * step, 1, source + (source >= LS_EXTENT_IMAGE ? 0 : 7 * i)});
}

static void truncate_to(struct pair *pair, uint64_t size)
{
	struct ls_error err;

	REQUIRE(ls_extents_truncate(&pair->map, size, &err) == LS_OK);
	extend(pair, size);
	pair->size = size;
}

static void punch(struct pair *pair, uint64_t start, uint64_t length)
{
	struct ls_error err;

	REQUIRE(ls_extents_punch(&pair->map, start, length, &err) == LS_OK);
	for (uint64_t at = start; at < start + length && at < pair->size; at++)
		pair->sources[at] = LS_EXTENT_ZERO;
}

static void copy(struct pair *to, const struct pair *from)
{
	struct ls_error err;

	ls_extents_free(&to->map);
	memcpy(to->sources, from->sources, sizeof(to->sources));
	to->size = from->size;
	REQUIRE(ls_extents_clone(&to->map, &from->map, &err) == LS_OK);
}

static void refuse(struct pair *pair, uint64_t start, uint64_t source)
{
	struct ls_piece far = {UINT64_MAX - start, 1, LS_EXTENT_ZERO};
	struct ls_piece none = {start, 1, LS_EXTENT_IMAGE - 1 - source};
	struct ls_piece across = {start, source + 1, LS_EXTENT_LOG_BYTES - 1 - source};
	struct ls_error err;

	REQUIRE(ls_extents_write(&pair->map, &far, &err) == LS_LIMIT);
	REQUIRE(ls_extents_write(&pair->map, &none, &err) == LS_INVALID);
	REQUIRE(ls_extents_write(&pair->map, &across, &err) == LS_INVALID);
}

static void compare(const struct pair *pair, uint64_t start, uint64_t end)
{
	struct ls_piece pieces[7];
	size_t n;

	do {
		n = ls_extents_lookup(&pair->map, start, end, pieces, 7);
		for (size_t i = 0; i < n; i++) {
			uint64_t source = pieces[i].source;

			REQUIRE(pieces[i].start == start && pieces[i].length > 0);
			for (; start < pieces[i].start + pieces[i].length; start++) {
				REQUIRE(start < MOST && pair->sources[start] == source);
				source = next_of(source);
			}
		}
	} while (n == 7);
	REQUIRE(start >= (end < pair->size ? end : pair->size));
}

static void check(const struct pair *pair)
{
	uint64_t live[256] = {0}, expected[256] = {0};

	REQUIRE(pair->map.size == pair->size);
	REQUIRE(ls_extents_is_sound(&pair->map));
	compare(pair, 0, UINT64_MAX);
	REQUIRE(ls_extents_log_count(&pair->map) <= 256);
	ls_extents_add_live(&pair->map, live);
	for (uint64_t at = 0; at < pair->size; at++)
		if (pair->sources[at] < LS_EXTENT_IMAGE)
			expected[pair->sources[at] >> LS_EXTENT_LOG_SHIFT]++;
	REQUIRE(!memcmp(live, expected, sizeof(live)));
}

static void operate(struct pair pairs[2], const uint8_t *bytes)
{
	struct pair *pair = &pairs[bytes[0] & 1];
	uint64_t start = (bytes[1] | (uint64_t)bytes[2] << 8) % MOST;
	uint64_t length = (bytes[3] | (uint64_t)bytes[4] << 8) % (MOST - start + 1);
	uint64_t source = (uint64_t)bytes[5] << LS_EXTENT_LOG_SHIFT | bytes[6] | (uint64_t)bytes[7] << 8;

	if (bytes[5] >= 0xf0)
		source = bytes[5] & 1 ? LS_EXTENT_ZERO : LS_EXTENT_IMAGE;
	switch (bytes[0] >> 1 & 7) {
	case 0:
	case 1:
		write_piece(pair, (struct ls_piece){start, length, source});
		break;
	case 2:
		scatter(pair, start, length, 2 + bytes[6] % 8, source);
		break;
	case 3:
		truncate_to(pair, start);
		break;
	case 4:
		punch(pair, start, length);
		break;
	case 5:
		copy(&pairs[~bytes[0] & 1], pair);
		break;
	case 6:
		compare(pair, start, start + length);
		break;
	default:
		refuse(pair, start, bytes[6]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	static struct pair pairs[2];

	memset(pairs, 0, sizeof(pairs));
	for (; length >= 8; bytes += 8, length -= 8) {
		operate(pairs, bytes);
		if (bytes[0] & 0x80 || length < 16) {
			check(&pairs[0]);
			check(&pairs[1]);
		}
	}
	ls_extents_free(&pairs[0].map);
	check(&pairs[1]);
	ls_extents_free(&pairs[1].map);
	return 0;
}
