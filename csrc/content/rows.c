#include "rows.h"

#include "index/resolve.h"

#define WINDOW 64
#define NANOSECONDS 1000000000

char ls_type_letter(uint32_t mode)
{
	/* By the four bits of S_IFMT. */
	static const char letters[16] = {
	    [S_IFIFO >> 12] = 'p', [S_IFCHR >> 12] = 'c', [S_IFDIR >> 12] = 'd',  [S_IFBLK >> 12] = 'b',
	    [S_IFREG >> 12] = 'f', [S_IFLNK >> 12] = 'l', [S_IFSOCK >> 12] = 's',
	};

	return letters[mode >> 12 & 15];
}

static int64_t mtime_ns(const struct ls_record *record)
{
	int64_t ns;

	if (__builtin_mul_overflow(record->mtime_seconds, NANOSECONDS, &ns) ||
	    __builtin_add_overflow(ns, (int64_t)record->mtime_nanoseconds, &ns))
		return record->mtime_seconds < 0 ? INT64_MIN : INT64_MAX;
	return ns;
}

static int fill(const struct ls_index *index, const struct ls_location *locations, uint32_t number, struct ls_row *row,
                struct ls_error *err)
{
	const struct ls_record *record = &index->records[number];
	const struct ls_content *content = NULL;
	int status = LS_OK;

	*row = (struct ls_row){
	    .found = 1,
	    .type = ls_type_letter(record->mode),
	    .mode = record->mode,
	    .uid = record->uid,
	    .gid = record->gid,
	    .mtime_ns = mtime_ns(record),
	    .layer = record->layer,
	    .record = (int32_t)number,
	    .location = {.pack = LS_LOCATION_NONE},
	};
	if (S_ISREG(record->mode) || S_ISLNK(record->mode))
		row->size = record->size;
	if (S_ISREG(record->mode))
		status = ls_index_content(index, record, &content, err);
	if (content)
		row->location = locations[record->data];
	return status;
}

int ls_rows_of_paths(const struct ls_index *index, const struct ls_location *locations, const struct ls_path *paths,
                     size_t n, int follow, struct ls_row *rows, struct ls_error *err)
{
	static const struct ls_row missing = {.layer = -1, .record = -1, .location = {.pack = LS_LOCATION_NONE}};
	uint32_t records[WINDOW];
	int status = LS_OK;

	for (size_t done = 0; done < n && !status; done += WINDOW) {
		size_t count = n - done < WINDOW ? n - done : WINDOW;

		status = ls_resolve_many(index, paths + done, count, follow, records, err);
		for (size_t i = 0; i < count && !status; i++) {
			if (records[i] == LS_NONE)
				rows[done + i] = missing;
			else
				status = fill(index, locations, records[i], &rows[done + i], err);
		}
	}
	return status;
}
