#include "blake3.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/kernel.h"
#include "blake3_impl.h"

/* Inputs above this are hashed alone, in windows: they fill the lanes by themselves. Those up to it share
 * lanes and are taken in groups of at most so many chunks, which bounds the memory for chaining values. */
#define GROUP_CHUNKS ((size_t)4096)

/* The hasher's window: chaining values of so many chunks lie on the C stack (32 KiB). */
#define WINDOW_CHUNKS ((size_t)1024)

#define CHUNK_BLOCKS (LS_B3_CHUNK_BYTES / LS_B3_BLOCK_BYTES)

typedef uint8_t chaining_value[LS_B3_DIGEST_BYTES];

struct ls_b3_kernel {
	struct ls_kernel kernel;
	ls_b3_run_fn *run;
};

/* From the slowest to the fastest, as bench/bench_blake3.py measures them. */
static const struct ls_b3_kernel kernels[] = {
    {{"portable", 0}, ls_b3_run_portable},
#if defined(__x86_64__)
    {{"avx2", LS_CPU_AVX2}, ls_b3_run_avx2},
    {{"avx512", LS_CPU_AVX512}, ls_b3_run_avx512},
#endif
};

#define N_KERNELS (sizeof(kernels) / sizeof(kernels[0]))

const struct ls_b3_kernel *ls_b3_kernel_at(size_t i)
{
	return i < N_KERNELS ? &kernels[i] : NULL;
}

int ls_b3_kernel_find(const char *name, const struct ls_b3_kernel **kernel, struct ls_error *err)
{
	size_t found;
	int status = ls_kernel_find("BLAKE3", kernels, N_KERNELS, sizeof(kernels[0]), name, &found, err);

	if (!status)
		*kernel = &kernels[found];
	return status;
}

/* ---- lanes ---- */

static void run(const struct ls_b3_kernel *kernel, struct ls_b3_lanes *lanes, enum ls_b3_node node)
{
	if (lanes->count)
		kernel->run(lanes, node);
	lanes->count = 0;
}

static void add(struct ls_b3_lanes *lanes, const uint8_t *in, uint32_t length, uint64_t counter, uint32_t root,
                uint8_t *out)
{
	unsigned l = lanes->count++;

	lanes->in[l] = in;
	lanes->out[l] = out;
	lanes->length[l] = length;
	lanes->counter_low[l] = (uint32_t)counter;
	lanes->counter_high[l] = (uint32_t)(counter >> 32);
	lanes->root[l] = root;
}

static void move_job(struct ls_b3_lanes *to, const struct ls_b3_lanes *from, unsigned l)
{
	uint64_t counter = from->counter_low[l] | (uint64_t)from->counter_high[l] << 32;

	add(to, from->in[l], from->length[l], counter, from->root[l], from->out[l]);
}

/* A parent node over the two chaining values at `pair`. */
static void add_parent(const struct ls_b3_kernel *kernel, struct ls_b3_lanes *lanes, const chaining_value *pair,
                       uint32_t root, uint8_t *out)
{
	add(lanes, pair[0], LS_B3_BLOCK_BYTES, 0, root, out);
	if (lanes->count == LS_B3_LANES)
		run(kernel, lanes, LS_B3_NODE_PARENT);
}

/* ---- many inputs ---- */

/* An input of several chunks in the making: `count` chaining values of one level of its tree, at cv + first. */
struct tree {
	size_t input;
	uint32_t first;
	uint32_t count;
};

struct many {
	const struct ls_b3_kernel *kernel;
	chaining_value *cv; /* GROUP_CHUNKS, or fewer if all inputs together need fewer */
	struct tree *trees; /* half as many: a tree has two chunks at least */
	size_t n_cv;
	size_t n_trees;
	struct ls_b3_lanes chunks[CHUNK_BLOCKS]; /* at i: chunks of i + 1 blocks */
};

static size_t chunk_count(size_t length)
{
	return length ? (length - 1) / LS_B3_CHUNK_BYTES + 1 : 1;
}

