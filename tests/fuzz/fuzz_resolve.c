/* libFuzzer: a valid index of directories, files and links, with bytes of it changed, looked into by any paths.
 *
 * Input: the number of changes (1 byte), for each the place in the body and the value (3 bytes), then paths with NULs
 * between them. Without changes the index is sound, and no answer may be LS_CORRUPT. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content/rows.h"
#include "index/index_writer.h"
#include "index/resolve.h"

#define PATHS 96
#define CHANGES 8

struct node {
	uint32_t parent;
	const char *name, *target;
	uint32_t mode;
};

static const struct node nodes[] = {
    {0, "", NULL, S_IFDIR},           {0, "d", NULL, S_IFDIR},      {1, "e", NULL, S_IFDIR},
    {2, "f", NULL, S_IFREG},          {0, "f", NULL, S_IFREG},      {0, "l", "d/e", S_IFLNK},
    {0, "a", "/d/e/../e/f", S_IFLNK}, {1, "u", "..", S_IFLNK},      {2, "r", "/", S_IFLNK},
    {0, "s", "s", S_IFLNK},           {0, "n", "nothing", S_IFLNK}, {2, "x", "../../l/./r/d//u/f/", S_IFLNK},
    {0, "c", "l/x", S_IFLNK},
};
#define NODES (sizeof(nodes) / sizeof(nodes[0]))

static void write_index(struct ls_buffer *out)
{
	static const uint8_t key[16];
	struct ls_index_node written[NODES] = {0};
	struct ls_error err;

	for (uint32_t i = 0; i < NODES; i++) {
		written[i].parent = nodes[i].parent;
		written[i].inode = i;
		written[i].name = nodes[i].name;
		written[i].name_length = (uint16_t)strlen(nodes[i].name);
		written[i].target = nodes[i].target;
		written[i].record.mode = nodes[i].mode;
		written[i].record.size = nodes[i].target ? strlen(nodes[i].target) : 0;
		written[i].record.data = LS_NONE;
	}
	if (ls_index_write(LS_INDEX_CHAIN, 1, key, written, NODES, NULL, 0, out, &err)) {
		fprintf(stderr, "%s\n", err.message);
		abort();
	}
}

static size_t damage(struct ls_buffer *bytes, const uint8_t **data, size_t *length)
{
	size_t body = bytes->length - sizeof(struct ls_index_header);
	size_t n = 0;

	if (!*length)
		return 0;
	n = **data % (CHANGES + 1);
	++*data;
	--*length;
	for (size_t i = 0; i < n; i++) {
		if (*length < 3)
			return i;
		bytes->bytes[sizeof(struct ls_index_header) + ((*data)[0] | (size_t)(*data)[1] << 8) % body] =
		    (*data)[2];
		*data += 3;
		*length -= 3;
	}
	return n;
}

static size_t split(const uint8_t *data, size_t length, struct ls_path *paths)
{
	size_t n = 0;

	while (length && n < PATHS) {
		const uint8_t *end = memchr(data, 0, length);
		size_t taken = end ? (size_t)(end - data) : length;

		paths[n++] = (struct ls_path){(const char *)data, taken};
		data += taken + (end ? 1 : 0);
		length -= taken + (end ? 1 : 0);
	}
	return n;
}

static void demand(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "%s\n", what);
	abort();
}

static void look(const struct ls_index *index, const struct ls_path *paths, size_t n, int follow, int sound)
{
	struct ls_row rows[PATHS];
	struct ls_error err;
	int all = ls_rows_of_paths(index, NULL, paths, n, follow, rows, &err);

	demand(!all || (all == LS_CORRUPT && !sound), "a batch fails");
	for (size_t i = 0; i < n; i++) {
		uint32_t record = LS_NONE, again = LS_NONE;
		int sys_errno = 0, status = ls_resolve(index, paths[i], follow, &record, &sys_errno, &err);

		demand(!status || (status == LS_CORRUPT && !sound), "a lookup fails");
		if (status)
			continue;
		demand((record == LS_NONE) == (sys_errno != 0), "an answer is either a record or an errno");
		demand(record == LS_NONE || record < index->header->record_count, "a record that is not there");
		demand(!sound || rows[i].record == (int32_t)record, "a batch and a lookup differ");
		if (record != LS_NONE)
			demand(ls_resolve_link(index, record, &again, &sys_errno, &err) || !follow || !sound ||
			           again == record,
			       "what was followed is a link");
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
	static struct ls_buffer whole;
	struct ls_buffer bytes = {0};
	struct ls_path paths[PATHS];
	struct ls_index index;
	struct ls_error err;
	int sound;
	size_t n;

	if (!whole.length)
		write_index(&whole);
	demand(!ls_buffer_append(&bytes, whole.bytes, whole.length, &err), "out of memory");
	sound = !damage(&bytes, &data, &length);
	demand(!ls_index_open(&index, bytes.bytes, bytes.length, &err), "the header is sound");
	n = split(data, length, paths);
	look(&index, paths, n, 0, sound);
	look(&index, paths, n, 1, sound);
	ls_buffer_free(&bytes);
	return 0;
}
