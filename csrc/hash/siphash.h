/* SipHash, a keyed hash for hash tables that an adversary may fill: J.-P. Aumasson and D. J. Bernstein,
 * "SipHash: a fast short-input PRF", 2012, section 2. */
#ifndef LS_SIPHASH_H
#define LS_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

#define LS_SIPHASH_KEY_BYTES 16

/* SipHash-1-3, 64 bits: the variant of every table in layerstore. */
uint64_t ls_siphash13(const uint8_t key[LS_SIPHASH_KEY_BYTES], const void *bytes, size_t length);

/* SipHash-c-d. Slower than the above; it is there so that tests can use the paper's vectors, which are of 2-4. */
uint64_t ls_siphash(unsigned c, unsigned d, const uint8_t key[LS_SIPHASH_KEY_BYTES], const void *bytes, size_t length);

#endif
