#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/retry.h"
#include "hash/blake3.h"
#include "upper_attributes.h"

static int failed(const struct upper_reader *reader, struct ls_error *err)
{
	return ls_has_changed(errno) ? UPPER_CHANGED : upper_walk_fail(reader->walk, err);
}

/* ---- extended attributes ---- */

/* What no entry has: overlayfs's attributes, and those that the host's kernel makes for itself. */
static int is_left_out(const char *name, size_t length)
{
	static const char *const prefixes[] = {LS_OVERLAY, "security.selinux", "security.ima", "security.evm"};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
		if (ls_begins_with(name, length, prefixes[i]))
			return 1;
	return 0;
}

/* What overlayfs has to say of a file. */
static void take_mark(const char *name, const char *value, size_t length, struct upper_attributes *attributes)
{
	if (!strcmp(name, LS_OVERLAY_OPAQUE)) {
		attributes->is_opaque = length == 1 && value[0] == 'y';
	} else if (!strcmp(name, LS_OVERLAY_METACOPY)) {
		attributes->is_metacopy = 1;
	} else if (!strcmp(name, LS_OVERLAY_REDIRECT) && length <= sizeof(attributes->redirect.text)) {
		memcpy(attributes->redirect.text, value, length);
		attributes->redirect.length = length;
	}
}

static int is_mark(const char *name)
{
	return !strcmp(name, LS_OVERLAY_OPAQUE) || !strcmp(name, LS_OVERLAY_METACOPY) ||
	       !strcmp(name, LS_OVERLAY_REDIRECT);
}

static int take_xattr(const struct upper_reader *reader, const char *name, size_t length, struct ls_xattr *xattr,
                      struct ls_error *err)
{
	size_t name_length = strlen(name);
	void *own_name = ls_arena_copy(reader->arena, name, name_length);
	void *value = ls_arena_copy(reader->arena, reader->value, length);

	if (!own_name || !value)
		return upper_out_of_memory(err);
	xattr->name = (struct ls_bytes){own_name, name_length};
	xattr->value = (struct ls_bytes){value, length};
	return LS_OK;
}

static int compare_xattrs(const void *left, const void *right)
{
	const struct ls_bytes a = ((const struct ls_xattr *)left)->name;
	const struct ls_bytes b = ((const struct ls_xattr *)right)->name;

	return ls_compare(a.bytes, a.length, b.bytes, b.length);
}

/* Take those of the names listed that there still are. */
static int take_listed(const struct upper_reader *reader, const struct ls_subject *of, size_t names_length,
                       struct ls_xattr *xattrs, struct upper_attributes *attributes, struct ls_error *err)
{
	const char *end = reader->names + names_length;

	for (const char *name = reader->names; name < end; name += strlen(name) + 1) {
		int status = LS_OK, marks = is_mark(name);
		ssize_t length;

		if (!marks && is_left_out(name, strlen(name)))
			continue;
		length = ls_xattrs_get(of, name, reader->value);
		if (length < 0 && errno == ENODATA)
			continue;
		if (length < 0)
			return failed(reader, err);
		if (marks)
			take_mark(name, reader->value, (size_t)length, attributes);
		else
			status = take_xattr(reader, name, (size_t)length, &xattrs[attributes->xattr_count++], err);
		if (status)
			return status;
	}
	return LS_OK;
}

static int read_xattrs(const struct upper_reader *reader, const struct ls_subject *of,
                       struct upper_attributes *attributes, struct ls_error *err)
{
	ssize_t names_length = ls_xattrs_list(of, reader->names);
	struct ls_xattr *xattrs;
	size_t count = 0;
	int status;

	attributes->xattr_count = 0;
	attributes->is_opaque = attributes->is_metacopy = 0;
	attributes->redirect.length = 0;
	if (names_length < 0)
		return failed(reader, err);
	if (!names_length)
		return LS_OK;
	for (ssize_t i = 0; i < names_length; i++)
		count += !reader->names[i];
	xattrs = ls_arena_take(reader->arena, count * sizeof(*xattrs));
	if (!xattrs)
		return upper_out_of_memory(err);
	attributes->xattrs = xattrs;
	status = take_listed(reader, of, (size_t)names_length, xattrs, attributes, err);
	if (!status && attributes->xattr_count > 1)
		qsort(xattrs, attributes->xattr_count, sizeof(*xattrs), compare_xattrs);
	return status;
}

/* ---- attributes ---- */

