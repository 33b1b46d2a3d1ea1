#include "resolve.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define NAME_LIMIT 255
#define WINDOW 64

/* A walk has reached `at`, and what is left of it is the last piece, then the one before, and so on: the path, and
 * the targets of the links that it met, each begun and not ended. */
struct walk {
	const struct ls_index *index;
	uint32_t at;
	int follow;
	int sys_errno; /* how it failed, 0 while it has not */
	unsigned links;
	unsigned depth;
	struct ls_path pieces[LS_RESOLVE_MAX_LINKS + 1];
};

static int is_link(const struct ls_record *record)
{
	return S_ISLNK(record->mode);
}

static int checked_record(const struct ls_index *index, uint32_t number, const struct ls_record **record,
                          struct ls_error *err)
{
	int status = ls_index_record(index, number, record, err);

	if (status)
		return status;
	if (!ls_mode_has_type((*record)->mode))
		return ls_fail(
		    err, LS_CORRUPT,
		    "looking up a path: record %u has mode %o, which no file has; verify or rebuild the index", number,
		    (*record)->mode);
	return LS_OK;
}

static struct ls_path skip_slashes(struct ls_path path)
{
	while (path.length && path.bytes[0] == '/') {
		path.bytes++;
		path.length--;
	}
	return path;
}

static size_t name_length(struct ls_path path)
{
	const char *slash = memchr(path.bytes, '/', path.length);

	return slash ? (size_t)(slash - path.bytes) : path.length;
}

/* What is at `name` (one component or several) in the directory `at`: its number and record, LS_NONE and NULL for
 * nothing. */
static int find_below(const struct ls_index *index, uint32_t at, struct ls_path name, uint32_t *found,
                      const struct ls_record **record, struct ls_error *err)
{
	int status = ls_index_lookup_below(index, at, name.bytes, name.length, found, err);

	*record = NULL;
	return status || *found == LS_NONE ? status : checked_record(index, *found, record, err);
}

static int read_target(const struct ls_index *index, uint32_t number, const struct ls_record *link,
                       struct ls_path *target, struct ls_error *err)
{
	if (link->size > LS_INDEX_MAX_PATH_BYTES)
		return ls_fail(err, LS_CORRUPT,
		               "following a link: the target of record %u has %llu bytes; rebuild the index", number,
		               (unsigned long long)link->size);
	target->length = link->size;
	return ls_index_string(index, link->data, link->size, &target->bytes, err);
}

/* Go on with the target of the link `number`, which is in the directory `at`. Most targets are spelled as the index
 * spells them, with no further link in them: one probe finds those whole. */
static int enter_link(struct walk *walk, uint32_t number, const struct ls_record *link, struct ls_error *err)
{
	struct ls_path target;
	const struct ls_record *record;
	uint32_t found;
	int status = read_target(walk->index, number, link, &target, err);

	if (status)
		return status;
	if (walk->links++ >= LS_RESOLVE_MAX_LINKS || !target.length) {
		walk->sys_errno = target.length ? ELOOP : ENOENT;
		return LS_OK;
	}
	if (target.bytes[0] == '/') {
		walk->at = 0;
		target = skip_slashes(target);
	}
	status = find_below(walk->index, walk->at, target, &found, &record, err);
	if (status)
		return status;
	if (record && !is_link(record))
		walk->at = found;
	else
		walk->pieces[walk->depth++] = target;
	return LS_OK;
}

static int go_up(struct walk *walk, struct ls_error *err)
{
	const struct ls_record *record, *parent;
	int status = ls_index_record(walk->index, walk->at, &record, err);

	if (!status)
		status = ls_index_record(walk->index, record->parent, &parent, err);
	if (!status)
		walk->at = record->parent;
	return status;
}

/* One component from `at`, which is a directory. `last`: nothing comes after it, not even a slash. */
static int step(struct walk *walk, struct ls_path name, int last, struct ls_error *err)
{
	const struct ls_record *record;
	uint32_t found;
	int status;

	if (name.length == 1 && name.bytes[0] == '.')
		return LS_OK;
	if (name.length == 2 && !memcmp(name.bytes, "..", 2))
		return go_up(walk, err);
	status = find_below(walk->index, walk->at, name, &found, &record, err);
	if (status)
		return status;
	if (!record)
		walk->sys_errno = name.length > NAME_LIMIT ? ENAMETOOLONG : ENOENT;
	else if (is_link(record) && (walk->follow || !last))
		return enter_link(walk, found, record, err);
	else
		walk->at = found;
	return LS_OK;
}

/* Something comes next, be it a slash: what was reached must be a directory. */
static int require_directory(struct walk *walk, struct ls_error *err)
{
	const struct ls_record *record = NULL;
	int status = checked_record(walk->index, walk->at, &record, err);

	if (status || S_ISDIR(record->mode))
		return status;
	if (!walk->at)
		return ls_fail(err, LS_CORRUPT, "looking up a path: the root has mode %o; rebuild the index",
		               record->mode);
	walk->sys_errno = ENOTDIR;
	return LS_OK;
}

/* Take the next component off a piece; an empty one at its end. */
static struct ls_path take_name(struct ls_path *piece)
{
	struct ls_path name = skip_slashes(*piece);
	const char *end = piece->bytes + piece->length;

	name.length = name_length(name);
	piece->bytes = name.bytes + name.length;
	piece->length = (size_t)(end - piece->bytes);
	return name;
}

