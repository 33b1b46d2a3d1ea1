/* Content-defined chunks: a content is cut where the 32 bytes before a place say so, so that two contents that
 * have a stretch in common have chunks in common, wherever it lies in them. docs/format/chunks.md defines the cut
 * points and says why they are where they are; what follows is enough to find the same ones.
 *
 * Bytes are elements of GF(2^8) with AES's polynomial x^8 + x^4 + x^3 + x + 1 (FIPS 197, section 4); ^ adds, 3
 * generates its multiplicative group. The hash of the 16 bytes that end before place p, for b[i] the byte at place
 * i:
 *
 *     h(p) = b[p-1] ^ 3·b[p-2] ^ 3²·b[p-3] ^ ... ^ 3¹⁵·b[p-16]
 *
 * Place p is a cut of n bits, where n ≤ 16, if the low (n + 1) / 2 bits of h(p) are 0 and the low n / 2 bits of
 * h(p - 16) are 1, both divisions rounded down. For n > 16 it must be a cut of 16 bits, and the n - 16 high bits
 * of m(p) be 0, where w[0] to w[3] are the 32 bytes before p as little-endian numbers of 64 bits, in the order of
 * their places, and modulo 2^64:
 *
 *     m(p) = (((w[0]·K + w[1])·K + w[2])·K + w[3])·K,  K = 0x9e3779b97f4a7c15
 *
 * The first chunk of a content of `length` bytes is all of it where length ≤ min. Otherwise it ends at the first
 * place p from min on that is a cut: of log2(average) + 2 bits where p < average, of log2(average) - 2 bits from
 * there on; at the latest at max, and at the end of the content. The next chunk is the first one of what follows.
 * No place before a chunk is looked at for it, so a chunk depends on its own bytes, and on whether the content
 * ends there.
 *
 * A kernel is one way to find these places; all find the same. A kernel asked for by name that this machine cannot
 * run is an error, never a silent fallback. No global state besides the CPU mask; everything here is thread-safe. */
#ifndef LS_CHUNKER_H
#define LS_CHUNKER_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"
#include "blake3.h"

/* What every version of the cut points must have a number of its own for: whoever stores chunks stores it too. */
#define LS_CHUNKER_VERSION 1

#define LS_CHUNK_LEAST_BYTES 64u
#define LS_CHUNK_LEAST_AVERAGE_BYTES 256u
#define LS_CHUNK_MOST_AVERAGE_BYTES (1u << 24)
#define LS_CHUNK_MOST_BYTES (1u << 30)

/* Bytes. LS_CHUNK_LEAST_BYTES <= min <= average <= max <= LS_CHUNK_MOST_BYTES; average is a power of two from
 * LS_CHUNK_LEAST_AVERAGE_BYTES to LS_CHUNK_MOST_AVERAGE_BYTES. Chunks of contents without end and pattern have about
 * `average` bytes in the mean where min is a quarter of it and max several times as large. */
struct ls_chunk_sizes {
	uint32_t min;
	uint32_t average;
	uint32_t max;
};

/* LS_INVALID, with what to give instead, where they are not as above. The functions below take sizes that are. */
int ls_chunk_sizes_check(const struct ls_chunk_sizes *sizes, struct ls_error *err);

struct ls_cut_kernel; /* one of base/kernel.h; opaque; static storage, never freed */

/* The kernels compiled in, NULL after the last one; "portable" is the first, the fastest the last. */
const struct ls_cut_kernel *ls_cut_kernel_at(size_t i);

/* The kernel of that name; NULL or "auto" for the fastest of those that run here. LS_NOT_FOUND for an unknown name,
 * LS_UNSUPPORTED where the CPU lacks it. */
int ls_cut_kernel_find(const char *name, const struct ls_cut_kernel **kernel, struct ls_error *err);

/* The bytes of the first chunk of `length` bytes, 0 for none. Where `length` < sizes->max and more bytes of the
 * content are to follow, it may be too short a chunk. No byte past `length` is read. */
size_t ls_chunk_length(const struct ls_cut_kernel *kernel, const struct ls_chunk_sizes *sizes, const uint8_t *bytes,
                       size_t length);

/* Append to `ends` (of uint64_t) where each chunk of the content ends, the last one at `length`. Errors:
 * LS_NO_MEMORY. */
int ls_chunk_ends(const struct ls_cut_kernel *kernel, const struct ls_chunk_sizes *sizes, const uint8_t *bytes,
                  size_t length, struct ls_buffer *ends, struct ls_error *err);

/* The same, and append to `digests` the BLAKE3 digest of each chunk, LS_B3_DIGEST_BYTES each. Chunks are hashed
 * many at once while they are in the CPU's cache. Errors: LS_NO_MEMORY. */
int ls_chunk_digests(const struct ls_cut_kernel *kernel, const struct ls_b3_kernel *hash,
                     const struct ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length, struct ls_buffer *ends,
                     struct ls_buffer *digests, struct ls_error *err);

#endif