int upper_read_attributes(const struct upper_reader *reader, int fd, struct upper_attributes *attributes,
                          struct ls_error *err)
{
	struct ls_subject subject = {.fd = fd};

	attributes->target = (struct ls_bytes){0};
	if (fstat(fd, &attributes->status))
		return upper_walk_fail(reader->walk, err);
	return read_xattrs(reader, &subject, attributes, err);
}

static int read_target(const struct upper_reader *reader, int directory_fd, const char *name,
                       struct upper_attributes *attributes, struct ls_error *err)
{
	ssize_t length = readlinkat(directory_fd, name, reader->value, LS_XATTRS_BYTES);
	void *copy;

	/* EINVAL: it is no link any more. */
	if (length < 0)
		return errno == EINVAL ? UPPER_CHANGED : failed(reader, err);
	copy = ls_arena_copy(reader->arena, reader->value, (size_t)length);
	if (!copy)
		return upper_out_of_memory(err);
	attributes->target = (struct ls_bytes){copy, (size_t)length};
	return LS_OK;
}

int upper_read_special(const struct upper_reader *reader, const struct upper_item *item,
                       struct upper_attributes *attributes, struct ls_error *err)
{
	int directory_fd = upper_walk_fd(reader->walk, item);
	struct ls_subject subject;
	int status = LS_OK;

	attributes->target = (struct ls_bytes){0};
	if (fstatat(directory_fd, item->name, &attributes->status, AT_SYMLINK_NOFOLLOW))
		return failed(reader, err);
	if (IFTODT(attributes->status.st_mode) != item->type)
		return UPPER_CHANGED;
	if (ls_is_overlay_whiteout(attributes->status.st_mode, attributes->status.st_rdev))
		return UPPER_CHANGED;
	if (S_ISLNK(attributes->status.st_mode))
		status = read_target(reader, directory_fd, item->name, attributes, err);
	if (status)
		return status;
	subject = ls_subject_at(directory_fd, item->name);
	return read_xattrs(reader, &subject, attributes, err);
}

/* ---- records of the chain ---- */

/* The next attribute of a record that an entry has, too; name NULL after the last. */
static int next_xattr(const struct upper_reader *reader, const struct ls_record *record, struct ls_xattr_cursor *cursor,
                      struct ls_error *err)
{
	int status;

	do
		status = ls_index_xattr_next(reader->walk->index, record->xattrs, cursor, err);
	while (!status && cursor->name && is_left_out(cursor->name, cursor->name_length));
	return status;
}

static int describe_xattrs(const struct upper_reader *reader, const struct ls_record *record,
                           struct ls_upper_entry *entry, struct ls_error *err)
{
	struct ls_xattr_cursor cursor = {0};
	struct ls_xattr *xattrs;
	size_t count = 0;
	int status = next_xattr(reader, record, &cursor, err);

	for (; !status && cursor.name; count++)
		status = next_xattr(reader, record, &cursor, err);
	if (status || !count)
		return status;
	xattrs = ls_arena_take(reader->arena, count * sizeof(*xattrs));
	if (!xattrs)
		return upper_out_of_memory(err);
	cursor = (struct ls_xattr_cursor){0};
	for (size_t i = 0; i < count && !status; i++) {
		status = next_xattr(reader, record, &cursor, err);
		xattrs[i].name = (struct ls_bytes){(const uint8_t *)cursor.name, cursor.name_length};
		xattrs[i].value = (struct ls_bytes){cursor.value, cursor.value_length};
	}
	entry->xattrs = xattrs;
	entry->xattr_count = count;
	return status;
}

static int find_target(const struct upper_reader *reader, const struct ls_record *record, struct ls_bytes *target,
                       struct ls_error *err)
{
	const char *bytes = NULL;
	int status = ls_index_string(reader->walk->index, record->data, record->size, &bytes, err);

	*target = (struct ls_bytes){(const uint8_t *)bytes, (size_t)record->size};
	return status;
}

int upper_describe_record(const struct upper_reader *reader, uint32_t number, struct ls_upper_entry *entry,
                          struct ls_error *err)
{
	const struct ls_record *record = &reader->walk->index->records[number];
	int status = LS_OK;

