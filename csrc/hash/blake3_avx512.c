/* 16 jobs a vector, one a 32-bit lane, and two such groups interleaved.
 *
 * A round of one group is four chains of dependent instructions; the second group fills the gaps they leave. The
 * state of both is exactly the 32 registers there are, and the message words stay in memory, where an add takes
 * them at no cost. The rounds are straight-line, in the order they are to run in: gcc does not reorder them. */
#include "base/cpu.h"
#include "blake3_impl.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) LS_TARGET_AVX512

/* Files of a layer lie one after another, so what follows a chunk by the 32 KiB that a run takes is most
 * likely the next run's chunk in that lane. */
#define PREFETCH_AHEAD_BYTES ((size_t)LS_B3_LANES * 1024)

typedef __m512i vector;

/* Per lane, for the block at hand. */
struct block {
	vector length;
	vector flags;
	__mmask16 active;
};

INLINE vector splat(uint32_t word)
{
	return _mm512_set1_epi32((int)word);
}

/* In each 128-bit quarter, transpose 4 rows of 4 words. */
INLINE void transpose_quarters(vector r[4])
{
	vector ab_low = _mm512_unpacklo_epi32(r[0], r[1]), ab_high = _mm512_unpackhi_epi32(r[0], r[1]);
	vector cd_low = _mm512_unpacklo_epi32(r[2], r[3]), cd_high = _mm512_unpackhi_epi32(r[2], r[3]);

	r[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
	r[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
	r[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
	r[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

INLINE __m256i load_half(const uint8_t *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

INLINE vector load_halves(const uint8_t *low, const uint8_t *high)
{
	return _mm512_inserti64x4(_mm512_castsi256_si512(load_half(low)), load_half(high), 1);
}

/* Word i of the block at `at` of every row to m[i]. Rows 4 apart exchange halves, then quarters, then words
 * within them. Halves are exchanged by the load: a shuffle would want the one port that the other stages need,
 * an insert from memory takes either. */
INLINE void load_message(vector m[16], const uint8_t *const row[16], size_t at)
{
	for (int i = 0; i < 4; i++) {
		vector ab_low = load_halves(row[i] + at, row[4 + i] + at);
		vector cd_low = load_halves(row[8 + i] + at, row[12 + i] + at);
		vector ab_high = load_halves(row[i] + at + 32, row[4 + i] + at + 32);
		vector cd_high = load_halves(row[8 + i] + at + 32, row[12 + i] + at + 32);

		m[i] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
		m[4 + i] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
		m[8 + i] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
		m[12 + i] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
	}
	for (int i = 0; i < 16; i += 4)
		transpose_quarters(m + i);
}

/* For lanes of different lengths: point row at a copy of each lane's block at `offset`, padded with zeros. The
 * bytes past the end of a job are not read. */
static __attribute__((noinline)) LS_TARGET_AVX512 void copy_blocks(const uint8_t *row[16], vector copy[16],
                                                                   const uint8_t *const in[16],
                                                                   const uint32_t length[16], uint32_t offset)
{
	for (int l = 0; l < 16; l++) {
		uint32_t left = length[l] > offset ? length[l] - offset : 0;

		copy[l] = _mm512_setzero_si512();
		if (left)
			copy[l] = _mm512_maskz_loadu_epi8(left < 64 ? ~0ull >> (64 - left) : ~0ull, in[l] + offset);
		row[l] = (const uint8_t *)&copy[l];
	}
}

/* Do STEP on the four columns (turn 0) or diagonals (turn 1) of one group or both, side by side. */
#define STEP_GROUP(STEP, g, ...)                                                                                       \
	STEP(g, 0, __VA_ARGS__) STEP(g, 1, __VA_ARGS__) STEP(g, 2, __VA_ARGS__) STEP(g, 3, __VA_ARGS__)
#define STEP_ALL(STEP, ...)                                                                                            \
	STEP_GROUP(STEP, 0, __VA_ARGS__)                                                                               \
	if (groups == 2) {                                                                                             \
		STEP_GROUP(STEP, 1, __VA_ARGS__)                                                                       \
	}

#define A(g, q) v[g][q]
#define B(g, q, turn) v[g][4 + ((q) + (turn)) % 4]
#define C(g, q, turn) v[g][8 + ((q) + 2 * (turn)) % 4]
#define D(g, q, turn) v[g][12 + ((q) + 3 * (turn)) % 4]

#define M(g, q, round, turn, half) m[g][ls_b3_schedule[round][8 * (turn) + 2 * (q) + (half)]]

#define A_ADD_M(g, q, round, turn, half) A(g, q) = _mm512_add_epi32(A(g, q), M(g, q, round, turn, half));
#define A_ADD_B(g, q, turn) A(g, q) = _mm512_add_epi32(A(g, q), B(g, q, turn));
#define D_XOR_A(g, q, turn) D(g, q, turn) = _mm512_xor_si512(D(g, q, turn), A(g, q));
#define D_ROTATE(g, q, turn, bits) D(g, q, turn) = _mm512_ror_epi32(D(g, q, turn), bits);
#define C_ADD_D(g, q, turn) C(g, q, turn) = _mm512_add_epi32(C(g, q, turn), D(g, q, turn));
#define B_XOR_C(g, q, turn) B(g, q, turn) = _mm512_xor_si512(B(g, q, turn), C(g, q, turn));
#define B_ROTATE(g, q, turn, bits) B(g, q, turn) = _mm512_ror_epi32(B(g, q, turn), bits);

/* Touch the cache lines `ahead` bytes after four lanes' chunks. Spread over the rounds it is free; in one place
 * its instructions keep the vector ports waiting: 6% on the whole. */
#define PREFETCH(first)                                                                                                \
	if (groups == 2)                                                                                               \
		for (int l = first; l < (first) + 4; l++)                                                              \
			_mm_prefetch((const char *)((uintptr_t)in[l] + ahead), _MM_HINT_T0);

INLINE void rounds(vector v[2][16], vector m[2][16], int groups, const uint8_t *const in[LS_B3_LANES], size_t ahead)
{
	ROUND(0)
	PREFETCH(0)
	PREFETCH(4)
	ROUND(1)
	PREFETCH(8)
	ROUND(2)
	PREFETCH(12)
	ROUND(3)
	PREFETCH(16)
	ROUND(4)
	PREFETCH(20)
	ROUND(5)
	PREFETCH(24)
	PREFETCH(28)
	ROUND(6)
}

/* `left`: the bytes each lane has from this block on. A lane that is at its end is active only in its first
 * block: that is the empty input. */
INLINE struct block describe(vector left, const uint32_t root[16], int is_first, enum ls_b3_node node)
{
	struct block block;
	__mmask16 last = _mm512_cmple_epu32_mask(left, splat(64));
	vector end = splat(node == LS_B3_NODE_PARENT ? LS_B3_PARENT : LS_B3_CHUNK_END);

	block.length = _mm512_min_epu32(left, splat(64));
	block.flags = splat(is_first && node == LS_B3_NODE_CHUNK ? LS_B3_CHUNK_START : 0);
	block.flags =
	    _mm512_mask_or_epi32(block.flags, last, block.flags, _mm512_or_si512(end, _mm512_loadu_si512(root)));
	block.active = is_first ? 0xffff : _mm512_test_epi32_mask(left, left);
	return block;
}

INLINE void start_state(vector v[16], const vector h[8], const struct block *block, const struct ls_b3_lanes *lanes,
                        unsigned first)
{
	for (int i = 0; i < 8; i++)
		v[i] = h[i];
	for (int i = 0; i < 4; i++)
		v[8 + i] = splat(ls_b3_iv[i]);
	v[12] = _mm512_loadu_si512(lanes->counter_low + first);
	v[13] = _mm512_loadu_si512(lanes->counter_high + first);
	v[14] = block->length;
	v[15] = block->flags;
}

/* The inverse of load_message, for the 32 bytes of a value. */
INLINE void store_values(vector h[8], uint8_t *const out[16], unsigned count)
{
	transpose_quarters(h);
	transpose_quarters(h + 4);
	for (unsigned i = 0; i < 8; i++) {
		vector r = h[i];
		uint8_t *const *row = out + i % 4;
		size_t at = 16 * (i / 4);

#define STORE_QUARTER(q)                                                                                               \
	if (4 * q + i % 4 < count)                                                                                     \
		_mm_storeu_si128((__m128i *)(row[4 * q] + at), _mm512_extracti32x4_epi32(r, q));
		STORE_QUARTER(0)
		STORE_QUARTER(1)
		STORE_QUARTER(2)
		STORE_QUARTER(3)
	}
}

/* Run `groups` groups of 16 lanes. */
INLINE void run(const struct ls_b3_lanes *lanes, int groups, enum ls_b3_node node)
{
	vector h[2][8], left[2];
	uint32_t shortest = ~0u, longest = 0;
	size_t ahead;

	for (int g = 0; g < groups; g++) {
		for (int i = 0; i < 8; i++)
			h[g][i] = splat(ls_b3_iv[i]);
		left[g] = _mm512_loadu_si512(lanes->length + 16 * g);
		uint32_t low = _mm512_reduce_min_epu32(left[g]), high = _mm512_reduce_max_epu32(left[g]);

		shortest = low < shortest ? low : shortest;
		longest = high > longest ? high : longest;
	}
	ahead = shortest == 1024 ? PREFETCH_AHEAD_BYTES : 0;
	for (uint32_t offset = 0; offset == 0 || offset < longest; offset += 64) {
		vector m[2][16], v[2][16], copy[16];
		const uint8_t *row[16];
		struct block block[2];

		for (int g = 0; g < groups; g++) {
			if (offset + 64 <= shortest) {
				load_message(m[g], lanes->in + 16 * g, offset);
			} else {
				copy_blocks(row, copy, lanes->in + 16 * g, lanes->length + 16 * g, offset);
				load_message(m[g], row, 0);
			}
			block[g] = describe(left[g], lanes->root + 16 * g, !offset, node);
			left[g] = _mm512_sub_epi32(left[g], block[g].length);
		}
		for (int g = 0; g < groups; g++)
			start_state(v[g], h[g], &block[g], lanes, 16 * g);
		rounds(v, m, groups, lanes->in, offset + ahead);
		for (int g = 0; g < groups; g++)
			for (int i = 0; i < 8; i++)
				h[g][i] = _mm512_mask_xor_epi32(h[g][i], block[g].active, v[g][i], v[g][8 + i]);
	}
	for (int g = 0; g < groups; g++)
		store_values(h[g], lanes->out + 16 * g, lanes->count - 16 * g);
}

LS_TARGET_AVX512 void ls_b3_run_avx512(struct ls_b3_lanes *lanes, enum ls_b3_node node)
{
	if (ls_b3_pad(lanes, 16) > 16)
		run(lanes, 2, node);
	else
		run(lanes, 1, node);
}

#endif
