/* What the chunker asks of a kernel, and what kernels have in common. Internal to chunker*.c; callers use
 * chunker.h, whose words h, m and cut are used here. */
#ifndef LS_CHUNKER_IMPL_H
#define LS_CHUNKER_IMPL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "words.h"

#define LS_CUT_WINDOW_BYTES 32
#define LS_CUT_HALF_BYTES 16
#define LS_CUT_HASHED_BITS 16 /* of a cut; the others are of m */
/* How far ahead vector kernels have memory fetched into the cache: they are faster than what the CPU does by
 * itself, which also begins anew where the least bytes of a chunk are passed over. Twice the speed of AVX-512 from
 * memory. */
#define LS_CUT_PREFETCH_BYTES 8192
#define LS_CUT_FACTOR 0x9e3779b97f4a7c15ull

/* 3 to the power of 1, 2, 4 and 8: with a factor a level, hashes of 2, 4, 8 and 16 bytes are made of each other,
 * h2(p) = b[p-1] ^ 3·b[p-2], h4(p) = h2(p) ^ 3²·h2(p-2), h8(p) = h4(p) ^ 3⁴·h4(p-4), h(p) = h8(p) ^ 3⁸·h8(p-8). */
enum {
	LS_CUT_POWER1 = 0x03,
	LS_CUT_POWER2 = 0x05,
	LS_CUT_POWER4 = 0x11,
	LS_CUT_POWER8 = 0x1a,
};

/* Which bits a cut is of. */
struct ls_cut {
	uint8_t zeros;       /* these bits of h(p) are 0 */
	uint8_t ones;        /* these bits of h(p - 16) are 1 */
	unsigned more_zeros; /* so many high bits of m(p) are 0 */
};

/* The first place from `from` up to before `to` that is a cut; `to` if none is. from >= LS_CHUNK_LEAST_BYTES.
 * Bytes are read up to place to - 1, none before place 0. */
typedef size_t ls_cut_find_fn(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut);

size_t ls_cut_find_portable(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut);
#if defined(__x86_64__)
size_t ls_cut_find_avx2(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut);
size_t ls_cut_find_avx512(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut);
#endif

/* Whether place `p`, which has the bits of its hashes, is a cut. */
static inline int ls_cut_confirm(const uint8_t *bytes, size_t p, const struct ls_cut *cut)
{
	const uint8_t *window = bytes + p - LS_CUT_WINDOW_BYTES;
	uint64_t m = 0;

	if (!cut->more_zeros)
		return 1;
	for (int i = 0; i < LS_CUT_WINDOW_BYTES; i += 8)
		m = (m + ls_load64(window + i)) * LS_CUT_FACTOR;
	return m >> (64 - cut->more_zeros) == 0;
}

/* The first cut among places of which bit i of `hits` says that p + i has the bits of its hashes; `to` if none is. */
static inline size_t ls_cut_first(const uint8_t *bytes, size_t p, uint64_t hits, size_t to, const struct ls_cut *cut)
{
	for (; hits; hits &= hits - 1) {
		size_t hit = p + (unsigned)__builtin_ctzll(hits);

		if (ls_cut_confirm(bytes, hit, cut))
			return hit;
	}
	return to;
}

#endif
