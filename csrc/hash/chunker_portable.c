/* By the definition, level by level: the specification that the other kernels are tested against. The loops are for the
 * compiler to make vectors of, whichever the processor has. */
#include "chunker_impl.h"

#define STEP 256
#define PLACES (LS_CUT_HALF_BYTES + STEP) /* that are hashed for it */

/* 2·v: the polynomial is subtracted where the product has x^8. */
static inline uint8_t doubled(uint8_t v)
{
	return (uint8_t)(v + v) ^ ((int8_t)v < 0 ? 0x1b : 0);
}

static inline uint8_t times_power1(uint8_t v)
{
	return v ^ doubled(v); /* 3 = 1 + 2 */
}

static inline uint8_t times_power2(uint8_t v)
{
	return v ^ doubled(doubled(v)); /* 5 = 1 + 4 */
}

static inline uint8_t times_power4(uint8_t v)
{
	return v ^ doubled(doubled(doubled(doubled(v)))); /* 0x11 = 1 + 16 */
}

static inline uint8_t times_power8(uint8_t v)
{
	uint8_t by2 = doubled(v), by8 = doubled(doubled(by2));

	return by2 ^ by8 ^ doubled(by8); /* 0x1a = 2 + 8 + 16 */
}

/* h of PLACES places, the first of which is behind b[15]. */
static void hash(uint8_t h[PLACES], const uint8_t b[PLACES + 15])
{
	uint8_t h2[PLACES + 14], h4[PLACES + 12], h8[PLACES + 8];

	for (int i = 0; i < PLACES + 14; i++)
		h2[i] = b[i + 1] ^ times_power1(b[i]);
	for (int i = 0; i < PLACES + 12; i++)
		h4[i] = h2[i + 2] ^ times_power2(h2[i]);
	for (int i = 0; i < PLACES + 8; i++)
		h8[i] = h4[i + 4] ^ times_power4(h4[i]);
	for (int i = 0; i < PLACES; i++)
		h[i] = h8[i + 8] ^ times_power8(h8[i]);
}

/* Say of STEP places, of which the hashes begin 16 before them, whether they have the bits. Returns whether any has. */
static int find_hits(uint8_t hit[STEP], const uint8_t h[PLACES], const struct ls_cut *cut)
{
	uint8_t any = 0;

	for (int i = 0; i < STEP; i++) {
		uint8_t wrong = (h[LS_CUT_HALF_BYTES + i] & cut->zeros) | (~h[i] & cut->ones);

		hit[i] = !wrong;
		any |= hit[i];
	}
	return any;
}

size_t ls_cut_find_portable(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut)
{
	for (size_t p = from; p < to; p += STEP) {
		const uint8_t *window = bytes + p - LS_CUT_WINDOW_BYTES;
		uint8_t rest[PLACES + 15] = {0}, h[PLACES], hit[STEP];
		size_t n = to - p < STEP ? to - p : STEP;

		if (n < STEP)
			window = memcpy(rest, window, LS_CUT_WINDOW_BYTES - 1 + n);
		hash(h, window);
		if (!find_hits(hit, h, cut))
			continue;
		for (size_t i = 0; i < n; i++)
			if (hit[i] && ls_cut_confirm(bytes, p + i, cut))
				return p + i;
	}
	return to;
}
