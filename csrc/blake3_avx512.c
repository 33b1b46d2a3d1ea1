/* 16 jobs a vector, one a 32-bit lane, and two such groups interleaved.
 *
 * A round of one group has chains of 12 dependent instructions, four wide, which leaves the two vector ports
 * half idle; the second group fills them, and the state of both is exactly the 32 registers there are. So the
 * message words must stay in memory, where an add takes them at no cost, and the rounds are written in the
 * order they are to run in, straight-line: gcc schedules neither across nor within them. */
#include "blake3_impl.h"
#include "cpu.h"

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

/* Transpose 16 rows of 16 words: within 128-bit quarters first, then the quarters. */
INLINE void transpose(vector r[16])
{
	vector t[16];

	for (int i = 0; i < 16; i += 4) {
		vector ab_low = _mm512_unpacklo_epi32(r[i], r[i + 1]), ab_high = _mm512_unpackhi_epi32(r[i], r[i + 1]);
		vector cd_low = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
		vector cd_high = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);

		t[i] = _mm512_unpacklo_epi64(ab_low, cd_low);
		t[i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
		t[i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
		t[i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
	}
	for (int i = 0; i < 4; i++) {
		vector even_low = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
		vector even_high = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
		vector odd_low = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
		vector odd_high = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);

		r[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
		r[4 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
		r[8 + i] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
		r[12 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
	}
}

/* The bytes of a job at `offset` as a block padded with zeros; the bytes past its end are not read. */
INLINE vector load_short(const uint8_t *in, uint32_t length, uint32_t offset)
{
	uint32_t left = length > offset ? length - offset : 0;

	if (!left)
		return _mm512_setzero_si512();
	return _mm512_maskz_loadu_epi8(left < 64 ? ~0ull >> (64 - left) : ~0ull, in + offset);
}

/* Word i of every lane's block to m[i]. */
INLINE void load_message(vector m[16], const uint8_t *const in[16], const uint32_t length[16], uint32_t offset,
			 int all_whole)
{
	if (all_whole)
		for (int l = 0; l < 16; l++)
			m[l] = _mm512_loadu_si512(in[l] + offset);
	else
		for (int l = 0; l < 16; l++)
			m[l] = load_short(in[l], length[l], offset);
	transpose(m);
}

/* gcc 12 loads a message word into a register, and spills one of the state for it, where it sees an
 * intrinsic; an asm operand that can only be memory leaves it no choice: 8% on the whole. */
#define ADD_MESSAGE(a, word) __asm__("vpaddd %1, %0, %0" : "+v"(a) : "m"(word))

/* Do STEP on the four columns (turn 0) or diagonals (turn 1) of one group or both, side by side. */
#define STEP_GROUP(STEP, g, ...) STEP(g, 0, __VA_ARGS__) STEP(g, 1, __VA_ARGS__) STEP(g, 2, __VA_ARGS__) STEP(g, 3, __VA_ARGS__)
#define STEP_ALL(STEP, ...)                         \
	STEP_GROUP(STEP, 0, __VA_ARGS__)            \
	if (groups == 2) {                          \
		STEP_GROUP(STEP, 1, __VA_ARGS__)    \
	}

#define A(g, q) v[g][q]
#define B(g, q, turn) v[g][4 + ((q) + (turn)) % 4]
#define C(g, q, turn) v[g][8 + ((q) + 2 * (turn)) % 4]
#define D(g, q, turn) v[g][12 + ((q) + 3 * (turn)) % 4]

#define A_ADD_M(g, q, round, turn, half) ADD_MESSAGE(A(g, q), m[g][ls_b3_schedule[round][8 * (turn) + 2 * (q) + (half)]]);
#define A_ADD_B(g, q, turn) A(g, q) = _mm512_add_epi32(A(g, q), B(g, q, turn));
#define D_XOR_A(g, q, turn) D(g, q, turn) = _mm512_xor_si512(D(g, q, turn), A(g, q));
#define D_ROTATE(g, q, turn, bits) D(g, q, turn) = _mm512_ror_epi32(D(g, q, turn), bits);
#define C_ADD_D(g, q, turn) C(g, q, turn) = _mm512_add_epi32(C(g, q, turn), D(g, q, turn));
#define B_XOR_C(g, q, turn) B(g, q, turn) = _mm512_xor_si512(B(g, q, turn), C(g, q, turn));
#define B_ROTATE(g, q, turn, bits) B(g, q, turn) = _mm512_ror_epi32(B(g, q, turn), bits);

/* The first or second half of the paper's function G. */
#define HALF_G(round, turn, half, d_bits, b_bits)   \
	STEP_ALL(A_ADD_M, round, turn, half)        \
	STEP_ALL(A_ADD_B, turn)                     \
	STEP_ALL(D_XOR_A, turn)                     \
	STEP_ALL(D_ROTATE, turn, d_bits)            \
	STEP_ALL(C_ADD_D, turn)                     \
	STEP_ALL(B_XOR_C, turn)                     \
	STEP_ALL(B_ROTATE, turn, b_bits)

#define ROUND(round)                                \
	HALF_G(round, 0, 0, 16, 12)                 \
	HALF_G(round, 0, 1, 8, 7)                   \
	HALF_G(round, 1, 0, 16, 12)                 \
	HALF_G(round, 1, 1, 8, 7)

INLINE void rounds(vector v[2][16], vector m[2][16], int groups)
{
	ROUND(0)
	ROUND(1)
	ROUND(2)
	ROUND(3)
	ROUND(4)
	ROUND(5)
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
	block.flags = _mm512_mask_or_epi32(block.flags, last, block.flags, _mm512_or_si512(end, _mm512_loadu_si512(root)));
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

INLINE void store_values(const vector h[8], uint8_t *const out[16], unsigned count)
{
	vector r[16];

	for (int i = 0; i < 8; i++) {
		r[i] = h[i];
		r[8 + i] = _mm512_setzero_si512();
	}
	transpose(r);
	for (int l = 0; l < 16; l++)
		if ((unsigned)l < count)
			_mm256_storeu_si256((__m256i *)out[l], _mm512_castsi512_si256(r[l]));
}

INLINE void prefetch_following(const struct ls_b3_lanes *lanes, uint32_t offset)
{
	for (int l = 0; l < LS_B3_LANES; l++)
		_mm_prefetch((const char *)((uintptr_t)lanes->in[l] + PREFETCH_AHEAD_BYTES + offset), _MM_HINT_T0);
}

/* Run `groups` groups of 16 lanes. */
INLINE void run(const struct ls_b3_lanes *lanes, int groups, enum ls_b3_node node)
{
	vector h[2][8], left[2];
	uint32_t shortest = ~0u, longest = 0;

	for (int g = 0; g < groups; g++) {
		for (int i = 0; i < 8; i++)
			h[g][i] = splat(ls_b3_iv[i]);
		left[g] = _mm512_loadu_si512(lanes->length + 16 * g);
		uint32_t low = _mm512_reduce_min_epu32(left[g]), high = _mm512_reduce_max_epu32(left[g]);

		shortest = low < shortest ? low : shortest;
		longest = high > longest ? high : longest;
	}
	for (uint32_t offset = 0; offset == 0 || offset < longest; offset += 64) {
		vector m[2][16], v[2][16];
		struct block block[2];

		for (int g = 0; g < groups; g++) {
			load_message(m[g], lanes->in + 16 * g, lanes->length + 16 * g, offset, offset + 64 <= shortest);
			block[g] = describe(left[g], lanes->root + 16 * g, !offset, node);
			left[g] = _mm512_sub_epi32(left[g], block[g].length);
		}
		if (groups == 2 && shortest == 1024)
			prefetch_following(lanes, offset);
		__asm__ volatile("" : "+m"(m)); /* the message is in memory from here on */
		for (int g = 0; g < groups; g++)
			start_state(v[g], h[g], &block[g], lanes, 16 * g);
		rounds(v, m, groups);
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
