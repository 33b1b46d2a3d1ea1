#include "tar_header.h"
#include "base/whiteout.h"
#include "tar_pax.h"
#include "tar_sparse.h"

#include <inttypes.h>
#include <string.h>

/* GNU's magic has a space where POSIX has the NUL, and other fields where POSIX has the prefix. */
static int is_posix(const uint8_t *block)
{
	return memcmp(block + TAR_AT_MAGIC, "ustar", 6) == 0;
}

static int is_gnu(const uint8_t *block)
{
	return memcmp(block + TAR_AT_MAGIC, "ustar ", 6) == 0;
}

/* GNU tar manual, "Basic Tar Format": the first bit marks base-256, the second is the sign of a
 * big-endian number in two's complement. */
static enum tar_number parse_base256(const uint8_t *field, size_t width, int64_t *value)
{
	uint8_t invert = field[0] & 0x40 ? 0xff : 0;
	uint64_t magnitude = (field[0] ^ invert) & 0x7f;

	for (size_t i = 1; i < width; i++) {
		if (magnitude >> 55)
			return TAR_NUMBER_RANGE;
		magnitude = magnitude << 8 | (uint8_t)(field[i] ^ invert);
	}
	*value = invert ? -(int64_t)magnitude - 1 : (int64_t)magnitude;
	return TAR_NUMBER_OK;
}

/* Blank is 0: v7 and others leave fields without meaning blank. What stands behind a NUL is no part of the number. */
enum tar_number tar_parse_field(const uint8_t *field, size_t width, int64_t *value)
{
	size_t i = 0;
	uint64_t number = 0;

	if (field[0] & 0x80)
		return parse_base256(field, width, value);
	while (i < width && (field[i] == ' ' || field[i] == 0))
		i++;
	for (; i < width && field[i] >= '0' && field[i] <= '7'; i++)
		number = number << 3 | (uint64_t)(field[i] - '0');
	while (i < width && field[i] == ' ')
		i++;
	if (i < width && field[i] != 0)
		return TAR_NUMBER_GARBAGE;
	*value = (int64_t)number;
	return TAR_NUMBER_OK;
}

static int field_signed(const struct ls_tar *tar, const uint8_t *field, size_t width, const char *name, int64_t *value,
                        struct ls_error *err)
{
	enum tar_number result = tar_parse_field(field, width, value);

	if (result == TAR_NUMBER_OK)
		return LS_OK;
	return tar_fail(tar, err, LS_CORRUPT, "the field %s holds \"%s\", which %s", name, LS_SHOWN(field, width),
	                result == TAR_NUMBER_RANGE ? "does not fit 64 bits" : "is not an octal or base-256 number");
}

int tar_field_unsigned(const struct ls_tar *tar, const uint8_t *field, size_t width, const char *name, uint64_t *value,
                       struct ls_error *err)
{
	int64_t number = 0;
	int status = field_signed(tar, field, width, name, &number, err);

	if (status)
		return status;
	if (number < 0)
		return tar_fail(tar, err, LS_CORRUPT, "the field %s is negative: %" PRId64, name, number);
	*value = (uint64_t)number;
	return LS_OK;
}

/* The sum of all bytes, the checksum's own counted as spaces. POSIX says unsigned; historic writers
 * summed signed chars. */
static int verify_checksum(const struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	uint64_t expected = 0;
	uint32_t sum = TAR_ID_BYTES * ' ', high = 0;
	int status = tar_field_unsigned(tar, block + TAR_AT_CHECKSUM, TAR_ID_BYTES, "chksum", &expected, err);

	if (status)
		return status;
	for (size_t i = 0; i < TAR_BLOCK; i++)
		sum += block[i];
	for (size_t i = 0; i < TAR_ID_BYTES; i++)
		sum -= block[TAR_AT_CHECKSUM + i];
	if (sum == expected)
		return LS_OK;
	for (size_t i = 0; i < TAR_BLOCK; i++)
		high += i - TAR_AT_CHECKSUM >= TAR_ID_BYTES && block[i] >= 0x80;
	if ((int64_t)sum - 256 * (int64_t)high == (int64_t)expected)
		return LS_OK;
	return tar_fail(tar, err, LS_CORRUPT,
	                "the checksum is %" PRIu32 " and the header says %" PRIu64
	                "; this is not a tar archive, or it is damaged: fetch or write it again",
	                sum, expected);
}

