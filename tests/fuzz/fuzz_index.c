/* libFuzzer: any bytes as an index, opened, verified and asked everything. Whatever is wrong with them gives an error; what
 * is verified answers as its records say.
 *
 * The first byte of an input says whether the digests are put right first: 1 that of the header is not, 2 that of the
 * body is not. The rest is the index. */
#include "index/branches.h"
#include "index/index_verify.h"
#include "index_bytes.h"

static uint32_t find(const struct ls_index *index, const char *path, size_t length)
{
	uint32_t record = LS_NONE;

	if (ls_index_lookup(index, path, length, &record, NULL))
		return LS_NONE;
	REQUIRE(record == LS_NONE || record < index->header->record_count);
	return record;
}

static volatile uint8_t seen;

static void touch(const void *bytes, size_t length)
{
	const uint8_t *at = bytes;

	for (size_t i = 0; i < length; i++)
		seen ^= at[i];
}

static void ask_xattrs(const struct ls_index *index, const struct ls_record *record)
{
	struct ls_xattr_cursor cursor = {0};
	const uint8_t *block = NULL;
	size_t length = 0;

	while (!ls_index_xattr_next(index, record->xattrs, &cursor, NULL) && cursor.name) {
		touch(cursor.name, cursor.name_length);
		touch(cursor.value, cursor.value_length);
	}
	if (!ls_index_xattr_block(index, record->xattrs, &block, &length, NULL) && block)
		touch(block, length);
}

static void ask_children(const struct ls_index *index, uint32_t number, int is_good)
{
	uint32_t first = 0, count = 0;

	if (ls_index_children(index, number, &first, &count, NULL)) {
		REQUIRE(!is_good);
		return;
	}
	REQUIRE(!count || (first > number && first + count <= index->header->record_count));
	for (uint32_t i = first; is_good && i < first + count; i++)
		REQUIRE(index->records[i].parent == number);
}

static void ask_data(const struct ls_index *index, const struct ls_record *record, int is_good)
{
	const struct ls_content *content = NULL;
	const struct ls_tree *tree = NULL;
	const char *target = NULL;

	if (!ls_index_string(index, record->data, record->size, &target, NULL))
		touch(target, record->size);
	if (!ls_index_content(index, record, &content, NULL) && content)
		touch(content, sizeof(*content));
	REQUIRE(!is_good || !S_ISREG(record->mode) || !record->size == !content);
	if (!ls_index_tree(index, record, &tree, NULL))
		touch(tree, sizeof(*tree));
	REQUIRE(!is_good || !S_ISDIR(record->mode) || (index->header->kind == LS_INDEX_CHAIN) == !!tree);
}

static void ask_record(const struct ls_index *index, uint32_t number, int is_good)
{
	const struct ls_record *record = NULL;
	const char *name = NULL, *path = NULL;
	size_t length = 0;

	REQUIRE(!ls_index_record(index, number, &record, NULL));
	if (!ls_index_name(index, record, &name, &length, NULL))
		touch(name, length);
	if (!ls_index_string(index, record->path, record->path_length, &path, NULL)) {
		uint32_t found = find(index, path, record->path_length);

		REQUIRE(!is_good || found == number);
		find(index, path, record->name_start < record->path_length ? record->name_start : 0);
	}
	REQUIRE(!is_good || (name && path));
	ask_data(index, record, is_good);
	ask_xattrs(index, record);
	ask_children(index, number, is_good);
}

/* All paths at once, as their records say them. */
static void ask_many(const struct ls_index *index, int is_good)
{
	uint32_t count = index->header->record_count, used = 0;
	struct ls_path *paths = malloc(count * sizeof(*paths));
	uint32_t *found = malloc(count * sizeof(*found));

	REQUIRE(paths && found);
	for (uint32_t i = 0; i < count; i++) {
		const struct ls_record *record = &index->records[i];

		paths[used].length = record->path_length;
		if (!ls_index_string(index, record->path, record->path_length, &paths[used].bytes, NULL))
			used++;
	}
	if (ls_index_find_many(index, paths, used, found, NULL))
		REQUIRE(!is_good);
	else
		for (uint32_t i = 0; i < used; i++)
			REQUIRE(found[i] == find(index, paths[i].bytes, paths[i].length));
	free(paths);
	free(found);
}

/* The way to every inode, and to one. */
static void ask_branches(const struct ls_index *index, int is_good)
{
	uint32_t count = index->header->record_count;
	uint32_t *inodes = malloc(count * sizeof(*inodes));
	struct ls_buffer found = {0};

	REQUIRE(inodes);
	for (uint32_t i = 0; i < count; i++)
		inodes[i] = index->records[i].inode;
	if (ls_index_branches(index, inodes, count, &found, NULL))
		REQUIRE(!is_good);
	else
		REQUIRE(!is_good || found.length == count * sizeof(*inodes));
	ls_buffer_free(&found);
	if (count && ls_index_branches(index, inodes + count - 1, 1, &found, NULL))
		REQUIRE(!is_good);
	ls_buffer_free(&found);
	free(inodes);
}

static void ask(const struct ls_index *index)
{
	const struct ls_record *record;
	struct ls_error err;
	int is_good = !ls_index_verify(index, &err);

	REQUIRE(is_good || err.status == LS_CORRUPT);
	REQUIRE(ls_index_record(index, index->header->record_count, &record, &err) == LS_CORRUPT);
	for (uint32_t i = 0; i < index->header->record_count; i++)
		ask_record(index, i, is_good);
	ask_many(index, is_good);
	ask_branches(index, is_good);
	find(index, "no/such/path", 12);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
	struct ls_index index;
	struct ls_error err;
	uint8_t *bytes;

	if (!length)
		return 0;
	bytes = copy_of(data + 1, length - 1);
	if (!(data[0] & 1))
		seal(bytes, length - 1, !(data[0] & 2));
	if (!ls_index_open(&index, bytes, length - 1, &err))
		ask(&index);
	else
		REQUIRE(err.status == LS_CORRUPT || err.status == LS_UNSUPPORTED);
	free(bytes);
	return 0;
}
