#include "branches.h"

#include <stdlib.h>

#define WORD_BITS 64

/* A bit for each record of an index. */
struct marks {
	uint64_t *words;
	size_t word_count;
};

static int make_marks(const struct ls_index *index, struct marks *marks, struct ls_error *err)
{
	marks->word_count = index->header->record_count / WORD_BITS + 1;
	marks->words = calloc(marks->word_count, sizeof(*marks->words));
	if (!marks->words)
		return ls_fail(err, LS_NO_MEMORY, "out of memory to mark %u records of an index",
		               index->header->record_count);
	return LS_OK;
}

static int is_marked(const struct marks *marks, uint32_t number)
{
	return marks->words[number / WORD_BITS] >> number % WORD_BITS & 1;
}

static void mark(struct marks *marks, uint32_t number)
{
	marks->words[number / WORD_BITS] |= UINT64_C(1) << number % WORD_BITS;
}

static int mark_way(const struct ls_index *index, struct marks *marks, uint32_t number, struct ls_error *err)
{
	for (;;) {
		const struct ls_record *record;
		int status = ls_index_record(index, number, &record, err);

		if (status)
			return status;
		if (is_marked(marks, number))
			return LS_OK;
		mark(marks, number);
		if (!number)
			return LS_OK;
		if (record->parent >= number)
			return ls_fail(err, LS_CORRUPT,
			               "reading an index: the parent of record %u is %u, which does not stand before "
			               "it; rebuild it",
			               number, record->parent);
		number = record->parent;
	}
}

/* Mark the records whose inodes are marked in `inodes`, and the way to them. */
static int mark_links(const struct ls_index *index, const struct marks *inodes, struct marks *marks,
                      struct ls_error *err)
{
	int status = LS_OK;

	for (uint32_t number = 0; number < index->header->record_count && !status; number++) {
		uint32_t inode = index->records[number].inode;

		if (inode < index->header->record_count && is_marked(inodes, inode))
			status = mark_way(index, marks, number, err);
	}
	return status;
}

static int mark_all(const struct ls_index *index, const uint32_t *inodes, size_t n, struct marks *marks,
                    struct ls_error *err)
{
	struct marks linked = {0};
	int status = mark_way(index, marks, 0, err);

	for (size_t i = 0; i < n && !status; i++) {
		const struct ls_record *record;

		status = ls_index_record(index, inodes[i], &record, err);
		if (!status && !S_ISDIR(record->mode) && record->count > 1) {
			if (!linked.words)
				status = make_marks(index, &linked, err);
			if (!status)
				mark(&linked, inodes[i]);
		}
		if (!status)
			status = mark_way(index, marks, inodes[i], err);
	}
	if (!status && linked.words)
		status = mark_links(index, &linked, marks, err);
	free(linked.words);
	return status;
}

int ls_index_branches(const struct ls_index *index, const uint32_t *inodes, size_t n, struct ls_buffer *out,
                      struct ls_error *err)
{
	struct marks marks;
	int status = make_marks(index, &marks, err);

	if (status)
		return status;
	status = mark_all(index, inodes, n, &marks, err);
	for (size_t i = 0; i < marks.word_count && !status; i++) {
		for (uint64_t left = marks.words[i]; left && !status; left &= left - 1) {
			uint32_t number = (uint32_t)(i * WORD_BITS + (size_t)__builtin_ctzll(left));

			status = ls_buffer_append(out, &number, sizeof(number), err);
		}
	}
	free(marks.words);
	return status;
}