static int walk_on(struct walk *walk, struct ls_error *err)
{
	int status = LS_OK;

	while (walk->depth && !walk->sys_errno && !status) {
		struct ls_path *piece = &walk->pieces[walk->depth - 1];
		struct ls_path name;

		if (!piece->length) {
			walk->depth--;
			continue;
		}
		status = require_directory(walk, err);
		if (status || walk->sys_errno)
			break;
		name = take_name(piece);
		if (name.length)
			status = step(walk, name, walk->depth == 1 && !piece->length, err);
	}
	return status;
}

static int finish(struct walk *walk, uint32_t *record, int *sys_errno, struct ls_error *err)
{
	int status = walk_on(walk, err);

	*record = status || walk->sys_errno ? LS_NONE : walk->at;
	*sys_errno = walk->sys_errno;
	return status;
}

static int walk_path(const struct ls_index *index, struct ls_path path, int follow, uint32_t *record, int *sys_errno,
                     struct ls_error *err)
{
	struct walk walk;

	walk.index = index;
	walk.at = 0;
	walk.follow = follow;
	walk.links = 0;
	walk.depth = 1;
	walk.pieces[0] = path;
	walk.sys_errno = !path.length ? ENOENT : path.length >= LS_INDEX_MAX_PATH_BYTES ? ENAMETOOLONG : 0;
	return finish(&walk, record, sys_errno, err);
}

/* The path as the index would spell it, if it has no link, "." or ".." in it, which most have not. */
static struct ls_path direct(struct ls_path path)
{
	if (path.length > 1 && path.bytes[0] == '/')
		return (struct ls_path){path.bytes + 1, path.length - 1};
	return path;
}

/* Whether a record found at the direct spelling of a path is where the path leads. */
static int is_answer(const struct ls_record *record, int follow)
{
	return ls_mode_has_type(record->mode) && !(follow && is_link(record));
}

int ls_resolve(const struct ls_index *index, struct ls_path path, int follow, uint32_t *record, int *sys_errno,
               struct ls_error *err)
{
	struct ls_path name = direct(path);
	int status;

	if (name.length) {
		status = ls_index_lookup(index, name.bytes, name.length, record, err);
		if (status)
			return status;
		*sys_errno = 0;
		if (*record != LS_NONE && is_answer(&index->records[*record], follow))
			return LS_OK;
	}
	return walk_path(index, path, follow, record, sys_errno, err);
}

/* Paths that were not found as they are spelled. */
struct misses {
	size_t n;
	uint8_t which[WINDOW];
	struct ls_path directories[WINDOW]; /* all but the last component */
	uint32_t records[WINDOW];           /* of these */
};

static void add_miss(struct misses *misses, size_t i, struct ls_path path)
{
	const char *slash = memrchr(path.bytes, '/', path.length);

	misses->which[misses->n] = (uint8_t)i;
	misses->directories[misses->n] = (struct ls_path){path.bytes, slash ? (size_t)(slash - path.bytes) : 0};
	misses->n++;
}

/* Where the directory is found as it is spelled, a name that the index could have spelled is not in it: no walk would
 * find it. That is what most misses are. */
static int is_absent(const struct ls_index *index, struct ls_path path, struct ls_path directory, uint32_t record)
{
	size_t start = directory.length + (directory.length ? 1 : 0);
	const char *name = path.bytes + start;
	size_t length = path.length - start;

	if (record == LS_NONE || !S_ISDIR(index->records[record].mode) || !length || name[0] == '/')
		return 0;
	return !ls_is_dots(name, length);
}

static int resolve_window(const struct ls_index *index, const struct ls_path *paths, size_t n, int follow,
                          uint32_t *records, struct ls_error *err)
{
	struct ls_path names[WINDOW] = {0};
	struct misses misses = {0};
	int sys_errno, status;

	for (size_t i = 0; i < n; i++)
		names[i] = direct(paths[i]);
	status = ls_index_find_many(index, names, n, records, err);
	for (size_t i = 0; i < n && !status; i++)
		if (records[i] != LS_NONE)
			__builtin_prefetch(&index->records[records[i]]);
	for (size_t i = 0; i < n && !status; i++) {
		if (records[i] == LS_NONE)
			add_miss(&misses, i, names[i]);
		else if (!names[i].length || !is_answer(&index->records[records[i]], follow))
			status = walk_path(index, paths[i], follow, &records[i], &sys_errno, err);
	}
	if (!status)
		status = ls_index_find_many(index, misses.directories, misses.n, misses.records, err);
	for (size_t m = 0; m < misses.n && !status; m++) {
		size_t i = misses.which[m];

		if (!is_absent(index, names[i], misses.directories[m], misses.records[m]))
			status = walk_path(index, paths[i], follow, &records[i], &sys_errno, err);
	}
	return status;
}

int ls_resolve_many(const struct ls_index *index, const struct ls_path *paths, size_t n, int follow, uint32_t *records,
                    struct ls_error *err)
{
	int status = LS_OK;

	for (size_t done = 0; done < n && !status; done += WINDOW)
		status = resolve_window(index, paths + done, n - done < WINDOW ? n - done : WINDOW, follow,
		                        records + done, err);
	return status;
}

int ls_resolve_link(const struct ls_index *index, uint32_t number, uint32_t *record, int *sys_errno,
                    struct ls_error *err)
{
	const struct ls_record *link = NULL;
	struct walk walk = {.index = index, .follow = 1};
	int status = checked_record(index, number, &link, err);

	if (status)
		return status;
	if (!is_link(link)) {
		*record = number;
		*sys_errno = 0;
		return LS_OK;
	}
	walk.at = link->parent;
	status = enter_link(&walk, number, link, err);
	return status ? status : finish(&walk, record, sys_errno, err);
}