	*entry = (struct ls_upper_entry){
	    .mode = record->mode,
	    .uid = record->uid,
	    .gid = record->gid,
	    .mtime_seconds = record->mtime_seconds,
	    .mtime_nanoseconds = record->mtime_nanoseconds,
	    .lower = LS_NONE,
	    .fd = -1,
	};
	if (S_ISCHR(record->mode) || S_ISBLK(record->mode)) {
		entry->device_major = (uint32_t)(record->size >> 32);
		entry->device_minor = (uint32_t)record->size;
	}
	if (S_ISREG(record->mode)) {
		entry->size = record->size;
		entry->lower = number;
	}
	if (S_ISLNK(record->mode))
		status = find_target(reader, record, &entry->target, err);
	return status ? status : describe_xattrs(reader, record, entry, err);
}

static int same_bytes(struct ls_bytes a, const void *bytes, size_t length)
{
	return ls_equal(a.bytes, a.length, bytes, length);
}

static int has_xattrs(const struct upper_reader *reader, const struct upper_attributes *attributes,
                      const struct ls_record *record, int *has, struct ls_error *err)
{
	struct ls_xattr_cursor cursor = {0};
	int status = next_xattr(reader, record, &cursor, err);
	size_t i = 0;

	for (; !status && cursor.name && i < attributes->xattr_count; i++) {
		if (!same_bytes(attributes->xattrs[i].name, cursor.name, cursor.name_length) ||
		    !same_bytes(attributes->xattrs[i].value, cursor.value, cursor.value_length))
			break;
		status = next_xattr(reader, record, &cursor, err);
	}
	*has = !status && !cursor.name && i == attributes->xattr_count;
	return status;
}

static int is_device(const struct stat *status, const struct ls_record *record)
{
	return major(status->st_rdev) == record->size >> 32 && minor(status->st_rdev) == (uint32_t)record->size;
}

int upper_is_record(const struct upper_reader *reader, const struct upper_attributes *attributes, uint32_t number,
                    int *is_record, struct ls_error *err)
{
	const struct ls_record *record = &reader->walk->index->records[number];
	const struct stat *status = &attributes->status;
	struct ls_bytes target;
	int failure;

	*is_record = 0;
	if (status->st_mode != record->mode || status->st_uid != record->uid || status->st_gid != record->gid ||
	    status->st_mtim.tv_sec != record->mtime_seconds ||
	    (uint64_t)status->st_mtim.tv_nsec != record->mtime_nanoseconds)
		return LS_OK;
	if ((S_ISCHR(record->mode) || S_ISBLK(record->mode)) && !is_device(status, record))
		return LS_OK;
	if (S_ISLNK(record->mode)) {
		failure = find_target(reader, record, &target, err);
		if (failure || !same_bytes(target, attributes->target.bytes, attributes->target.length))
			return failure;
	}
	return has_xattrs(reader, attributes, record, is_record, err);
}

/* ---- contents ---- */

static int hash_file(const struct upper_reader *reader, int fd, uint64_t size, uint8_t digest[LS_B3_DIGEST_BYTES],
                     struct ls_error *err)
{
	const struct ls_b3_kernel *kernel;
	struct ls_b3_hasher hasher;
	int status = ls_b3_kernel_find(NULL, &kernel, err);

	if (status)
		return status;
	ls_b3_hasher_init(&hasher, kernel);
	/* One byte more than `size`, so that a file that has grown has another digest. */
	for (uint64_t at = 0; at <= size;) {
		uint64_t wanted = size + 1 - at < LS_XATTRS_BYTES ? size + 1 - at : LS_XATTRS_BYTES;
		ssize_t length = TEMP_FAILURE_RETRY(pread(fd, reader->value, wanted, (off_t)at));

		if (length < 0)
			return upper_walk_fail(reader->walk, err);
		if (!length)
			break;
		ls_b3_hasher_update(&hasher, reader->value, (size_t)length);
		at += (uint64_t)length;
	}
	ls_b3_hasher_final(&hasher, digest);
	return LS_OK;
}

int upper_has_content(const struct upper_reader *reader, int fd, uint64_t size, uint32_t number, int *has_content,
                      struct ls_error *err)
{
	const struct ls_record *record = &reader->walk->index->records[number];
	const struct ls_content *content = NULL;
	uint8_t digest[LS_B3_DIGEST_BYTES];
	int status = ls_index_content(reader->walk->index, record, &content, err);

	*has_content = !status && !size && !content;
	if (status || !content || content->size != size)
		return status;
	status = hash_file(reader, fd, size, digest, err);
	*has_content = !status && !memcmp(digest, content->digest, sizeof(digest));
	return status;
}
