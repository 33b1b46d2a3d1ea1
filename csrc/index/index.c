#include "index.h"

#include <string.h>

#include "base/bytes.h"
#include "hash/blake3.h"
#include "hash/siphash.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the sections are used as they lie in memory");

#define HEADER_DIGEST_AT offsetof(struct ls_index_header, header_digest)

static int check_header_digest(const struct ls_index_header *header, struct ls_error *err)
{
	uint8_t digest[LS_B3_DIGEST_BYTES];
	int status = ls_b3_hash(header, HEADER_DIGEST_AT, digest, err);

	if (status)
		return status;
	if (memcmp(digest, header->header_digest, sizeof(header->header_digest)))
		return ls_fail(err, LS_CORRUPT, "opening an index: its header is damaged (digest differs); rebuild it");
	return LS_OK;
}

static int check_counts(const struct ls_index_header *h, struct ls_error *err)
{
	int good = (h->kind == LS_INDEX_LAYER && h->layer_count == 1) ||
	           (h->kind == LS_INDEX_CHAIN && h->layer_count >= 1 && h->layer_count <= LS_INDEX_MAX_LAYERS);

	good = good && h->record_count >= 1 && h->record_count <= LS_INDEX_MAX_RECORDS;
	good = good && h->slot_count == ls_index_slot_count(h->record_count);
	good = good && h->content_count != LS_NONE && h->heap_bytes >= 1 && h->heap_bytes <= LS_INDEX_MAX_HEAP_BYTES;
	good = good && (h->kind == LS_INDEX_LAYER ? !h->tree_count : h->tree_count && h->tree_count <= h->record_count);
	good = good && ls_is_zero(h->reserved, sizeof(h->reserved));
	if (!good)
		return ls_fail(
		    err, LS_CORRUPT,
		    "opening an index: impossible header (kind %u, %u layers, %u records, %u slots, %u contents, "
		    "%u trees, %llu heap bytes); rebuild it",
		    h->kind, h->layer_count, h->record_count, h->slot_count, h->content_count, h->tree_count,
		    (unsigned long long)h->heap_bytes);
	return LS_OK;
}

uint32_t ls_index_slot_count(uint32_t record_count)
{
	uint32_t slots = 2;

	while (slots < record_count + (uint64_t)record_count / 2)
		slots *= 2;
	return slots;
}

void ls_index_layout(struct ls_index *index, const void *bytes)
{
	const struct ls_index_header *header = bytes;

	index->header = header;
	index->records = (const struct ls_record *)(header + 1);
	index->slots = (const struct ls_slot *)(index->records + header->record_count);
	index->contents = (const struct ls_content *)(index->slots + header->slot_count);
	index->trees = (const struct ls_tree *)(index->contents + header->content_count);
	index->heap = (const uint8_t *)(index->trees + header->tree_count);
}

int ls_index_open(struct ls_index *index, const void *bytes, size_t length, struct ls_error *err)
{
	const struct ls_index_header *header = bytes;
	uint64_t expected;
	int status;

	if ((uintptr_t)bytes % _Alignof(struct ls_index_header))
		return ls_fail(err, LS_INVALID, "opening an index: its bytes must start at a multiple of 8");
	if (length < sizeof(*header) || memcmp(header->magic, LS_INDEX_MAGIC, sizeof(header->magic)))
		return ls_fail(err, LS_CORRUPT, "opening an index: %zu bytes that do not begin as one", length);
	status = check_header_digest(header, err);
	if (status)
		return status;
	if (header->version != LS_INDEX_VERSION)
		return ls_fail(err, LS_UNSUPPORTED, "opening an index of version %u: this layerstore reads version %u",
		               header->version, LS_INDEX_VERSION);
	status = check_counts(header, err);
	if (status)
		return status;
	expected = sizeof(*header) + (uint64_t)header->record_count * sizeof(struct ls_record) +
	           (uint64_t)header->slot_count * sizeof(struct ls_slot) +
	           (uint64_t)header->content_count * sizeof(struct ls_content) +
	           (uint64_t)header->tree_count * sizeof(struct ls_tree) + header->heap_bytes;
	if (length != expected)
		return ls_fail(err, LS_CORRUPT, "opening an index: %zu bytes where its header says %llu; rebuild it",
		               length, (unsigned long long)expected);
	ls_index_layout(index, bytes);
	return LS_OK;
}

