#include "xxhash32.h"

#include "words.h"

static const uint32_t PRIME1 = 0x9e3779b1u;
static const uint32_t PRIME2 = 0x85ebca77u;
static const uint32_t PRIME3 = 0xc2b2ae3du;
static const uint32_t PRIME4 = 0x27d4eb2fu;
static const uint32_t PRIME5 = 0x165667b1u;

/* Steps 1 to 3: four accumulators take turns with the 4-byte lanes of each 16-byte stripe. */
static uint32_t consume_stripes(const uint8_t *in, size_t stripes, uint32_t seed)
{
	uint32_t lane[4] = {seed + PRIME1 + PRIME2, seed + PRIME2, seed, seed - PRIME1};

	for (; stripes; stripes--, in += 16)
		for (int i = 0; i < 4; i++)
			lane[i] = ls_rotate_left32(lane[i] + ls_load32(in + 4 * i) * PRIME2, 13) * PRIME1;
	return ls_rotate_left32(lane[0], 1) + ls_rotate_left32(lane[1], 7) + ls_rotate_left32(lane[2], 12) +
	       ls_rotate_left32(lane[3], 18);
}

uint32_t ls_xxhash32(const void *bytes, size_t length, uint32_t seed)
{
	const uint8_t *in = bytes;
	size_t left = length;
	uint32_t hash = seed + PRIME5;

	if (length >= 16) {
		hash = consume_stripes(in, length / 16, seed);
		in += length / 16 * 16;
		left %= 16;
	}
	hash += (uint32_t)length;
	for (; left >= 4; left -= 4, in += 4)
		hash = ls_rotate_left32(hash + ls_load32(in) * PRIME3, 17) * PRIME4;
	for (; left; left--, in++)
		hash = ls_rotate_left32(hash + *in * PRIME5, 11) * PRIME1;
	hash = (hash ^ hash >> 15) * PRIME2;
	hash = (hash ^ hash >> 13) * PRIME3;
	return hash ^ hash >> 16;
}