static void add_chunk(struct many *many, const uint8_t *in, size_t length, uint64_t counter, uint32_t root,
                      uint8_t *out)
{
	size_t blocks = length ? (length - 1) / LS_B3_BLOCK_BYTES + 1 : 1;
	struct ls_b3_lanes *lanes = &many->chunks[blocks - 1];

	add(lanes, in, (uint32_t)length, counter, root, out);
	if (lanes->count == LS_B3_LANES)
		run(many->kernel, lanes, LS_B3_NODE_CHUNK);
}

/* Run what waits for its lanes to fill: together, the longest chunks first, so that neighbours in a run have
 * nearly the same number of blocks. */
static void flush_chunks(struct many *many)
{
	struct ls_b3_lanes *together = &many->chunks[CHUNK_BLOCKS - 1];

	for (int i = CHUNK_BLOCKS - 2; i >= 0; i--) {
		for (unsigned l = 0; l < many->chunks[i].count; l++) {
			move_job(together, &many->chunks[i], l);
			if (together->count == LS_B3_LANES)
				run(many->kernel, together, LS_B3_NODE_CHUNK);
		}
		many->chunks[i].count = 0;
	}
	run(many->kernel, together, LS_B3_NODE_CHUNK);
}

static void add_tree(struct many *many, size_t input, const uint8_t *in, size_t length)
{
	size_t chunks = chunk_count(length);
	chaining_value *cv = many->cv + many->n_cv;

	for (size_t c = 0; c + 1 < chunks; c++)
		add_chunk(many, in + c * LS_B3_CHUNK_BYTES, LS_B3_CHUNK_BYTES, c, 0, cv[c]);
	in += (chunks - 1) * LS_B3_CHUNK_BYTES;
	add_chunk(many, in, length - (chunks - 1) * LS_B3_CHUNK_BYTES, chunks - 1, 0, cv[chunks - 1]);
	many->trees[many->n_trees++] = (struct tree){input, (uint32_t)many->n_cv, (uint32_t)chunks};
	many->n_cv += chunks;
}

/* Join the pairs of one level of every tree, in place, and drop the trees that have become a digest. An odd
 * last value moves up unchanged: with it the left subtree of every node is complete (section 2.1). */
static void join_level(struct many *many, uint8_t *out)
{
	struct ls_b3_lanes lanes;
	size_t kept = 0;

	lanes.count = 0;
	for (size_t t = 0; t < many->n_trees; t++) {
		struct tree tree = many->trees[t];
		chaining_value *cv = many->cv + tree.first;

		if (tree.count == 2) {
			add_parent(many->kernel, &lanes, cv, LS_B3_ROOT, out + LS_B3_DIGEST_BYTES * tree.input);
			continue;
		}
		for (uint32_t i = 0; i < tree.count / 2; i++)
			add_parent(many->kernel, &lanes, cv + (size_t)2 * i, 0, cv[i]);
	}
	run(many->kernel, &lanes, LS_B3_NODE_PARENT);
	for (size_t t = 0; t < many->n_trees; t++) {
		struct tree tree = many->trees[t];
		chaining_value *cv = many->cv + tree.first;

		if (tree.count == 2)
			continue;
		if (tree.count % 2)
			memmove(cv[tree.count / 2], cv[tree.count - 1], sizeof(*cv));
		tree.count = tree.count / 2 + tree.count % 2;
		many->trees[kept++] = tree;
	}
	many->n_trees = kept;
}

static void finish_group(struct many *many, uint8_t *out)
{
	flush_chunks(many);
	while (many->n_trees)
		join_level(many, out);
	many->n_cv = 0;
}

static int is_large(size_t length)
{
	return length > GROUP_CHUNKS * LS_B3_CHUNK_BYTES;
}