int ls_index_string(const struct ls_index *index, uint32_t offset, uint64_t length, const char **string,
                    struct ls_error *err)
{
	uint64_t heap_bytes = index->header->heap_bytes;

	if (offset > heap_bytes || length > heap_bytes - offset)
		return ls_fail(err, LS_CORRUPT,
		               "reading an index: %llu bytes at %u of a heap of %llu; verify or rebuild it",
		               (unsigned long long)length, offset, (unsigned long long)heap_bytes);
	*string = (const char *)index->heap + offset;
	return LS_OK;
}

int ls_index_record(const struct ls_index *index, uint32_t number, const struct ls_record **record,
                    struct ls_error *err)
{
	if (number >= index->header->record_count)
		return ls_fail(err, LS_CORRUPT, "reading an index: record %u of %u; verify or rebuild it", number,
		               index->header->record_count);
	*record = &index->records[number];
	return LS_OK;
}

int ls_index_name(const struct ls_index *index, const struct ls_record *record, const char **name, size_t *length,
                  struct ls_error *err)
{
	const char *path = NULL;
	int status = ls_index_string(index, record->path, record->path_length, &path, err);

	if (status)
		return status;
	if (record->name_start > record->path_length)
		return ls_fail(err, LS_CORRUPT,
		               "reading an index: a name begins at %u of a path of %u bytes; rebuild it",
		               record->name_start, record->path_length);
	*name = path + record->name_start;
	*length = record->path_length - record->name_start;
	return LS_OK;
}

int ls_index_children(const struct ls_index *index, uint32_t number, uint32_t *first, uint32_t *count,
                      struct ls_error *err)
{
	const struct ls_record *record = NULL;
	int status = ls_index_record(index, number, &record, err);

	if (status)
		return status;
	*first = 0;
	*count = 0;
	if (!S_ISDIR(record->mode) || record->count == 0)
		return LS_OK;
	if (record->data <= number || record->data >= index->header->record_count ||
	    record->count > index->header->record_count - record->data)
		return ls_fail(err, LS_CORRUPT,
		               "reading an index: record %u has children %u+%u of %u records; rebuild it", number,
		               record->data, record->count, index->header->record_count);
	*first = record->data;
	*count = record->count;
	return LS_OK;
}

int ls_index_content(const struct ls_index *index, const struct ls_record *file, const struct ls_content **content,
                     struct ls_error *err)
{
	*content = NULL;
	if (file->data == LS_NONE)
		return LS_OK;
	if (file->data >= index->header->content_count)
		return ls_fail(err, LS_CORRUPT, "reading an index: content %u of %u; verify or rebuild it", file->data,
		               index->header->content_count);
	*content = &index->contents[file->data];
	return LS_OK;
}

int ls_index_tree(const struct ls_index *index, const struct ls_record *directory, const struct ls_tree **tree,
                  struct ls_error *err)
{
	if (directory->size >= index->header->tree_count)
		return ls_fail(err, LS_CORRUPT, "reading an index: tree %llu of %u; verify or rebuild it",
		               (unsigned long long)directory->size, index->header->tree_count);
	*tree = &index->trees[directory->size];
	return LS_OK;
}

/* The record of the path whose head is at `at`, LS_NONE if that is another path. */
static int match(const struct ls_index *index, uint32_t at, const char *path, size_t length, uint32_t *record,
                 struct ls_error *err)
{
	struct ls_path_head head;
	const char *bytes = NULL;
	int status = ls_index_string(index, at, sizeof(head), &bytes, err);

