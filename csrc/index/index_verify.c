#include "index_verify.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "hash/blake3.h"
#include "trees.h"

/* One message for every find: what to do about it is the same. */
static int fail_record(struct ls_error *err, uint32_t number, const char *why)
{
	return ls_fail(err, LS_CORRUPT, "verifying an index: record %u %s; rebuild the index", number, why);
}

int ls_index_verify_digest(const struct ls_index *index, struct ls_error *err)
{
	const struct ls_index_header *header = index->header;
	const uint8_t *body = (const uint8_t *)(header + 1);
	uint8_t digest[32];
	int status = ls_b3_hash(body, (size_t)(index->heap - body) + header->heap_bytes, digest, err);

	if (status)
		return status;
	if (memcmp(digest, header->body_digest, sizeof(digest)))
		return ls_fail(err, LS_CORRUPT,
		               "verifying an index: its bytes are damaged (digest differs); rebuild it");
	return LS_OK;
}

static int verify_contents(const struct ls_index *index, struct ls_error *err)
{
	for (uint32_t i = 0; i < index->header->content_count; i++)
		if (!index->contents[i].size)
			return ls_fail(err, LS_CORRUPT, "verifying an index: content %u is empty; rebuild the index",
			               i);
	return LS_OK;
}

/* The path is the parent's and a name. */
static int verify_path(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	const struct ls_record *r = &index->records[number];
	const struct ls_record *parent = &index->records[r->parent];
	const char *name = NULL, *path = NULL, *above = NULL;
	size_t length = 0;
	int status = ls_index_name(index, r, &name, &length, err);

	if (!status)
		status = ls_index_string(index, r->path, r->path_length, &path, err);
	if (!status)
		status = ls_index_string(index, parent->path, parent->path_length, &above, err);
	if (status)
		return status;
	if (r->path_length > LS_INDEX_MAX_PATH_BYTES)
		return fail_record(err, number, "has a path of more than 4,096 bytes");
	if (!ls_is_name(name, length))
		return fail_record(err, number, "has an impossible name");
	if (r->name_start != (parent->path_length ? parent->path_length + 1 : 0) ||
	    memcmp(path, above, parent->path_length) || (parent->path_length && path[parent->path_length] != '/'))
		return fail_record(err, number, "has a path that is not below its parent's");
	return LS_OK;
}

/* Strictly after the sibling before it. */
static int verify_order(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	const char *before = NULL, *name = NULL;
	size_t before_length = 0, length = 0;
	int status = ls_index_name(index, &index->records[number - 1], &before, &before_length, err);

	if (!status)
		status = ls_index_name(index, &index->records[number], &name, &length, err);
	if (status)
		return status;
	if (ls_compare(before, before_length, name, length) >= 0)
		return fail_record(err, number, "does not follow the one before it by name");
	return LS_OK;
}

static int verify_xattrs(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	struct ls_xattr_cursor cursor = {0};
	const char *before = NULL;
	size_t before_length = 0;

	for (;;) {
		int status = ls_index_xattr_next(index, index->records[number].xattrs, &cursor, err);

		if (!status && !cursor.name && !before && index->records[number].xattrs)
			return fail_record(err, number, "has an xattr block without xattrs");
		if (status || !cursor.name)
			return status;
		if (!cursor.name_length ||
		    (before && ls_compare(before, before_length, cursor.name, cursor.name_length) >= 0))
			return fail_record(err, number, "has xattrs that are unnamed or not in order");
		before = cursor.name;
		before_length = cursor.name_length;
	}
}

static int verify_regular(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	const struct ls_record *r = &index->records[number];

	if (!r->size != (r->data == LS_NONE))
		return fail_record(err, number, "is empty with a content, or not empty without one");
	if (r->size && (r->data >= index->header->content_count || index->contents[r->data].size != r->size))
		return fail_record(err, number, "has a content that is not there or of another size");
	return LS_OK;
}

