#include "chunker.h"

#include "base/cpu.h"
#include "base/kernel.h"
#include "chunker_impl.h"

/* Chunks are hashed together when they have so many bytes, which is half of the second-level cache of the CPUs
 * measured: what was read to be cut is still there. And when they are so many. */
#define BATCH_BYTES ((size_t)512 << 10)
#define BATCH_CHUNKS 512

struct ls_cut_kernel {
	struct ls_kernel kernel;
	ls_cut_find_fn *find;
};

/* From the slowest to the fastest, as bench/bench_chunks.py measures them. */
static const struct ls_cut_kernel kernels[] = {
    {{"portable", 0}, ls_cut_find_portable},
#if defined(__x86_64__)
    {{"avx2", LS_CPU_AVX2}, ls_cut_find_avx2},
    {{"avx512", LS_CPU_AVX512 | LS_CPU_GFNI}, ls_cut_find_avx512},
#endif
};

#define N_KERNELS (sizeof(kernels) / sizeof(kernels[0]))

const struct ls_cut_kernel *ls_cut_kernel_at(size_t i)
{
	return i < N_KERNELS ? &kernels[i] : NULL;
}

int ls_cut_kernel_find(const char *name, const struct ls_cut_kernel **kernel, struct ls_error *err)
{
	size_t found;
	int status = ls_kernel_find("chunking", kernels, N_KERNELS, sizeof(kernels[0]), name, &found, err);

	if (!status)
		*kernel = &kernels[found];
	return status;
}

int ls_chunk_sizes_check(const struct ls_chunk_sizes *sizes, struct ls_error *err)
{
	uint32_t average = sizes->average;

	if (average < LS_CHUNK_LEAST_AVERAGE_BYTES || average > LS_CHUNK_MOST_AVERAGE_BYTES || average & (average - 1))
		return ls_fail(err, LS_INVALID,
		               "chunks of %u bytes on average were asked for; give a power of two from %u to %u",
		               average, LS_CHUNK_LEAST_AVERAGE_BYTES, LS_CHUNK_MOST_AVERAGE_BYTES);
	if (sizes->min < LS_CHUNK_LEAST_BYTES || sizes->min > average)
		return ls_fail(err, LS_INVALID,
		               "chunks of at least %u bytes were asked for; give a number from %u to the average, %u",
		               sizes->min, LS_CHUNK_LEAST_BYTES, average);
	if (sizes->max < average || sizes->max > LS_CHUNK_MOST_BYTES)
		return ls_fail(err, LS_INVALID,
		               "chunks of at most %u bytes were asked for; give a number from the average, %u, to %u",
		               sizes->max, average, LS_CHUNK_MOST_BYTES);
	return LS_OK;
}

static struct ls_cut cut_of(unsigned bits)
{
	unsigned hashed = bits < LS_CUT_HASHED_BITS ? bits : LS_CUT_HASHED_BITS;
	struct ls_cut cut;

	cut.zeros = (uint8_t)((1u << (hashed + 1) / 2) - 1);
	cut.ones = (uint8_t)((1u << hashed / 2) - 1);
	cut.more_zeros = bits - hashed;
	return cut;
}

size_t ls_chunk_length(const struct ls_cut_kernel *kernel, const struct ls_chunk_sizes *sizes, const uint8_t *bytes,
                       size_t length)
{
	unsigned bits = (unsigned)__builtin_ctz(sizes->average);
	struct ls_cut strict = cut_of(bits + 2), loose = cut_of(bits - 2);
	size_t end = length < sizes->max ? length : sizes->max;
	size_t average = end < sizes->average ? end : sizes->average;
	size_t cut;

	if (length <= sizes->min)
		return length;
	cut = kernel->find(bytes, sizes->min, average, &strict);
	return cut < average ? cut : kernel->find(bytes, average, end, &loose);
}

int ls_chunk_ends(const struct ls_cut_kernel *kernel, const struct ls_chunk_sizes *sizes, const uint8_t *bytes,
                  size_t length, struct ls_buffer *ends, struct ls_error *err)
{
	uint64_t end = 0;

	while (end < length) {
		int status;

		end += ls_chunk_length(kernel, sizes, bytes + end, length - end);
		status = ls_buffer_append(ends, &end, sizeof(end), err);
		if (status)
			return status;
	}
	return LS_OK;
}

/* Hash the first chunks of the content, as many as one batch takes. `taken` are their bytes, `start` the place of
 * the first in the whole. */
static int hash_batch(const struct ls_cut_kernel *kernel, const struct ls_b3_kernel *hash,
                      const struct ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length, uint64_t start,
                      size_t *taken, struct ls_buffer *ends, struct ls_buffer *digests, struct ls_error *err)
{
	const uint8_t *in[BATCH_CHUNKS];
	size_t chunk[BATCH_CHUNKS], n = 0, at = 0;
	int status;

	for (; n < BATCH_CHUNKS && at < BATCH_BYTES && at < length; n++) {
		uint64_t end;

		in[n] = bytes + at;
		chunk[n] = ls_chunk_length(kernel, sizes, bytes + at, length - at);
		at += chunk[n];
		end = start + at;
		status = ls_buffer_append(ends, &end, sizeof(end), err);
		if (status)
			return status;
	}
	status = ls_buffer_reserve(digests, n * LS_B3_DIGEST_BYTES, err);
	if (!status)
		status = ls_b3_hash_many(hash, in, chunk, n, digests->bytes + digests->length, err);
	if (!status)
		digests->length += n * LS_B3_DIGEST_BYTES;
	*taken = at;
	return status;
}

int ls_chunk_digests(const struct ls_cut_kernel *kernel, const struct ls_b3_kernel *hash,
                     const struct ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length, struct ls_buffer *ends,
                     struct ls_buffer *digests, struct ls_error *err)
{
	size_t taken;

	for (size_t at = 0; at < length; at += taken) {
		int status = hash_batch(kernel, hash, sizes, bytes + at, length - at, at, &taken, ends, digests, err);

		if (status)
			return status;
	}
	return LS_OK;
}