/* POSIX has an unknown type treated as a regular file. That is refused: the letters in use ('A', 'D', 'M', 'N', 'X')
 * carry other data than a file's content, and an image with made-up files is worse than none. */
static int read_type(struct ls_tar *tar, uint8_t type, struct ls_error *err)
{
	static const enum ls_tar_type types['7' - '0' + 1] = {
	    LS_TAR_REGULAR, LS_TAR_HARDLINK,  LS_TAR_SYMLINK, LS_TAR_CHAR,
	    LS_TAR_BLOCK,   LS_TAR_DIRECTORY, LS_TAR_FIFO,    LS_TAR_REGULAR,
	};

	if (type == 0 || type == 'S')
		tar->entry.type = LS_TAR_REGULAR;
	else if (type >= '0' && type <= '7')
		tar->entry.type = types[type - '0'];
	else
		return tar_fail(tar, err, LS_INVALID,
		                "entries of type '%s' are not supported; write the archive without them",
		                LS_SHOWN(&type, 1));
	return LS_OK;
}

/* The bytes of a component that its limit is about: those of the name of what a whiteout hides. */
static size_t counted_bytes(const uint8_t *name, size_t length)
{
	return length > LS_WHITEOUT_BYTES && ls_begins_with(name, length, LS_WHITEOUT) ? length - LS_WHITEOUT_BYTES
	                                                                               : length;
}

/* Neither empty nor too long nor with a NUL in it; of a path, each component within its limit, too. */
static int check_text(const struct ls_tar *tar, struct ls_bytes text, const char *what, int is_path,
                      struct ls_error *err)
{
	size_t path_bytes = tar->limits.path_bytes, name_bytes = tar->limits.name_bytes;
	const uint8_t *at = text.bytes, *end = text.bytes + text.length;

	if (!text.length)
		return tar_fail(tar, err, LS_INVALID, "the %s is empty", what);
	if (text.length > path_bytes)
		return tar_fail(tar, err, LS_LIMIT, "the %s \"%s\" has %zu bytes, more than the limit path_bytes (%zu)",
		                what, LS_SHOWN(at, text.length), text.length, path_bytes);
	if (memchr(at, 0, text.length))
		return tar_fail(tar, err, LS_INVALID, "the %s \"%s\" contains a NUL byte", what,
		                LS_SHOWN(at, text.length));
	while (is_path && (size_t)(end - at) > name_bytes) {
		const uint8_t *slash = memchr(at, '/', (size_t)(end - at));
		size_t length = (size_t)((slash ? slash : end) - at);

		if (counted_bytes(at, length) > name_bytes)
			return tar_fail(
			    tar, err, LS_LIMIT,
			    "the %s has the component \"%s\" of %zu bytes, more than the limit name_bytes (%zu)", what,
			    LS_SHOWN(at, length), length, name_bytes);
		at += length + !!slash;
	}
	return LS_OK;
}

/* The name as the header itself has it; kept in `tar`, as the span may be gone when the entry is complete. */
static struct ls_bytes header_name(struct ls_tar *tar, const uint8_t *block)
{
	size_t length = strnlen((const char *)block + TAR_AT_NAME, TAR_NAME_BYTES);
	size_t before = is_posix(block) ? strnlen((const char *)block + TAR_AT_PREFIX, TAR_PREFIX_BYTES) : 0;

	if (before) {
		memcpy(tar->name, block + TAR_AT_PREFIX, before);
		tar->name[before++] = '/';
	}
	memcpy(tar->name + before, block + TAR_AT_NAME, length);
	return (struct ls_bytes){tar->name, before + length};
}