static int verify_data(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	const struct ls_record *r = &index->records[number];
	const char *target;

	if (S_ISREG(r->mode))
		return verify_regular(index, number, err);
	if (S_ISDIR(r->mode) && r->size && index->header->kind == LS_INDEX_LAYER)
		return fail_record(err, number, "has a tree, which only a directory of a chain has");
	if (S_ISDIR(r->mode))
		return LS_OK;
	if (S_ISLNK(r->mode) || r->flags & LS_RECORD_LOWER_LINK)
		return ls_index_string(index, r->data, r->size, &target, err);
	if (r->data != LS_NONE)
		return fail_record(err, number, "has data although it is neither file, directory nor link");
	return LS_OK;
}

static int verify_flags(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	const struct ls_record *r = &index->records[number];
	unsigned allowed = LS_RECORD_IMPLIED;

	if (index->header->kind == LS_INDEX_LAYER)
		allowed |= LS_RECORD_WHITEOUT | LS_RECORD_OPAQUE | LS_RECORD_LOWER_LINK;
	if (r->flags & ~allowed)
		return fail_record(err, number, "has flags that its index cannot have");
	if (r->flags & (LS_RECORD_IMPLIED | LS_RECORD_OPAQUE) && !S_ISDIR(r->mode))
		return fail_record(err, number, "has a directory's flags but is none");
	if (r->flags & (LS_RECORD_WHITEOUT | LS_RECORD_LOWER_LINK) ? r->mode : !ls_mode_has_type(r->mode))
		return fail_record(err, number, "has no type, or one that its flags exclude");
	if (r->layer >= index->header->layer_count)
		return fail_record(err, number, "is of a layer that is not there");
	if (r->mtime_nanoseconds >= 1000000000)
		return fail_record(err, number, "has a time of 1,000,000,000 nanoseconds or more");
	return LS_OK;
}

/* A further link says of its inode what the first one says. */
static int verify_link(const struct ls_index *index, uint32_t number, struct ls_error *err)
{
	const struct ls_record *r = &index->records[number];
	const struct ls_record *first = &index->records[r->inode];

	if (r->inode == number)
		return LS_OK;
	if (r->inode > number || first->inode != r->inode || S_ISDIR(r->mode))
		return fail_record(err, number, "is a link to an inode that is not there");
	if (r->mode != first->mode || r->uid != first->uid || r->gid != first->gid || r->size != first->size ||
	    r->mtime_seconds != first->mtime_seconds || r->mtime_nanoseconds != first->mtime_nanoseconds ||
	    r->data != first->data || r->count != first->count || r->xattrs != first->xattrs ||
	    r->flags != first->flags)
		return fail_record(err, number, "differs from the first link of its inode");
	return LS_OK;
}

/* The children of the directories, in their order, are all the records but the root; so every record is the
 * child of one directory that stands before it. `*next` is the first child still to come. */
static int verify_children(const struct ls_index *index, uint32_t number, uint32_t *next, struct ls_error *err)
{
	const struct ls_record *r = &index->records[number];

	if (!S_ISDIR(r->mode))
		return LS_OK;
	if (r->data != (r->count ? *next : LS_NONE) || r->count > index->header->record_count - *next)
		return fail_record(err, number, "has a range of children that is not the next one");
	for (uint32_t i = 0; i < r->count; i++) {
		uint32_t child = *next + i;
		int status = LS_OK;

		if (index->records[child].parent != number)
			return fail_record(err, child, "is not a child of the directory that lists it");
		if (child <= number)
			return fail_record(err, child, "stands before its parent");
		status = verify_path(index, child, err);
		if (!status && i)
			status = verify_order(index, child, err);
		if (status)
			return status;
	}
	*next += r->count;
	return LS_OK;
}

static int verify_records(const struct ls_index *index, struct ls_error *err)
{
	const struct ls_record *root = &index->records[0];
	uint32_t next = 1;
	int status = LS_OK;

	if (!S_ISDIR(root->mode) || root->path_length || root->name_start || root->parent)
		return fail_record(err, 0, "is not a root directory");
	for (uint32_t i = 0; i < index->header->record_count && !status; i++) {
		status = verify_flags(index, i, err);
		if (!status)
			status = verify_children(index, i, &next, err);
		if (!status)
			status = verify_data(index, i, err);
		if (!status)
			status = verify_xattrs(index, i, err);
		if (!status)
			status = verify_link(index, i, err);
	}
	if (!status && next != index->header->record_count)
		return fail_record(err, next, "is in no directory");
	return status;
}

