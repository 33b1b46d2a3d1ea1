#include "sha256.h"

#include <endian.h>
#include <string.h>

#include "words.h"

#define BLOCK_BYTES 64

/* Section 5.3.3: the first 32 bits of the fractional parts of the square roots of the first 8 primes. */
static const uint32_t initial[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* Section 4.2.2: the same of the cube roots of the first 64 primes. */
static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* Section 6.2.2, step 1. */
static void schedule(uint32_t w[64], const uint8_t *block)
{
	for (int t = 0; t < 16; t++) {
		memcpy(&w[t], block + t * sizeof(w[t]), sizeof(w[t]));
		w[t] = be32toh(w[t]);
	}
	for (int t = 16; t < 64; t++) {
		uint32_t s0 = ls_rotate_right32(w[t - 15], 7) ^ ls_rotate_right32(w[t - 15], 18) ^ w[t - 15] >> 3;
		uint32_t s1 = ls_rotate_right32(w[t - 2], 17) ^ ls_rotate_right32(w[t - 2], 19) ^ w[t - 2] >> 10;

		w[t] = s1 + w[t - 7] + s0 + w[t - 16];
	}
}

/* Section 6.2.2, steps 2 to 4. */
static void compress(uint32_t state[8], const uint8_t *block)
{
	uint32_t w[64], v[8];

	schedule(w, block);
	memcpy(v, state, sizeof(v));
	for (int t = 0; t < 64; t++) {
		uint32_t a = v[0], e = v[4];
		uint32_t s1 = ls_rotate_right32(e, 6) ^ ls_rotate_right32(e, 11) ^ ls_rotate_right32(e, 25);
		uint32_t t1 = v[7] + s1 + ((e & v[5]) ^ (~e & v[6])) + constants[t] + w[t];
		uint32_t s0 = ls_rotate_right32(a, 2) ^ ls_rotate_right32(a, 13) ^ ls_rotate_right32(a, 22);
		uint32_t t2 = s0 + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));

		memmove(v + 1, v, 7 * sizeof(*v));
		v[4] += t1;
		v[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		state[i] += v[i];
}

void ls_sha256(const void *bytes, size_t length, uint8_t digest[LS_SHA256_BYTES])
{
	uint8_t last[2 * BLOCK_BYTES] = {0};
	size_t rest = length % BLOCK_BYTES, whole = length - rest;
	size_t last_length = rest + 9 <= BLOCK_BYTES ? BLOCK_BYTES : 2 * BLOCK_BYTES;
	uint64_t bits = htobe64((uint64_t)length * 8);
	uint32_t state[8];

	memcpy(state, initial, sizeof(state));
	for (size_t at = 0; at < whole; at += BLOCK_BYTES)
		compress(state, (const uint8_t *)bytes + at);
	/* Section 5.1.1: a one, zeros, the length in bits. */
	if (rest)
		memcpy(last, (const uint8_t *)bytes + whole, rest);
	last[rest] = 0x80;
	memcpy(last + last_length - sizeof(bits), &bits, sizeof(bits));
	for (size_t at = 0; at < last_length; at += BLOCK_BYTES)
		compress(state, last + at);
	for (int i = 0; i < 8; i++) {
		uint32_t word = htobe32(state[i]);

		memcpy(digest + i * sizeof(word), &word, sizeof(word));
	}
}
