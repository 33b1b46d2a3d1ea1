#include "trees.h"

#include <string.h>

#include "base/buffer.h"
#include "base/bytes.h"
#include "hash/blake3.h"

/* What a child's entry takes from its record as it lies there. */
#define ATTRIBUTES_AT offsetof(struct ls_record, mode)
#define ATTRIBUTES_BYTES (offsetof(struct ls_record, data) - ATTRIBUTES_AT)
#define SIZE_AT (offsetof(struct ls_record, size) - ATTRIBUTES_AT)

_Static_assert(ATTRIBUTES_BYTES == 32, "format");

/* Directories are hashed so many at once, or when so many bytes of entries have come together: they stay in the
 * cache between writing and hashing them. */
#define BATCH_DIRECTORIES 256
#define BATCH_BYTES ((size_t)256 << 10)

struct batch {
	const struct ls_b3_kernel *kernel;
	const struct ls_index *index;
	struct ls_tree *trees;
	struct ls_buffer entries;           /* of all its directories, one directory after another */
	size_t begin[BATCH_DIRECTORIES];    /* by directory: where its entries begin */
	uint64_t number[BATCH_DIRECTORIES]; /* by directory: the number of its tree */
	size_t count;
	uint32_t last; /* the greatest record number in it */
};

/* What a child is beside its attributes: the digest of its content or tree, its target, or nothing. */
static int payload(const struct batch *batch, const struct ls_record *child, const void **bytes, size_t *length,
                   struct ls_error *err)
{
	const struct ls_content *content = NULL;
	const struct ls_tree *tree;
	const char *target = NULL;
	int status = LS_OK;

	*length = LS_B3_DIGEST_BYTES;
	if (S_ISREG(child->mode)) {
		status = ls_index_content(batch->index, child, &content, err);
		*bytes = content;
		*length = content ? sizeof(content->digest) : 0;
	} else if (S_ISDIR(child->mode)) {
		/* The place of the index's own tree is checked, the one that was computed is taken. */
		status = ls_index_tree(batch->index, child, &tree, err);
		if (!status)
			*bytes = &batch->trees[child->size];
	} else if (S_ISLNK(child->mode)) {
		status = ls_index_string(batch->index, child->data, child->size, &target, err);
		*bytes = target;
		*length = child->size;
	} else {
		*length = 0;
	}
	return status;
}

static int add_child(struct batch *batch, uint32_t number, struct ls_error *err)
{
	static const uint8_t no_xattrs[2];
	const struct ls_record *child = &batch->index->records[number];
	const uint8_t *xattrs = no_xattrs;
	const char *name = NULL;
	const void *what = NULL;
	size_t name_length = 0, what_length = 0, xattrs_length = sizeof(no_xattrs);
	uint16_t length;
	uint8_t *at;
	int status = ls_index_name(batch->index, child, &name, &name_length, err);

	if (!status)
		status = payload(batch, child, &what, &what_length, err);
	if (!status && child->xattrs)
		status = ls_index_xattr_block(batch->index, child->xattrs, &xattrs, &xattrs_length, err);
	if (!status)
		status = ls_buffer_reserve(
		    &batch->entries, sizeof(length) + name_length + ATTRIBUTES_BYTES + what_length + xattrs_length,
		    err);
	if (status)
		return status;
	length = (uint16_t)name_length;
	at = ls_put(batch->entries.bytes + batch->entries.length, &length, sizeof(length));
	at = ls_put(at, name, name_length);
	at = ls_put(at, (const uint8_t *)child + ATTRIBUTES_AT, ATTRIBUTES_BYTES);
	if (S_ISDIR(child->mode))
		memset(at - ATTRIBUTES_BYTES + SIZE_AT, 0, sizeof(child->size));
	at = ls_put(at, what, what_length);
	at = ls_put(at, xattrs, xattrs_length);
	batch->entries.length = (size_t)(at - batch->entries.bytes);
	return LS_OK;
}

static int hash_batch(struct batch *batch, struct ls_error *err)
{
	const uint8_t *in[BATCH_DIRECTORIES];
	size_t length[BATCH_DIRECTORIES];
	struct ls_tree digests[BATCH_DIRECTORIES];
	int status;

	for (size_t i = 0; i < batch->count; i++) {
		size_t end = i + 1 < batch->count ? batch->begin[i + 1] : batch->entries.length;

		in[i] = batch->entries.bytes + batch->begin[i];
		length[i] = end - batch->begin[i];
	}
	status = ls_b3_hash_many(batch->kernel, in, length, batch->count, digests[0].digest, err);
	if (status)
		return status;
	for (size_t i = 0; i < batch->count; i++)
		batch->trees[batch->number[i]] = digests[i];
	batch->count = 0;
	batch->entries.length = 0;
	return LS_OK;
}

/* Whether a directory waits for a tree of the batch. Those in it come after `number` and none after `last`, so none is
 * a child when the children begin beyond `last`; that they do as long as the batch is of one level of the tree. */
static int needs_batch(const struct batch *batch, uint32_t first, uint32_t count)
{
	return batch->count && count && first <= batch->last;
}

static int add_directory(struct batch *batch, uint32_t number, struct ls_error *err)
{
	const struct ls_tree *tree;
	uint32_t first = 0, count = 0;
	int status = ls_index_children(batch->index, number, &first, &count, err);

	if (!status)
		status = ls_index_tree(batch->index, &batch->index->records[number], &tree, err);
	if (!status && (batch->count == BATCH_DIRECTORIES || batch->entries.length >= BATCH_BYTES ||
	                needs_batch(batch, first, count)))
		status = hash_batch(batch, err);
	if (status)
		return status;
	if (!batch->count)
		batch->last = number;
	batch->begin[batch->count] = batch->entries.length;
	batch->number[batch->count] = batch->index->records[number].size;
	batch->count++;
	for (uint32_t i = 0; i < count && !status; i++)
		status = add_child(batch, first + i, err);
	return status;
}

int ls_index_hash_trees(const struct ls_index *index, const uint32_t *directories, size_t count, struct ls_tree *trees,
                        struct ls_error *err)
{
	struct batch batch = {.index = index, .trees = trees};
	int status = ls_b3_kernel_find(NULL, &batch.kernel, err);

	if (!status)
		status = ls_buffer_reserve(&batch.entries, BATCH_BYTES, err);
	/* Children stand after their directory: from behind, what a directory needs has been computed. */
	while (count-- > 0 && !status)
		status = add_directory(&batch, directories[count], err);
	if (!status)
		status = hash_batch(&batch, err);
	ls_buffer_free(&batch.entries);
	return status;
}