/* Memory for the trees of one group; none where every input is one chunk, or large. */
static int reserve(struct many *many, const size_t *length, size_t n, struct ls_error *err)
{
	size_t chunks = 0;

	for (size_t i = 0; i < n && chunks < GROUP_CHUNKS; i++)
		if (length[i] > LS_B3_CHUNK_BYTES && !is_large(length[i]))
			chunks += chunk_count(length[i]);
	if (chunks > GROUP_CHUNKS)
		chunks = GROUP_CHUNKS;
	if (!chunks)
		return LS_OK;
	many->cv = malloc(chunks * sizeof(*many->cv) + chunks / 2 * sizeof(*many->trees));
	if (!many->cv)
		return ls_fail(err, LS_NO_MEMORY, "out of memory hashing %zu inputs (%zu chunks at once)", n, chunks);
	many->trees = (struct tree *)(many->cv + chunks);
	return LS_OK;
}

static void hash_large(const struct ls_b3_kernel *kernel, const uint8_t *in, size_t length, uint8_t *out)
{
	struct ls_b3_hasher hasher;

	ls_b3_hasher_init(&hasher, kernel);
	ls_b3_hasher_update(&hasher, in, length);
	ls_b3_hasher_final(&hasher, out);
}

static void hash_inputs(struct many *many, const uint8_t *const *in, const size_t *length, size_t n, uint8_t *out)
{
	for (size_t i = 0; i < n; i++) {
		if (length[i] <= LS_B3_CHUNK_BYTES) {
			add_chunk(many, in[i], length[i], 0, LS_B3_ROOT, out + LS_B3_DIGEST_BYTES * i);
		} else if (is_large(length[i])) {
			hash_large(many->kernel, in[i], length[i], out + LS_B3_DIGEST_BYTES * i);
		} else {
			if (many->n_cv + chunk_count(length[i]) > GROUP_CHUNKS)
				finish_group(many, out);
			add_tree(many, i, in[i], length[i]);
		}
	}
	finish_group(many, out);
}

int ls_b3_hash_many(const struct ls_b3_kernel *kernel, const uint8_t *const *in, const size_t *length, size_t n,
                    uint8_t *out, struct ls_error *err)
{
	struct many many;
	int status;

	many.kernel = kernel;
	many.cv = NULL;
	many.n_cv = 0;
	many.n_trees = 0;
	for (int i = 0; i < CHUNK_BLOCKS; i++)
		many.chunks[i].count = 0;
	status = reserve(&many, length, n, err);
	if (!status)
		hash_inputs(&many, in, length, n, out);
	free(many.cv);
	return status;
}

int ls_b3_hash(const void *bytes, size_t length, uint8_t digest[LS_B3_DIGEST_BYTES], struct ls_error *err)
{
	const struct ls_b3_kernel *kernel;
	const uint8_t *in = bytes;
	int status = ls_b3_kernel_find(NULL, &kernel, err);

	return status ? status : ls_b3_hash_many(kernel, &in, &length, 1, digest, err);
}

/* ---- one input in pieces ---- */

void ls_b3_hasher_init(struct ls_b3_hasher *hasher, const struct ls_b3_kernel *kernel)
{
	hasher->kernel = kernel;
	hasher->chunks = 0;
	hasher->tail_length = 0;
	hasher->stack_length = 0;
}

/* The chaining values of the next `n` chunks to cv: that of hasher->tail first if it is full. */
static void hash_chunks(const struct ls_b3_hasher *hasher, const uint8_t *bytes, size_t n, chaining_value *cv)
{
	struct ls_b3_lanes lanes;

	lanes.count = 0;
	for (size_t i = 0; i < n; i++) {
		const uint8_t *chunk = bytes;

		if (i == 0 && hasher->tail_length)
			chunk = hasher->tail;
		else
			bytes += LS_B3_CHUNK_BYTES;
		add(&lanes, chunk, LS_B3_CHUNK_BYTES, hasher->chunks + i, 0, cv[i]);
		if (lanes.count == LS_B3_LANES)
			run(hasher->kernel, &lanes, LS_B3_NODE_CHUNK);
	}
	run(hasher->kernel, &lanes, LS_B3_NODE_CHUNK);
}

static void push(struct ls_b3_hasher *hasher, const chaining_value cv)
{
	memcpy(hasher->stack[hasher->stack_length++], cv, LS_B3_DIGEST_BYTES);
}