static int verify_link_counts(const struct ls_index *index, struct ls_error *err)
{
	uint32_t record_count = index->header->record_count;
	uint32_t *links = calloc(record_count, sizeof(*links));
	int status = LS_OK;

	if (!links)
		return ls_fail(err, LS_NO_MEMORY, "verifying an index: out of memory for %u records", record_count);
	for (uint32_t i = 0; i < record_count; i++)
		links[index->records[i].inode]++;
	for (uint32_t i = 0; i < record_count && !status; i++)
		if (!S_ISDIR(index->records[i].mode) && index->records[i].count != links[index->records[i].inode])
			status = fail_record(err, i, "has another number of links than it says");
	free(links);
	return status;
}

/* As many slots as records are taken, and each record is found by its path. */
static int verify_slots(const struct ls_index *index, struct ls_error *err)
{
	uint32_t taken = 0;

	for (uint32_t i = 0; i < index->header->slot_count; i++)
		taken += index->slots[i].path != LS_NONE;
	if (taken != index->header->record_count)
		return ls_fail(err, LS_CORRUPT,
		               "verifying an index: %u slots are taken by %u records; rebuild the index", taken,
		               index->header->record_count);
	for (uint32_t i = 0; i < index->header->record_count; i++) {
		const struct ls_record *r = &index->records[i];
		uint32_t found = LS_NONE;
		const char *path = NULL;
		int status = ls_index_string(index, r->path, r->path_length, &path, err);

		if (!status)
			status = ls_index_lookup(index, path, r->path_length, &found, err);
		if (status)
			return status;
		if (found != i)
			return fail_record(err, i, "is not found by its path");
	}
	return LS_OK;
}

/* The trees are those of the directories, in their order. */
static int list_directories(const struct ls_index *index, uint32_t *directories, struct ls_error *err)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < index->header->record_count; i++) {
		if (!S_ISDIR(index->records[i].mode))
			continue;
		if (index->records[i].size != count || count == index->header->tree_count)
			return fail_record(err, i, "has another tree than the next one");
		directories[count++] = i;
	}
	if (count != index->header->tree_count)
		return ls_fail(err, LS_CORRUPT,
		               "verifying an index: it has %u trees of %u directories; rebuild the index",
		               index->header->tree_count, count);
	return LS_OK;
}

static int compare_trees(const struct ls_index *index, const uint32_t *directories, const struct ls_tree *trees,
                         struct ls_error *err)
{
	for (uint32_t i = 0; i < index->header->tree_count; i++)
		if (memcmp(&trees[i], &index->trees[i], sizeof(trees[i])))
			return fail_record(err, directories[i], "has a tree that is not the digest of what is in it");
	return LS_OK;
}

static int verify_trees(const struct ls_index *index, struct ls_error *err)
{
	uint32_t tree_count = index->header->tree_count;
	uint32_t *directories = malloc(tree_count * sizeof(*directories));
	struct ls_tree *trees = malloc(tree_count * sizeof(*trees));
	int status = LS_OK;

	if (!directories || !trees)
		status = ls_fail(err, LS_NO_MEMORY, "verifying an index: out of memory for %u trees", tree_count);
	if (!status)
		status = list_directories(index, directories, err);
	if (!status)
		status = ls_index_hash_trees(index, directories, tree_count, trees, err);
	if (!status)
		status = compare_trees(index, directories, trees, err);
	free(directories);
	free(trees);
	return status;
}

int ls_index_verify(const struct ls_index *index, struct ls_error *err)
{
	int status = ls_index_verify_digest(index, err);

	if (!status && index->heap[0])
		return ls_fail(err, LS_CORRUPT, "verifying an index: its heap does not begin with 0; rebuild it");
	if (!status)
		status = verify_contents(index, err);
	if (!status)
		status = verify_records(index, err);
	if (!status)
		status = verify_link_counts(index, err);
	if (!status && index->header->kind == LS_INDEX_CHAIN)
		status = verify_trees(index, err);
	if (!status)
		status = verify_slots(index, err);
	return status;
}