/* GNU's long name wins over pax, as in Go's archive/tar and so in docker and containerd. */
static int read_path(struct ls_tar *tar, const uint8_t *block, enum tar_sparse_form form, struct ls_error *err)
{
	struct ls_bytes path;
	int status;

	if (!((form == TAR_SPARSE_0 || form == TAR_SPARSE_1) && tar_value(tar, TAR_KEY_SPARSE_NAME, &path)) &&
	    !tar_value(tar, TAR_KEY_LONG_NAME, &path) && !tar_value(tar, TAR_KEY_PATH, &path))
		path = header_name(tar, block);
	if (path.length || !tar->limits.nameless) {
		status = check_text(tar, path, "path", 1, err);
		if (status)
			return status;
	}
	tar->entry.path = path;
	return LS_OK;
}

static int read_link(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	struct ls_bytes link;
	int hard = tar->entry.type == LS_TAR_HARDLINK, status;

	if (!hard && tar->entry.type != LS_TAR_SYMLINK)
		return LS_OK;
	if (!tar_value(tar, TAR_KEY_LONG_LINK, &link) && !tar_value(tar, TAR_KEY_LINKPATH, &link)) {
		link = (struct ls_bytes){tar->link, strnlen((const char *)block + TAR_AT_LINK, TAR_NAME_BYTES)};
		memcpy(tar->link, block + TAR_AT_LINK, link.length);
	}
	status = check_text(tar, link, hard ? "target of the hard link" : "target of the symlink", hard, err);
	if (status)
		return status;
	tar->entry.link = link;
	return LS_OK;
}

static int read_id(struct ls_tar *tar, const uint8_t *field, enum tar_key key, const char *name, uint32_t *id,
                   struct ls_error *err)
{
	uint64_t number = 0;
	int found, status = tar_value_unsigned(tar, key, &found, &number, err);

	if (!status && !found) {
		int64_t value = 0;

		status = field_signed(tar, field, TAR_ID_BYTES, name, &value, err);
		number = (uint64_t)value;
	}
	if (status)
		return status;
	if (number > UINT32_MAX)
		return tar_fail(tar, err, LS_INVALID, "the %s %" PRId64 " is not between 0 and 4294967295", name,
		                (int64_t)number);
	*id = (uint32_t)number;
	return LS_OK;
}

static int read_device(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	uint64_t major = 0, minor = 0;
	int status;

	if (tar->entry.type != LS_TAR_CHAR && tar->entry.type != LS_TAR_BLOCK)
		return LS_OK;
	if (!is_posix(block) && !is_gnu(block)) /* v7 has no such fields */
		return LS_OK;
	status = tar_field_unsigned(tar, block + TAR_AT_MAJOR, TAR_ID_BYTES, "devmajor", &major, err);
	if (!status)
		status = tar_field_unsigned(tar, block + TAR_AT_MINOR, TAR_ID_BYTES, "devminor", &minor, err);
	if (status)
		return status;
	if (major > UINT32_MAX || minor > UINT32_MAX)
		return tar_fail(tar, err, LS_INVALID, "the device number %" PRIu64 ":%" PRIu64 " is too large", major,
		                minor);
	tar->entry.device_major = (uint32_t)major;
	tar->entry.device_minor = (uint32_t)minor;
	return LS_OK;
}

static int read_mtime(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	int found, status = tar_value_mtime(tar, &found, err);

	if (status || found)
		return status;
	return field_signed(tar, block + TAR_AT_MTIME, TAR_NUMBER_BYTES, "mtime", &tar->entry.mtime_seconds, err);
}

static int read_size(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	int found, status = tar_value_unsigned(tar, TAR_KEY_SIZE, &found, &tar->member_size, err);

	if (status || found)
		return status;
	return tar_field_unsigned(tar, block + TAR_AT_SIZE, TAR_NUMBER_BYTES, "size", &tar->member_size, err);
}

static int read_attributes(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	int64_t mode = 0;
	int status = field_signed(tar, block + TAR_AT_MODE, TAR_ID_BYTES, "mode", &mode, err);

	tar->entry.mode = (uint32_t)mode & 07777;
	if (!status)
		status = read_id(tar, block + TAR_AT_UID, TAR_KEY_UID, "uid", &tar->entry.uid, err);
	if (!status)
		status = read_id(tar, block + TAR_AT_GID, TAR_KEY_GID, "gid", &tar->entry.gid, err);
	if (!status)
		status = read_mtime(tar, block, err);
	if (!status)
		status = read_device(tar, block, err);
	if (!status)
		status = read_size(tar, block, err);
	return status;
}