	if (status)
		return status;
	memcpy(&head, bytes, sizeof(head));
	status = ls_index_string(index, at + sizeof(head), head.length, &bytes, err);
	if (status)
		return status;
	*record = LS_NONE;
	if (head.length != length || memcmp(bytes, path, length))
		return LS_OK;
	if (head.record >= index->header->record_count)
		return ls_fail(err, LS_CORRUPT,
		               "looking up a path: it is that of record %u of %u; verify or rebuild the index",
		               head.record, index->header->record_count);
	*record = head.record;
	return LS_OK;
}

static int probe(const struct ls_index *index, uint64_t hash, const char *path, size_t length, uint32_t *record,
                 struct ls_error *err)
{
	uint32_t slot_count = index->header->slot_count;
	uint32_t tag = hash >> 32;
	uint32_t position = (uint32_t)hash;

	*record = LS_NONE;
	for (uint32_t left = slot_count; left; left--, position++) {
		struct ls_slot slot = index->slots[position & (slot_count - 1)];
		int status;

		if (slot.path == LS_NONE)
			return LS_OK;
		if (slot.tag != tag)
			continue;
		status = match(index, slot.path, path, length, record, err);
		if (status || *record != LS_NONE)
			return status;
	}
	return ls_fail(err, LS_CORRUPT, "looking up a path: the index has no free slot; rebuild it");
}

int ls_index_lookup(const struct ls_index *index, const char *path, size_t length, uint32_t *record,
                    struct ls_error *err)
{
	return probe(index, ls_siphash13(index->header->hash_key, path, length), path, length, record, err);
}

int ls_index_lookup_below(const struct ls_index *index, uint32_t directory, const char *name, size_t length,
                          uint32_t *record, struct ls_error *err)
{
	const struct ls_record *above = NULL;
	char path[LS_INDEX_MAX_PATH_BYTES];
	const char *start = NULL;
	size_t used;
	int status = ls_index_record(index, directory, &above, err);

	*record = LS_NONE;
	if (!status)
		status = ls_index_string(index, above->path, above->path_length, &start, err);
	if (status)
		return status;
	used = above->path_length;
	if (!used)
		return ls_index_lookup(index, name, length, record, err);
	if (used + 1 + length > sizeof(path))
		return LS_OK;
	memcpy(path, start, used);
	path[used++] = '/';
	memcpy(path + used, name, length);
	return ls_index_lookup(index, path, used + length, record, err);
}

/* A lookup follows two dependent cache misses, the slot and the path. The stages below take each of them for a
 * window of paths at once: fetch the home slots; look at them and fetch the paths; compare. (A stage that did nothing
 * but prefetch would be for GCC a function without effects, and its calls dropped.) */
#define WINDOW 64
#define GLANCE 8             /* slots of one 64-byte line */
#define UNSURE (LS_NONE - 1) /* no head fits there */

/* Where the path's head must be if its tag is in one of the first slots; it is being fetched. LS_NONE: the index does
 * not have the path. UNSURE: neither is clear so far. */
static uint32_t glance(const struct ls_index *index, uint64_t hash, size_t length)
{
	uint32_t mask = index->header->slot_count - 1;
	uint32_t tag = hash >> 32;

	for (uint32_t i = 0; i < GLANCE; i++) {
		struct ls_slot slot = index->slots[((uint32_t)hash + i) & mask];

		if (slot.path == LS_NONE)
			return LS_NONE;
		if (slot.tag != tag)
			continue;
		if (slot.path >= index->header->heap_bytes)
			return UNSURE;
		__builtin_prefetch(index->heap + slot.path);
		if (length <= 128)
			__builtin_prefetch(index->heap + slot.path + sizeof(struct ls_path_head) + length);
		return slot.path;
	}
	return UNSURE;
}

/* Two paths may have one tag: what is no match at a glance is probed for from the start. */
static int settle(const struct ls_index *index, uint32_t at, uint64_t hash, struct ls_path path, uint32_t *record,
                  struct ls_error *err)
{
	int status;

