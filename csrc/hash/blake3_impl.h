/* What the BLAKE3 driver asks of a kernel. Internal to blake3*.c; callers use blake3.h.
 *
 * A kernel compresses up to LS_B3_LANES independent jobs: whole chunks, the short last chunk of an input
 * (jobs of different lengths may share a run, the driver keeps such runs few), or parent nodes. Section
 * numbers are those of the BLAKE3 paper. */
#ifndef LS_BLAKE3_IMPL_H
#define LS_BLAKE3_IMPL_H

#include <stddef.h>
#include <stdint.h>

#define LS_B3_LANES 32
#define LS_B3_BLOCK_BYTES 64
#define LS_B3_ROUNDS 7

/* Domain separation, table 3. */
enum ls_b3_flag {
	LS_B3_CHUNK_START = 1 << 0,
	LS_B3_CHUNK_END = 1 << 1,
	LS_B3_PARENT = 1 << 2,
	LS_B3_ROOT = 1 << 3,
};

enum ls_b3_node {
	LS_B3_NODE_CHUNK,  /* 0..1024 bytes; 0 only for the empty input */
	LS_B3_NODE_PARENT, /* 64 bytes, two chaining values one after the other; counter 0 */
};

/* Jobs, one a lane, of one kind of node. Outputs may overlap inputs of the same run: a kernel that works on
 * several lanes at once loads all of a group before it stores any, and takes groups in order, so output l
 * may overlap the inputs of lanes <= l. */
struct ls_b3_lanes {
	const uint8_t *in[LS_B3_LANES];
	uint8_t *out[LS_B3_LANES]; /* 32 bytes: the chaining value, or the digest where root is set */
	uint32_t length[LS_B3_LANES];
	uint32_t counter_low[LS_B3_LANES]; /* the chunk's place in its input */
	uint32_t counter_high[LS_B3_LANES];
	uint32_t root[LS_B3_LANES]; /* LS_B3_ROOT or 0 */
	unsigned count;             /* lanes in use, 1..LS_B3_LANES in a run */
};

/* May write the lanes past `count`. */
typedef void ls_b3_run_fn(struct ls_b3_lanes *lanes, enum ls_b3_node node);

void ls_b3_run_portable(struct ls_b3_lanes *lanes, enum ls_b3_node node);
#if defined(__x86_64__)
void ls_b3_run_avx2(struct ls_b3_lanes *lanes, enum ls_b3_node node);
void ls_b3_run_avx512(struct ls_b3_lanes *lanes, enum ls_b3_node node);
#endif

/* Table 1. */
static const uint32_t ls_b3_iv[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* The message words of each round: the permutation of table 2 applied 0 to 6 times. */
static const uint8_t ls_b3_schedule[LS_B3_ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

/* A round of a vector kernel, made of its own steps: STEP_ALL does one on the four columns (turn 0) or diagonals (turn 1),
 * side by side. */

/* The first or second half of the paper's function G. */
#define HALF_G(round, turn, half, d_bits, b_bits)                                                                      \
	STEP_ALL(A_ADD_M, round, turn, half)                                                                           \
	STEP_ALL(A_ADD_B, turn)                                                                                        \
	STEP_ALL(D_XOR_A, turn)                                                                                        \
	STEP_ALL(D_ROTATE, turn, d_bits)                                                                               \
	STEP_ALL(C_ADD_D, turn)                                                                                        \
	STEP_ALL(B_XOR_C, turn)                                                                                        \
	STEP_ALL(B_ROTATE, turn, b_bits)

#define ROUND(round)                                                                                                   \
	HALF_G(round, 0, 0, 16, 12)                                                                                    \
	HALF_G(round, 0, 1, 8, 7)                                                                                      \
	HALF_G(round, 1, 0, 16, 12)                                                                                    \
	HALF_G(round, 1, 1, 8, 7)

/* Repeat the first job in the lanes from `count` up to a multiple of `group`, so that a vector kernel needs
 * no case for empty lanes; it stores the first `count` only. Returns the number of lanes then set. */
static inline unsigned ls_b3_pad(struct ls_b3_lanes *lanes, unsigned group)
{
	unsigned padded = (lanes->count + group - 1) / group * group;

	for (unsigned l = lanes->count; l < padded; l++) {
		lanes->in[l] = lanes->in[0];
		lanes->length[l] = lanes->length[0];
		lanes->counter_low[l] = lanes->counter_low[0];
		lanes->counter_high[l] = lanes->counter_high[0];
		lanes->root[l] = lanes->root[0];
	}
	return padded;
}

#endif
