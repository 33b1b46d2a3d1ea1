/* 8 jobs a vector, one a 32-bit lane. The 16 registers hold the state and nothing else, so there is no room
 * to interleave a second group as blake3_avx512.c does. */
#include "base/cpu.h"
#include "blake3_impl.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) LS_TARGET_AVX2
#define GROUP 8

typedef __m256i vector;

INLINE vector splat(uint32_t word)
{
	return _mm256_set1_epi32((int)word);
}

INLINE vector load(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

/* Transpose 8 rows of 8 words: within the 128-bit halves first, then the halves. */
INLINE void transpose(vector r[8])
{
	vector t[8];

	for (int i = 0; i < 8; i += 4) {
		vector ab_low = _mm256_unpacklo_epi32(r[i], r[i + 1]), ab_high = _mm256_unpackhi_epi32(r[i], r[i + 1]);
		vector cd_low = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]);
		vector cd_high = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);

		t[i] = _mm256_unpacklo_epi64(ab_low, cd_low);
		t[i + 1] = _mm256_unpackhi_epi64(ab_low, cd_low);
		t[i + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
		t[i + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
	}
	for (int i = 0; i < 4; i++) {
		r[i] = _mm256_permute2x128_si256(t[i], t[4 + i], 0x20);
		r[4 + i] = _mm256_permute2x128_si256(t[i], t[4 + i], 0x31);
	}
}

/* Word i of every lane's block to m[i]. */
INLINE void load_message(vector m[16], const uint8_t *const rows[GROUP])
{
	for (int l = 0; l < GROUP; l++) {
		m[l] = load(rows[l]);
		m[8 + l] = load(rows[l] + 32);
	}
	transpose(m);
	transpose(m + 8);
}

/* Point rows at the block of each lane, at a copy padded with zeros where it is not a whole one. */
static void find_rows(const uint8_t *rows[GROUP], uint8_t padded[GROUP][64], const uint8_t *const in[GROUP],
                      const uint32_t length[GROUP], uint32_t offset)
{
	for (int l = 0; l < GROUP; l++) {
		uint32_t left = length[l] > offset ? length[l] - offset : 0;

		rows[l] = left < 64 ? padded[l] : in[l] + offset;
		if (left >= 64)
			continue;
		memset(padded[l], 0, 64);
		if (left)
			memcpy(padded[l], in[l] + offset, left);
	}
}

INLINE vector rotate_16(vector v)
{
	const vector order = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4,
	                                      5, 10, 11, 8, 9, 14, 15, 12, 13);
	return _mm256_shuffle_epi8(v, order);
}

INLINE vector rotate_8(vector v)
{
	const vector order = _mm256_setr_epi8(1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, 1, 2, 3, 0, 5, 6, 7,
	                                      4, 9, 10, 11, 8, 13, 14, 15, 12);
	return _mm256_shuffle_epi8(v, order);
}

INLINE vector rotate_12(vector v)
{
	return _mm256_or_si256(_mm256_srli_epi32(v, 12), _mm256_slli_epi32(v, 20));
}

INLINE vector rotate_7(vector v)
{
	return _mm256_or_si256(_mm256_srli_epi32(v, 7), _mm256_slli_epi32(v, 25));
}

/* Do STEP on the four columns (turn 0) or diagonals (turn 1), side by side. */
#define STEP_ALL(STEP, ...) STEP(0, __VA_ARGS__) STEP(1, __VA_ARGS__) STEP(2, __VA_ARGS__) STEP(3, __VA_ARGS__)

#define A(q) v[q]
#define B(q, turn) v[4 + ((q) + (turn)) % 4]
#define C(q, turn) v[8 + ((q) + 2 * (turn)) % 4]
#define D(q, turn) v[12 + ((q) + 3 * (turn)) % 4]

#define A_ADD_M(q, round, turn, half)                                                                                  \
	A(q) = _mm256_add_epi32(A(q), m[ls_b3_schedule[round][8 * (turn) + 2 * (q) + (half)]]);
#define A_ADD_B(q, turn) A(q) = _mm256_add_epi32(A(q), B(q, turn));
#define D_XOR_A(q, turn) D(q, turn) = _mm256_xor_si256(D(q, turn), A(q));
#define D_ROTATE(q, turn, bits) D(q, turn) = rotate_##bits(D(q, turn));
#define C_ADD_D(q, turn) C(q, turn) = _mm256_add_epi32(C(q, turn), D(q, turn));
#define B_XOR_C(q, turn) B(q, turn) = _mm256_xor_si256(B(q, turn), C(q, turn));
#define B_ROTATE(q, turn, bits) B(q, turn) = rotate_##bits(B(q, turn));

INLINE void rounds(vector v[16], const vector m[16])
{
	ROUND(0)
	ROUND(1)
	ROUND(2)
	ROUND(3)
	ROUND(4)
	ROUND(5)
	ROUND(6)
}

/* h of the lanes that have bytes `left` (all of them in their first block: one may be the empty input). */
INLINE void compress(vector h[8], const vector m[16], vector left, const struct ls_b3_lanes *lanes, unsigned first,
                     int is_first, enum ls_b3_node node)
{
	vector last = _mm256_cmpgt_epi32(splat(65), left);
	vector active = is_first ? splat(~0u) : _mm256_cmpgt_epi32(left, splat(0));
	vector end = _mm256_or_si256(splat(node == LS_B3_NODE_PARENT ? LS_B3_PARENT : LS_B3_CHUNK_END),
	                             load(lanes->root + first));
	vector v[16];

	for (int i = 0; i < 8; i++)
		v[i] = h[i];
	for (int i = 0; i < 4; i++)
		v[8 + i] = splat(ls_b3_iv[i]);
	v[12] = load(lanes->counter_low + first);
	v[13] = load(lanes->counter_high + first);
	v[14] = _mm256_min_epu32(left, splat(64));
	v[15] = _mm256_or_si256(splat(is_first && node == LS_B3_NODE_CHUNK ? LS_B3_CHUNK_START : 0),
	                        _mm256_and_si256(last, end));
	rounds(v, m);
	for (int i = 0; i < 8; i++)
		h[i] = _mm256_blendv_epi8(h[i], _mm256_xor_si256(v[i], v[8 + i]), active);
}

LS_TARGET_AVX2 static void run_group(const struct ls_b3_lanes *lanes, unsigned first, enum ls_b3_node node)
{
	const uint8_t *rows[GROUP];
	uint8_t padded[GROUP][64];
	vector h[8], m[16], left = load(lanes->length + first);
	uint32_t longest = 0;

	for (int i = 0; i < 8; i++)
		h[i] = splat(ls_b3_iv[i]);
	for (int l = 0; l < GROUP; l++)
		longest = lanes->length[first + l] > longest ? lanes->length[first + l] : longest;
	for (uint32_t offset = 0; offset == 0 || offset < longest; offset += 64) {
		find_rows(rows, padded, lanes->in + first, lanes->length + first, offset);
		load_message(m, rows);
		compress(h, m, left, lanes, first, !offset, node);
		left = _mm256_sub_epi32(left, _mm256_min_epu32(left, splat(64)));
	}
	transpose(h);
	for (unsigned l = 0; l < GROUP && first + l < lanes->count; l++)
		_mm256_storeu_si256((__m256i *)lanes->out[first + l], h[l]);
}

LS_TARGET_AVX2 void ls_b3_run_avx2(struct ls_b3_lanes *lanes, enum ls_b3_node node)
{
	ls_b3_pad(lanes, GROUP);
	for (unsigned first = 0; first < lanes->count; first += GROUP)
		run_group(lanes, first, node);
}

#endif