/* Links, devices and directories have no content whatever their size says, as in Go's archive/tar: some writers
 * repeat the file's size in a hard link. */
static int begin_content(struct ls_tar *tar, const uint8_t *block, enum tar_sparse_form form, struct ls_error *err)
{
	if (form != TAR_NOT_SPARSE && tar->entry.type != LS_TAR_REGULAR)
		return tar_fail(tar, err, LS_INVALID, "only a regular file can be sparse");
	if (form != TAR_NOT_SPARSE)
		return tar_sparse_begin(tar, form, block, err);
	if (tar->entry.type == LS_TAR_REGULAR) {
		if (tar->member_size > tar->limits.file_bytes)
			return tar_fail(tar, err, LS_LIMIT,
			                "the file has %" PRIu64 " bytes, more than the limit file_bytes (%" PRIu64 ")",
			                tar->member_size, tar->limits.file_bytes);
		tar->entry.size = tar->entry.stored_size = tar->member_size;
	}
	tar_ready(tar);
	return LS_OK;
}

static int read_entry(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	uint8_t type = block[TAR_AT_TYPE];
	enum tar_sparse_form form = TAR_NOT_SPARSE;
	int status = read_type(tar, type, err);

	if (!status)
		status = tar_sparse_form(tar, type, &form, err);
	if (!status)
		status = read_path(tar, block, form, err);
	if (status)
		return status;
	/* v7 has no type for directories. */
	if (type == 0 && tar->entry.path.bytes[tar->entry.path.length - 1] == '/')
		tar->entry.type = LS_TAR_DIRECTORY;
	if (++tar->entries > tar->limits.entries)
		return tar_fail(tar, err, LS_LIMIT, "the archive has more entries than the limit entries (%" PRIu64 ")",
		                tar->limits.entries);
	if (type == 'S' && !is_gnu(block))
		return tar_fail(tar, err, LS_INVALID,
		                "a sparse entry ('S') of another tar than GNU's is not supported");
	status = read_link(tar, block, err);
	if (!status)
		status = read_attributes(tar, block, err);
	if (!status)
		status = tar_collect_xattrs(tar, err);
	if (!status)
		status = begin_content(tar, block, form, err);
	return status;
}

/* Forget the last entry: a header of the next one begins. */
static void begin_pending(struct ls_tar *tar)
{
	if (tar->pending)
		return;
	tar_values_reset(tar);
	tar->entry = (struct ls_tar_entry){.position = tar->header_position};
	tar->pending = 1;
}

/* A header that belongs to no entry: a global one, or a volume label. */
static int read_other(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	uint64_t size = 0;
	int status = tar_field_unsigned(tar, block + TAR_AT_SIZE, TAR_NUMBER_BYTES, "size", &size, err);

	if (status)
		return status;
	if (block[TAR_AT_TYPE] != 'V')
		return tar_extended_begin(tar, block[TAR_AT_TYPE], size, err);
	tar->pending = 0;
	tar->left = size + (-size & (TAR_BLOCK - 1));
	tar->stage = tar->left ? TAR_SKIP : TAR_HEADER;
	return LS_OK;
}

/* One zero block is enough, as for GNU tar: writers that were cut off leave one. */
static int read_end(struct ls_tar *tar, struct ls_error *err)
{
	if (tar->pending)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the archive ends before the entry that the extended header at byte %" PRIu64
		                " belongs to",
		                tar->entry.position);
	tar->stage = TAR_END;
	return LS_OK;
}

int tar_read_header(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	int status;

	tar->entry.path.bytes = NULL;
	if (ls_is_zero(block, TAR_BLOCK))
		return read_end(tar, err);
	status = verify_checksum(tar, block, err);
	if (status)
		return status;
	switch (block[TAR_AT_TYPE]) {
	case 'x':
	case 'L':
	case 'K':
		begin_pending(tar);
		return read_other(tar, block, err);
	case 'g':
	case 'V':
		return read_other(tar, block, err);
	default:
		begin_pending(tar);
		return read_entry(tar, block, err);
	}
}
