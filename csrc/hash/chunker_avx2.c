/* 32 places a step. A product with a constant is the sum of the products of the lower and the upper four bits,
 * which are looked up. Of h(p - 16) nothing is computed: which places have its bits is known from 16 places
 * before. */
#include "base/cpu.h"
#include "chunker_impl.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) LS_TARGET_AVX2
#define STEP 32

typedef __m256i vector;

/* What a step needs of the one before: its hashes of 2, 4 and 8 bytes. */
struct before {
	vector h2, h4, h8;
};

/* The products of a factor with 0, 1, ... 15 and with 0, 16, ... 240. */
struct products {
	uint8_t of_low[16];
	uint8_t of_high[16];
};

static const struct products power1 = {
    {0x00, 0x03, 0x06, 0x05, 0x0c, 0x0f, 0x0a, 0x09, 0x18, 0x1b, 0x1e, 0x1d, 0x14, 0x17, 0x12, 0x11},
    {0x00, 0x30, 0x60, 0x50, 0xc0, 0xf0, 0xa0, 0x90, 0x9b, 0xab, 0xfb, 0xcb, 0x5b, 0x6b, 0x3b, 0x0b},
};
static const struct products power2 = {
    {0x00, 0x05, 0x0a, 0x0f, 0x14, 0x11, 0x1e, 0x1b, 0x28, 0x2d, 0x22, 0x27, 0x3c, 0x39, 0x36, 0x33},
    {0x00, 0x50, 0xa0, 0xf0, 0x5b, 0x0b, 0xfb, 0xab, 0xb6, 0xe6, 0x16, 0x46, 0xed, 0xbd, 0x4d, 0x1d},
};
static const struct products power4 = {
    {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff},
    {0x00, 0x0b, 0x16, 0x1d, 0x2c, 0x27, 0x3a, 0x31, 0x58, 0x53, 0x4e, 0x45, 0x74, 0x7f, 0x62, 0x69},
};
static const struct products power8 = {
    {0x00, 0x1a, 0x34, 0x2e, 0x68, 0x72, 0x5c, 0x46, 0xd0, 0xca, 0xe4, 0xfe, 0xb8, 0xa2, 0x8c, 0x96},
    {0x00, 0xbb, 0x6d, 0xd6, 0xda, 0x61, 0xb7, 0x0c, 0xaf, 0x14, 0xc2, 0x79, 0x75, 0xce, 0x18, 0xa3},
};

INLINE vector load(const void *p)
{
	return _mm256_loadu_si256((const vector *)p);
}

INLINE vector table(const uint8_t products[16])
{
	return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)products));
}

INLINE vector times(vector v, const struct products *products)
{
	const vector four_bits = _mm256_set1_epi8(15);
	vector low = _mm256_and_si256(v, four_bits), high = _mm256_and_si256(_mm256_srli_epi16(v, 4), four_bits);

	return _mm256_xor_si256(_mm256_shuffle_epi8(table(products->of_low), low),
	                        _mm256_shuffle_epi8(table(products->of_high), high));
}

/* The bytes `n` places before those of `v`. */
#define BACK(v, before, n) _mm256_alignr_epi8(v, _mm256_permute2x128_si256(before, v, 0x21), 16 - (n))

/* h of 32 places: of those after the bytes of `last`. The bytes of `second_last` are one place before. */
INLINE vector hash(vector last, vector second_last, struct before *before)
{
	vector h2 = _mm256_xor_si256(last, times(second_last, &power1));
	vector h4 = _mm256_xor_si256(h2, times(BACK(h2, before->h2, 2), &power2));
	vector h8 = _mm256_xor_si256(h4, times(BACK(h4, before->h4, 4), &power4));
	vector h = _mm256_xor_si256(h8, times(BACK(h8, before->h8, 8), &power8));

	*before = (struct before){h2, h4, h8};
	return h;
}

/* The places whose hashes have all of these bits, and those that have none of them. */
INLINE uint32_t have_ones(vector h, vector bits)
{
	return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_and_si256(h, bits), bits));
}

INLINE uint32_t have_zeros(vector h, vector bits)
{
	return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_and_si256(h, bits), _mm256_setzero_si256()));
}

LS_TARGET_AVX2 size_t ls_cut_find_avx2(const uint8_t *bytes, size_t from, size_t to, const struct ls_cut *cut)
{
	const vector zeros = _mm256_set1_epi8((char)cut->zeros), ones = _mm256_set1_epi8((char)cut->ones);
	const uint8_t *window = bytes + from - 1 - LS_CUT_WINDOW_BYTES;
	struct before before = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
	uint32_t older = have_ones(hash(load(window), load(window - 1), &before), ones);

	for (size_t p = from; p < to; p += STEP) {
		const uint8_t *last = bytes + p - 1;
		uint8_t rest[1 + STEP] = {0};
		uint32_t here = ~0u;

		if (to - p < STEP) {
			here = (1u << (to - p)) - 1;
			memcpy(rest, last - 1, 1 + (to - p));
			last = rest + 1;
		}
		_mm_prefetch((const char *)((uintptr_t)last + LS_CUT_PREFETCH_BYTES), _MM_HINT_T0);
		vector h = hash(load(last), load(last - 1), &before);
		uint32_t newer = have_ones(h, ones);
		uint32_t hits = here & have_zeros(h, zeros) & (newer << 16 | older >> 16);

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
