/* One lane, one word at a time: the specification that the other kernels are tested against. */
#include "blake3_impl.h"

#include <string.h>

#include "words.h"

static void store32(uint8_t *p, uint32_t word)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(word >> (8 * i));
}

static inline void quarter_round(uint32_t v[16], int a, int b, int c, int d, uint32_t x, uint32_t y)
{
	v[a] += v[b] + x;
	v[d] = ls_rotate_right32(v[d] ^ v[a], 16);
	v[c] += v[d];
	v[b] = ls_rotate_right32(v[b] ^ v[c], 12);
	v[a] += v[b] + y;
	v[d] = ls_rotate_right32(v[d] ^ v[a], 8);
	v[c] += v[d];
	v[b] = ls_rotate_right32(v[b] ^ v[c], 7);
}

/* Section 2.2: seven rounds, each of four columns and four diagonals. */
static void compress(uint32_t h[8], const uint8_t block[64], uint64_t counter, uint32_t length, uint32_t flags)
{
	uint32_t m[16], v[16];

	for (int i = 0; i < 16; i++)
		m[i] = ls_load32(block + 4 * i);
	memcpy(v, h, 32);
	memcpy(v + 8, ls_b3_iv, 16);
	v[12] = (uint32_t)counter;
	v[13] = (uint32_t)(counter >> 32);
	v[14] = length;
	v[15] = flags;
	for (int r = 0; r < LS_B3_ROUNDS; r++) {
		const uint8_t *s = ls_b3_schedule[r];

		quarter_round(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
		quarter_round(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
		quarter_round(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
		quarter_round(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
		quarter_round(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
		quarter_round(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
		quarter_round(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
		quarter_round(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
	}
	for (int i = 0; i < 8; i++)
		h[i] = v[i] ^ v[8 + i];
}

/* Section 2.4: the blocks of a chunk are chained; the last may be short and is padded with zeros. */
static void chunk(uint32_t h[8], const uint8_t *in, uint32_t length, uint64_t counter, uint32_t root)
{
	uint32_t flags = LS_B3_CHUNK_START;
	uint8_t block[LS_B3_BLOCK_BYTES];

	for (; length > LS_B3_BLOCK_BYTES; in += LS_B3_BLOCK_BYTES, length -= LS_B3_BLOCK_BYTES) {
		compress(h, in, counter, LS_B3_BLOCK_BYTES, flags);
		flags = 0;
	}
	memset(block, 0, sizeof(block));
	if (length)
		memcpy(block, in, length);
	compress(h, block, counter, length, flags | LS_B3_CHUNK_END | root);
}

void ls_b3_run_portable(struct ls_b3_lanes *lanes, enum ls_b3_node node)
{
	for (unsigned l = 0; l < lanes->count; l++) {
		uint64_t counter = lanes->counter_low[l] | (uint64_t)lanes->counter_high[l] << 32;
		uint32_t h[8];

		memcpy(h, ls_b3_iv, sizeof(h));
		if (node == LS_B3_NODE_PARENT)
			compress(h, lanes->in[l], 0, LS_B3_BLOCK_BYTES, LS_B3_PARENT | lanes->root[l]);
		else
			chunk(h, lanes->in[l], lanes->length[l], counter, lanes->root[l]);
		for (int i = 0; i < 8; i++)
			store32(lanes->out[l] + 4 * i, h[i]);
	}
}
