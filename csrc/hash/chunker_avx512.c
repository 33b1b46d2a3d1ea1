/* 64 places a step. GFNI multiplies 64 bytes by a constant of AES's field in one instruction. Of h(p - 16) nothing
 * is computed: which places have its bits is known from 16 places before. */
#include "base/cpu.h"
#include "chunker_impl.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) LS_TARGET_GFNI
#define STEP 64

typedef __m512i vector;

/* What a step needs of the one before: its hashes of 2, 4 and 8 bytes. */
struct before {
	vector h2, h4, h8;
};

INLINE vector times(vector v, int factor)
{
	return _mm512_gf2p8mul_epi8(v, _mm512_set1_epi8((char)factor));
}

INLINE vector add(vector a, vector b)
{
	return _mm512_xor_si512(a, b);
}

/* The bytes so many places before those of `v`. */
INLINE vector back_8(vector v, vector before)
{
	return _mm512_alignr_epi64(v, before, 7);
}

INLINE vector back_4(vector v, vector before)
{
	return _mm512_alignr_epi32(v, before, 15);
}

INLINE vector back_2(vector v, vector before)
{
	return _mm512_shldi_epi32(v, back_4(v, before), 16);
}

/* h of 64 places: of those after the bytes of `last`. The bytes of `second_last` are one place before. */
INLINE vector hash(vector last, vector second_last, struct before *before)
{
	vector h2 = add(last, times(second_last, LS_CUT_POWER1));
	vector h4 = add(h2, times(back_2(h2, before->h2), LS_CUT_POWER2));
	vector h8 = add(h4, times(back_4(h4, before->h4), LS_CUT_POWER4));
	vector h = add(h8, times(back_8(h8, before->h8), LS_CUT_POWER8));

	*before = (struct before){h2, h4, h8};
	return h;
}

INLINE uint64_t have_ones(vector h, vector ones)
{
	return _mm512_cmpeq_epi8_mask(_mm512_and_si512(h, ones), ones);
}

/* The hashes of the 32 places before `p`: in the upper half of the vector. */
INLINE vector hash_window(const uint8_t *bytes, size_t p, struct before *before)
{
	const __mmask64 window = 0xffffffff00000000;
	const uint8_t *last = bytes + p - 1 - STEP;

	*before = (struct before){_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
	return hash(_mm512_maskz_loadu_epi8(window, last), _mm512_maskz_loadu_epi8(window, last - 1), before);
}

INLINE uint64_t have_zeros(vector h, vector zeros)
{
	return _mm512_testn_epi8_mask(h, zeros);
}

LS_TARGET_GFNI size_t ls_cut_find_avx512(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut)
{
	const vector zeros = _mm512_set1_epi8((char)cut->zeros), ones = _mm512_set1_epi8((char)cut->ones);
	struct before before;
	uint64_t older = have_ones(hash_window(bytes, from, &before), ones);

	for (size_t p = from; p < to; p += STEP) {
		const uint8_t *last = bytes + p - 1;
		uint64_t here = ~0ull, newer, hits;
		vector h;

		/* With masked loads all through, each step would wait for the mask of the one before. */
		if (to - p >= STEP) {
			_mm_prefetch((const char *)((uintptr_t)last + LS_CUT_PREFETCH_BYTES), _MM_HINT_T0);
			h = hash(_mm512_loadu_si512(last), _mm512_loadu_si512(last - 1), &before);
		} else {
			here = (1ull << (to - p)) - 1;
			h = hash(_mm512_maskz_loadu_epi8(here, last), _mm512_maskz_loadu_epi8(here, last - 1), &before);
		}
		newer = have_ones(h, ones);
		hits = here & have_zeros(h, zeros) & (newer << 16 | older >> 48);
		older = newer;
		if (__builtin_expect(hits != 0, 0)) {
			size_t found = ls_cut_first(bytes, p, hits, to, cut);

			if (found < to)
				return found;
		}
	}
	return to;
}

#endif