/* Add the chaining values cv[1..n] of the chunks that follow to the stack, which holds one complete subtree
 * for each bit set in hasher->chunks, the largest at the bottom. They are joined level by level, a wide run
 * each, instead of one by one. On a level, a value with an odd place is the right child of what is on top of
 * the stack, which is moved to cv[0], before it; and a last one with an even place waits for a right sibling
 * that is still to come, so it is a complete subtree of the new stack. None of them is the root, since bytes
 * remain in the tail or are to follow. */
static void join_chunks(struct ls_b3_hasher *hasher, chaining_value *cv, size_t n)
{
	chaining_value waiting[64];
	uint64_t place = hasher->chunks, waits = 0;
	struct ls_b3_lanes lanes;

	lanes.count = 0;
	hasher->chunks += n;
	for (int level = 0; n; level++, place /= 2, n /= 2) {
		chaining_value *first = cv + 1;

		if (place % 2) {
			first = cv;
			memcpy(cv[0], hasher->stack[--hasher->stack_length], LS_B3_DIGEST_BYTES);
			n++;
		}
		if (n % 2) {
			memcpy(waiting[level], first[n - 1], LS_B3_DIGEST_BYTES);
			waits |= 1ull << level;
		}
		for (size_t i = 0; i < n / 2; i++)
			add_parent(hasher->kernel, &lanes, (const chaining_value *)first + 2 * i, 0, cv[1 + i]);
		run(hasher->kernel, &lanes, LS_B3_NODE_PARENT);
	}
	for (int level = 63; level >= 0; level--)
		if (waits >> level & 1)
			push(hasher, waiting[level]);
}

/* Absorb `n` whole chunks, the first from the tail if that is full; at least one byte follows them. */
static void absorb(struct ls_b3_hasher *hasher, const uint8_t *bytes, size_t n)
{
	chaining_value cv[1 + WINDOW_CHUNKS];

	hash_chunks(hasher, bytes, n, cv + 1);
	join_chunks(hasher, cv, n);
	hasher->tail_length = 0;
}

static size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

void ls_b3_hasher_update(struct ls_b3_hasher *hasher, const void *bytes, size_t length)
{
	const uint8_t *in = bytes;
	size_t take;

	if (hasher->tail_length) {
		take = min_size(length, LS_B3_CHUNK_BYTES - hasher->tail_length);
		if (take)
			memcpy(hasher->tail + hasher->tail_length, in, take);
		hasher->tail_length += (uint32_t)take;
		in += take;
		length -= take;
	}
	while (length && (hasher->tail_length || length > LS_B3_CHUNK_BYTES)) {
		size_t from_tail = hasher->tail_length ? 1 : 0;
		size_t chunks = min_size((length - 1) / LS_B3_CHUNK_BYTES + from_tail, WINDOW_CHUNKS);

		absorb(hasher, in, chunks);
		take = (chunks - from_tail) * LS_B3_CHUNK_BYTES;
		in += take;
		length -= take;
	}
	if (length) {
		memcpy(hasher->tail, in, length);
		hasher->tail_length = (uint32_t)length;
	}
}

void ls_b3_hasher_final(const struct ls_b3_hasher *hasher, uint8_t digest[LS_B3_DIGEST_BYTES])
{
	chaining_value pair[2];
	struct ls_b3_lanes lanes;
	uint32_t level = hasher->stack_length;

	lanes.count = 0;
	add(&lanes, hasher->tail, hasher->tail_length, hasher->chunks, level ? 0 : LS_B3_ROOT, pair[1]);
	run(hasher->kernel, &lanes, LS_B3_NODE_CHUNK);
	while (level--) {
		memcpy(pair[0], hasher->stack[level], LS_B3_DIGEST_BYTES);
		add(&lanes, pair[0], LS_B3_BLOCK_BYTES, 0, level ? 0 : LS_B3_ROOT, pair[1]);
		run(hasher->kernel, &lanes, LS_B3_NODE_PARENT);
	}
	memcpy(digest, pair[1], LS_B3_DIGEST_BYTES);
}