	*record = LS_NONE;
	if (at == LS_NONE)
		return LS_OK;
	if (at != UNSURE) {
		status = match(index, at, path.bytes, path.length, record, err);
		if (status || *record != LS_NONE)
			return status;
	}
	return probe(index, hash, path.bytes, path.length, record, err);
}

static int find_window(const struct ls_index *index, const struct ls_path *paths, size_t n, uint32_t *records,
                       struct ls_error *err)
{
	uint64_t hashes[WINDOW];
	uint32_t at[WINDOW];
	int status = LS_OK;

	for (size_t i = 0; i < n; i++) {
		hashes[i] = ls_siphash13(index->header->hash_key, paths[i].bytes, paths[i].length);
		__builtin_prefetch(&index->slots[(uint32_t)hashes[i] & (index->header->slot_count - 1)]);
	}
	for (size_t i = 0; i < n; i++)
		at[i] = glance(index, hashes[i], paths[i].length);
	for (size_t i = 0; i < n && !status; i++)
		status = settle(index, at[i], hashes[i], paths[i], &records[i], err);
	return status;
}

int ls_index_find_many(const struct ls_index *index, const struct ls_path *paths, size_t n, uint32_t *records,
                       struct ls_error *err)
{
	int status = LS_OK;

	for (size_t done = 0; done < n && !status; done += WINDOW)
		status = find_window(index, paths + done, n - done < WINDOW ? n - done : WINDOW, records + done, err);
	return status;
}

int ls_index_xattr_next(const struct ls_index *index, uint32_t block, struct ls_xattr_cursor *cursor,
                        struct ls_error *err)
{
	const char *string = NULL;
	uint16_t count, name_length;
	uint32_t value_length;
	int status;

	cursor->name = NULL;
	if (!cursor->started && block) {
		status = ls_index_string(index, block, sizeof(count), &string, err);
		if (status)
			return status;
		memcpy(&count, string, sizeof(count));
		cursor->left = count;
		cursor->position = block + sizeof(count);
	}
	cursor->started = 1;
	if (!cursor->left)
		return LS_OK;
	status = ls_index_string(index, cursor->position, sizeof(name_length) + sizeof(value_length), &string, err);
	if (status)
		return status;
	memcpy(&name_length, string, sizeof(name_length));
	memcpy(&value_length, string + sizeof(name_length), sizeof(value_length));
	cursor->position += sizeof(name_length) + sizeof(value_length);
	status = ls_index_string(index, cursor->position, (uint64_t)name_length + value_length, &string, err);
	if (status)
		return status;
	cursor->name = string;
	cursor->name_length = name_length;
	cursor->value = (const uint8_t *)string + name_length;
	cursor->value_length = value_length;
	cursor->position += name_length + value_length;
	cursor->left--;
	return LS_OK;
}

int ls_index_xattr_block(const struct ls_index *index, uint32_t block, const uint8_t **bytes, size_t *length,
                         struct ls_error *err)
{
	struct ls_xattr_cursor cursor = {0};
	int status;

	do
		status = ls_index_xattr_next(index, block, &cursor, err);
	while (!status && cursor.name);
	if (status)
		return status;
	*bytes = block ? index->heap + block : NULL;
	*length = block ? cursor.position - block : 0;
	return LS_OK;
}

int ls_index_same_xattrs(const struct ls_index *a, uint32_t block_a, const struct ls_index *b, uint32_t block_b,
                         int *same, struct ls_error *err)
{
	const uint8_t *bytes_a = NULL, *bytes_b = NULL;
	size_t length_a = 0, length_b = 0;
	int status = ls_index_xattr_block(a, block_a, &bytes_a, &length_a, err);

	if (!status)
		status = ls_index_xattr_block(b, block_b, &bytes_b, &length_b, err);
	if (!status)
		*same = ls_equal(bytes_a, length_a, bytes_b, length_b);
	return status;
}
