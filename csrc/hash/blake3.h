/* BLAKE3-256 of many inputs at once, written from the BLAKE3 paper (O'Connor, Aumasson, Neves,
 * Wilcox-O'Hearn, 2020, sections 2.1-2.5). Hash mode only: no key, no context, 32-byte output.
 *
 * A kernel is one way to compute the same bits. The portable kernel is the specification; the
 * others fill vector lanes with chunks of different inputs. A kernel asked for by name that this
 * machine cannot run is an error, never a silent fallback. No global state besides the CPU mask. */
#ifndef LS_BLAKE3_H
#define LS_BLAKE3_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define LS_B3_DIGEST_BYTES 32
#define LS_B3_CHUNK_BYTES 1024

struct ls_b3_kernel; /* one of base/kernel.h; opaque; static storage, never freed */

/* The kernels compiled in, NULL after the last one; "portable" is the first. */
const struct ls_b3_kernel *ls_b3_kernel_at(size_t i);

/* The kernel of that name; NULL or "auto" for the one that measured fastest of those that run here.
 * LS_NOT_FOUND for an unknown name, LS_UNSUPPORTED where the CPU lacks it. */
int ls_b3_kernel_find(const char *name, const struct ls_b3_kernel **kernel, struct ls_error *err);

/* Hash `n` inputs in[i] of length[i] bytes to out + 32 * i. Allocates only for inputs of more than one
 * chunk (32 bytes for each chunk of an input, bounded by a fixed window for large ones). Inputs may be
 * read a little ahead by prefetch, never by a load. Thread-safe. Errors: LS_NO_MEMORY. */
int ls_b3_hash_many(const struct ls_b3_kernel *kernel, const uint8_t *const *in, const size_t *length, size_t n,
                    uint8_t *out, struct ls_error *err);

/* The digest of one input, by the fastest kernel. */
int ls_b3_hash(const void *bytes, size_t length, uint8_t digest[LS_B3_DIGEST_BYTES], struct ls_error *err);

/* Incremental hashing of one input that arrives in pieces, at the full speed of the kernel when the
 * pieces are large. Plain memory, nothing to free, may be copied. */
struct ls_b3_hasher {
	const struct ls_b3_kernel *kernel;
	uint64_t chunks;       /* whole chunks absorbed before `tail` */
	uint32_t tail_length;  /* bytes in `tail`; the last chunk is kept back until final */
	uint32_t stack_length; /* chaining values on the stack */
	uint8_t tail[LS_B3_CHUNK_BYTES];
	uint8_t stack[64][LS_B3_DIGEST_BYTES];
};

void ls_b3_hasher_init(struct ls_b3_hasher *hasher, const struct ls_b3_kernel *kernel);
void ls_b3_hasher_update(struct ls_b3_hasher *hasher, const void *bytes, size_t length);
void ls_b3_hasher_final(const struct ls_b3_hasher *hasher, uint8_t digest[LS_B3_DIGEST_BYTES]);

#endif
