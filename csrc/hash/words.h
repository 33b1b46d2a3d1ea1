/* Words as hashes are defined on them: little-endian in memory, turned around in registers. */
#ifndef LS_WORDS_H
#define LS_WORDS_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t ls_load32(const uint8_t *bytes)
{
	uint32_t word;

	memcpy(&word, bytes, sizeof(word));
	return le32toh(word);
}

static inline uint64_t ls_load64(const uint8_t *bytes)
{
	uint64_t word;

	memcpy(&word, bytes, sizeof(word));
	return le64toh(word);
}

static inline uint32_t ls_rotate_left32(uint32_t word, int bits)
{
	return word << bits | word >> (32 - bits);
}

static inline uint32_t ls_rotate_right32(uint32_t word, int bits)
{
	return word >> bits | word << (32 - bits);
}

#endif
