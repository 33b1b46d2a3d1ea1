#include "siphash.h"

#include "words.h"

struct state {
	uint64_t v0, v1, v2, v3;
};

static inline uint64_t rotate_left(uint64_t word, int bits)
{
	return word << bits | word >> (64 - bits);
}

static inline void sip_rounds(struct state *s, unsigned rounds)
{
	while (rounds--) {
		s->v0 += s->v1;
		s->v2 += s->v3;
		s->v1 = rotate_left(s->v1, 13) ^ s->v0;
		s->v3 = rotate_left(s->v3, 16) ^ s->v2;
		s->v0 = rotate_left(s->v0, 32);
		s->v2 += s->v1;
		s->v0 += s->v3;
		s->v1 = rotate_left(s->v1, 17) ^ s->v2;
		s->v3 = rotate_left(s->v3, 21) ^ s->v0;
		s->v2 = rotate_left(s->v2, 32);
	}
}

static inline void absorb(struct state *s, uint64_t word, unsigned c)
{
	s->v3 ^= word;
	sip_rounds(s, c);
	s->v0 ^= word;
}

/* The last word: the 0 to 7 bytes that are left, and the length's low byte on top. `end` is where the bytes end.
 * Where there are eight to load, those left are their high part, and no branch depends on how many they are. */
static inline uint64_t last_word(const uint8_t *end, size_t length)
{
	unsigned left = length & 7;
	uint64_t word = (uint64_t)length << 56;

	if (length >= 8)
		return word | ls_load64(end - 8) >> 1 >> (63 - 8 * left);
	for (size_t i = 0; i < left; i++)
		word |= (uint64_t)end[(ptrdiff_t)i - left] << (8 * i);
	return word;
}

/* Inlined, so that with constant c and d the compiler unrolls the rounds. */
__attribute__((always_inline)) static inline uint64_t hash(unsigned c, unsigned d, const uint8_t *key,
                                                           const uint8_t *bytes, size_t length)
{
	uint64_t k0 = ls_load64(key), k1 = ls_load64(key + 8);
	struct state s = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261,
	                  k1 ^ 0x7465646279746573};
	size_t whole = length & ~(size_t)7;

	for (size_t i = 0; i < whole; i += 8)
		absorb(&s, ls_load64(bytes + i), c);
	absorb(&s, last_word(bytes + length, length), c);
	s.v2 ^= 0xff;
	sip_rounds(&s, d);
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

uint64_t ls_siphash13(const uint8_t key[LS_SIPHASH_KEY_BYTES], const void *bytes, size_t length)
{
	return hash(1, 3, key, bytes, length);
}

uint64_t ls_siphash(unsigned c, unsigned d, const uint8_t key[LS_SIPHASH_KEY_BYTES], const void *bytes, size_t length)
{
	return hash(c, d, key, bytes, length);
}
