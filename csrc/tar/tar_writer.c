#include "tar_writer.h"
#include "base/whiteout.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tar_format.h"

/* A path as the archive has it: with a '/' behind a directory, or the name of a whiteout. */
#define SPELLED_BYTES (LS_TAR_WRITER_PATH_BYTES + sizeof("/" LS_WHITEOUT_OPAQUE))
#define NUMBER_CHARS 32

/* What fits a field of `width` bytes in octal, with its NUL. */
#define OCTAL_LIMIT(width) (UINT64_C(1) << 3 * ((width)-1))

static struct ls_bytes text_of(const char *text)
{
	return (struct ls_bytes){(const uint8_t *)text, strlen(text)};
}

/* ---- messages ---- */

__attribute__((format(printf, 4, 5))) static int refuse(const struct ls_tar_writer *writer, struct ls_error *err,
                                                        int status, const char *format, ...)
{
	char detail[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(detail, sizeof(detail), format, arguments);
	va_end(arguments);
	return ls_fail(err, status, "writing \"/%s\" to a layer's tar: %s", LS_SHOWN(writer->path, writer->path_length),
	               detail);
}

/* `length` counts what is written behind or into the path. */
static int check_length(const struct ls_tar_writer *writer, size_t length, struct ls_error *err)
{
	if (length <= LS_TAR_WRITER_PATH_BYTES)
		return LS_OK;
	return refuse(writer, err, LS_LIMIT, "its path has %zu bytes in the tar, more than a layer can hold (%d)",
	              length, LS_TAR_WRITER_PATH_BYTES);
}

/* Keep the path of the entry that begins. */
static int remember(struct ls_tar_writer *writer, struct ls_bytes path, struct ls_error *err)
{
	size_t length = path.length < sizeof(writer->path) ? path.length : sizeof(writer->path);

	if (writer->content_left || writer->padding)
		return refuse(writer, err, LS_INVALID, "the next entry begins before the end of its content");
	if (length)
		memcpy(writer->path, path.bytes, length);
	writer->path_length = length;
	return check_length(writer, path.length, err);
}

/* ---- what a reader takes for what it is ---- */

static int check_component(const struct ls_tar_writer *writer, const uint8_t *name, size_t length, struct ls_error *err)
{
	if (!length || ls_is_dots(name, length))
		return refuse(writer, err, LS_INVALID,
		              "a path in a layer has no empty component, no \".\" and no \"..\"");
	if (length > ls_tar_default_limits.name_bytes)
		return refuse(writer, err, LS_LIMIT, "a component has %zu bytes, more than a layer can hold (%zu)",
		              length, ls_tar_default_limits.name_bytes);
	if (memchr(name, 0, length))
		return refuse(writer, err, LS_INVALID, "a path has no NUL byte");
	if (ls_begins_with(name, length, LS_WHITEOUT))
		return refuse(writer, err, LS_INVALID,
		              "in a layer a name that begins with \"" LS_WHITEOUT
		              "\" says that something was deleted; rename or remove the file");
	return LS_OK;
}

static int check_path(const struct ls_tar_writer *writer, struct ls_bytes path, struct ls_error *err)
{
	const uint8_t *at = path.bytes, *end = path.bytes + path.length;

	if (!path.length)
		return check_component(writer, NULL, 0, err);
	while (at <= end) {
		const uint8_t *slash = memchr(at, '/', (size_t)(end - at));
		size_t length = (size_t)((slash ? slash : end) - at);
		int status = check_component(writer, at, length, err);

		if (status)
			return status;
		at += length + 1;
	}
	return LS_OK;
}

static int check_link(const struct ls_tar_writer *writer, const struct ls_tar_entry *entry, struct ls_error *err)
{
	int hard = entry->type == LS_TAR_HARDLINK;

	if (!hard && entry->type != LS_TAR_SYMLINK)
		return LS_OK;
	if (!entry->link.length || memchr(entry->link.bytes, 0, entry->link.length))
		return refuse(writer, err, LS_INVALID, "it is a link whose target is empty or has a NUL byte");
	if (entry->link.length > ls_tar_default_limits.path_bytes)
		return refuse(writer, err, LS_LIMIT, "its target has %zu bytes, more than a layer can hold (%zu)",
		              entry->link.length, ls_tar_default_limits.path_bytes);
	return hard ? check_path(writer, entry->link, err) : LS_OK;
}

static int check_numbers(const struct ls_tar_writer *writer, const struct ls_tar_entry *entry, struct ls_error *err)
{
	if (entry->size && entry->type != LS_TAR_REGULAR)
		return refuse(writer, err, LS_INVALID, "only a regular file has content");
	if (entry->size > ls_tar_default_limits.file_bytes)
		return refuse(writer, err, LS_LIMIT,
		              "it has %" PRIu64 " bytes, more than a layer can hold (%" PRIu64 ")", entry->size,
		              ls_tar_default_limits.file_bytes);
	if (entry->device_major >= OCTAL_LIMIT(TAR_ID_BYTES) || entry->device_minor >= OCTAL_LIMIT(TAR_ID_BYTES))
		return refuse(writer, err, LS_LIMIT, "a tar cannot hold its device number %u:%u", entry->device_major,
		              entry->device_minor);
	return LS_OK;
}

/* ---- extended headers ---- */

/* RFC 3629, "Syntax of UTF-8 Byte Sequences". Returns the length of the character, 0 when it is none. */
static size_t utf8_character(const uint8_t *at, size_t left)
{
	static const uint8_t none[4];
	uint8_t bytes[4], lowest = 0x80, highest = 0xbf;
	size_t length;

	memcpy(bytes, none, sizeof(bytes));
	memcpy(bytes, at, left < sizeof(bytes) ? left : sizeof(bytes));
	if (bytes[0] < 0x80)
		return 1;
	if (bytes[0] < 0xc2 || bytes[0] > 0xf4)
		return 0;
	length = bytes[0] < 0xe0 ? 2 : bytes[0] < 0xf0 ? 3 : 4;
	if (bytes[0] == 0xe0)
		lowest = 0xa0; /* shorter forms of smaller numbers */
	else if (bytes[0] == 0xed)
		highest = 0x9f; /* surrogates */
	else if (bytes[0] == 0xf0)
		lowest = 0x90;
	else if (bytes[0] == 0xf4)
		highest = 0x8f; /* over U+10FFFF */
	if (bytes[1] < lowest || bytes[1] > highest)
		return 0;
	for (size_t i = 2; i < length; i++)
		if (bytes[i] < 0x80 || bytes[i] > 0xbf)
			return 0;
	return length;
}

static int is_utf8(struct ls_bytes text)
{
	for (size_t at = 0; at < text.length;) {
		size_t length = utf8_character(text.bytes + at, text.length - at);

		if (!length)
			return 0;
		at += length;
	}
	return 1;
}

static int is_ascii(struct ls_bytes text)
{
	uint8_t any = 0;

	for (size_t i = 0; i < text.length; i++)
		any |= text.bytes[i];
	return any < 0x80;
}

static size_t digits_of(size_t number)
{
	size_t digits = 1;

	while (number /= 10)
		digits++;
	return digits;
}

/* "LENGTH KEY=VALUE\n", LENGTH counting its own digits, too; the key in two parts. */
static int put_record(struct ls_tar_writer *writer, const char *key, struct ls_bytes name, struct ls_bytes value,
                      struct ls_error *err)
{
	size_t rest = strlen(" =\n") + strlen(key) + name.length + value.length;
	size_t length = rest + digits_of(rest);
	char number[NUMBER_CHARS];
	struct ls_buffer *out = &writer->out;
	int status = ls_buffer_reserve(out, rest + NUMBER_CHARS, err);

	length = rest + digits_of(length);
	snprintf(number, sizeof(number), "%zu ", length);
	if (!status)
		status = ls_buffer_append(out, number, strlen(number), err);
	if (!status)
		status = ls_buffer_append(out, key, strlen(key), err);
	if (!status)
		status = ls_buffer_append(out, name.bytes, name.length, err);
	if (!status)
		status = ls_buffer_append(out, "=", 1, err);
	if (!status)
		status = ls_buffer_append(out, value.bytes, value.length, err);
	return status ? status : ls_buffer_append(out, "\n", 1, err);
}

static int put_text(struct ls_tar_writer *writer, const char *key, struct ls_bytes value, struct ls_error *err)
{
	return put_record(writer, key, (struct ls_bytes){0}, value, err);
}

static int put_number(struct ls_tar_writer *writer, const char *key, uint64_t number, struct ls_error *err)
{
	char text[NUMBER_CHARS];

	snprintf(text, sizeof(text), "%" PRIu64, number);
	return put_text(writer, key, text_of(text), err);
}

/* [-]SECONDS[.FRACTION] (POSIX.1-2017, pax, "pax Extended Header File Times"). */
static int put_mtime(struct ls_tar_writer *writer, const struct ls_tar_entry *entry, struct ls_error *err)
{
	uint64_t seconds = (uint64_t)entry->mtime_seconds;
	uint32_t nanoseconds = entry->mtime_nanoseconds;
	int negative = entry->mtime_seconds < 0;
	char text[2 * NUMBER_CHARS];
	int length;

	if (negative) {
		seconds = -seconds - (nanoseconds != 0);
		nanoseconds = nanoseconds ? 1000000000 - nanoseconds : 0;
	}
	length = snprintf(text, sizeof(text), "%s%" PRIu64, negative ? "-" : "", seconds);
	if (nanoseconds) {
		length += snprintf(text + length, sizeof(text) - (size_t)length, ".%09" PRIu32, nanoseconds);
		while (text[length - 1] == '0')
			length--;
	}
	return put_text(writer, "mtime", (struct ls_bytes){(const uint8_t *)text, (size_t)length}, err);
}

static int put_xattr(struct ls_tar_writer *writer, const struct ls_xattr *xattr, struct ls_error *err)
{
	if (!xattr->name.length || memchr(xattr->name.bytes, 0, xattr->name.length) ||
	    memchr(xattr->name.bytes, '=', xattr->name.length))
		return refuse(writer, err, LS_INVALID,
		              "it has the extended attribute \"%s\", and a tar cannot hold a name that is empty or has "
		              "a '=' or a NUL byte; remove the attribute",
		              LS_SHOWN(xattr->name.bytes, xattr->name.length));
	return put_record(writer, TAR_XATTR_PREFIX, xattr->name, xattr->value, err);
}

static int has_plain_mtime(const struct ls_tar_entry *entry)
{
	return !entry->mtime_nanoseconds && entry->mtime_seconds >= 0 &&
	       (uint64_t)entry->mtime_seconds < OCTAL_LIMIT(TAR_NUMBER_BYTES);
}

static int put_xattrs(struct ls_tar_writer *writer, const struct ls_tar_entry *entry, struct ls_error *err)
{
	int status = LS_OK;

	for (size_t i = 0; i < entry->xattr_count && !status; i++)
		status = put_xattr(writer, &entry->xattrs[i], err);
	return status;
}

/* Where a path that is longer than the name's field can be cut at a '/', so that both parts fit; 0 when nowhere. */
static size_t find_cut(struct ls_bytes path)
{
	for (size_t at = TAR_PREFIX_BYTES; at; at--)
		if (at + 1 < path.length && path.bytes[at] == '/')
			return path.length - at - 1 <= TAR_NAME_BYTES ? at : 0;
	return 0;
}

static int fits_name(struct ls_bytes path)
{
	return is_ascii(path) && (path.length <= TAR_NAME_BYTES || find_cut(path));
}

static int fits_link(struct ls_bytes link)
{
	return is_ascii(link) && link.length <= TAR_NAME_BYTES;
}

static int put_names(struct ls_tar_writer *writer, struct ls_bytes path, struct ls_bytes link, struct ls_error *err)
{
	int has_path = !fits_name(path), has_link = !fits_link(link), status = LS_OK;

	if ((has_path && !is_utf8(path)) || (has_link && !is_utf8(link)))
		status = put_text(writer, "hdrcharset", text_of("BINARY"), err);
	if (!status && has_path)
		status = put_text(writer, "path", path, err);
	if (!status && has_link)
		status = put_text(writer, "linkpath", link, err);
	return status;
}

/* What the header has no room for. */
static int put_records(struct ls_tar_writer *writer, struct ls_bytes path, const struct ls_tar_entry *entry,
                       struct ls_error *err)
{
	int status = put_names(writer, path, entry->link, err);

	if (!status && entry->size >= OCTAL_LIMIT(TAR_NUMBER_BYTES))
		status = put_number(writer, "size", entry->size, err);
	if (!status && entry->uid >= OCTAL_LIMIT(TAR_ID_BYTES))
		status = put_number(writer, "uid", entry->uid, err);
	if (!status && entry->gid >= OCTAL_LIMIT(TAR_ID_BYTES))
		status = put_number(writer, "gid", entry->gid, err);
	if (!status && !has_plain_mtime(entry))
		status = put_mtime(writer, entry, err);
	return status ? status : put_xattrs(writer, entry, err);
}

/* ---- headers ---- */

/* `width` - 1 octal digits and the NUL that is there. */
static void put_octal(uint8_t *field, size_t width, uint64_t value)
{
	for (size_t i = width - 1; i-- > 0; value >>= 3)
		field[i] = (uint8_t)('0' + (value & 7));
}

/* 0 where an extended header has the number. */
static void put_octal_or_0(uint8_t *field, size_t width, uint64_t value)
{
	put_octal(field, width, value < OCTAL_LIMIT(width) ? value : 0);
}

static void put_cut(uint8_t *field, size_t width, struct ls_bytes text)
{
	if (text.length)
		memcpy(field, text.bytes, text.length < width ? text.length : width);
}

static void put_name(uint8_t *block, struct ls_bytes path)
{
	size_t cut = path.length > TAR_NAME_BYTES ? find_cut(path) : 0;

	if (cut) {
		memcpy(block + TAR_AT_PREFIX, path.bytes, cut);
		path = (struct ls_bytes){path.bytes + cut + 1, path.length - cut - 1};
	}
	put_cut(block + TAR_AT_NAME, TAR_NAME_BYTES, path);
}

/* The sum of all bytes, the checksum's own counted as spaces. */
static void put_checksum(uint8_t *block)
{
	uint32_t sum = 0;

	memset(block + TAR_AT_CHECKSUM, ' ', TAR_ID_BYTES);
	for (size_t i = 0; i < TAR_BLOCK; i++)
		sum += block[i];
	put_octal(block + TAR_AT_CHECKSUM, TAR_ID_BYTES - 1, sum);
	block[TAR_AT_CHECKSUM + TAR_ID_BYTES - 2] = 0;
}

/* `block` is all zeros. */
static void put_header(uint8_t *block, struct ls_bytes path, char type, const struct ls_tar_entry *entry)
{
	static const char magic[8] = {'u', 's', 't', 'a', 'r', '\0', '0', '0'};
	int is_device = entry->type == LS_TAR_CHAR || entry->type == LS_TAR_BLOCK;
	uint64_t seconds = entry->mtime_seconds < 0 ? 0 : (uint64_t)entry->mtime_seconds;

	put_name(block, path);
	put_octal(block + TAR_AT_MODE, TAR_ID_BYTES, entry->mode & 07777);
	put_octal_or_0(block + TAR_AT_UID, TAR_ID_BYTES, entry->uid);
	put_octal_or_0(block + TAR_AT_GID, TAR_ID_BYTES, entry->gid);
	put_octal_or_0(block + TAR_AT_SIZE, TAR_NUMBER_BYTES, entry->size);
	put_octal_or_0(block + TAR_AT_MTIME, TAR_NUMBER_BYTES, seconds);
	block[TAR_AT_TYPE] = (uint8_t)type;
	put_cut(block + TAR_AT_LINK, TAR_NAME_BYTES, entry->link);
	memcpy(block + TAR_AT_MAGIC, magic, sizeof(magic));
	put_octal(block + TAR_AT_MAJOR, TAR_ID_BYTES, is_device ? entry->device_major : 0);
	put_octal(block + TAR_AT_MINOR, TAR_ID_BYTES, is_device ? entry->device_minor : 0);
	put_checksum(block);
}

static int pad(struct ls_tar_writer *writer, uint64_t length, struct ls_error *err)
{
	return ls_buffer_append(&writer->out, NULL, -length & (TAR_BLOCK - 1), err);
}

/* The extended header, its records written behind the place of its header block; nothing when there are none. */
static int write_extended(struct ls_tar_writer *writer, struct ls_bytes path, const struct ls_tar_entry *entry,
                          struct ls_error *err)
{
	struct ls_tar_entry extended = {.mode = 0644};
	size_t at = writer->out.length;
	int status = ls_buffer_append(&writer->out, NULL, TAR_BLOCK, err);

	if (!status)
		status = put_records(writer, path, entry, err);
	if (status)
		return status;
	extended.size = writer->out.length - at - TAR_BLOCK;
	if (!extended.size) {
		writer->out.length = at;
		return LS_OK;
	}
	if (extended.size > ls_tar_default_limits.extended_bytes)
		return refuse(writer, err, LS_LIMIT,
		              "its names and extended attributes take %" PRIu64
		              " bytes, more than a layer can hold (%zu)",
		              extended.size, ls_tar_default_limits.extended_bytes);
	put_header(writer->out.bytes + at, text_of("././@PaxHeader"), 'x', &extended);
	return pad(writer, extended.size, err);
}

static int write_headers(struct ls_tar_writer *writer, struct ls_bytes path, const struct ls_tar_entry *entry,
                         struct ls_error *err)
{
	static const char types[] = {
	    [LS_TAR_REGULAR] = '0', [LS_TAR_HARDLINK] = '1',  [LS_TAR_SYMLINK] = '2', [LS_TAR_CHAR] = '3',
	    [LS_TAR_BLOCK] = '4',   [LS_TAR_DIRECTORY] = '5', [LS_TAR_FIFO] = '6',
	};
	int status = check_length(writer, path.length, err);

	if (!status)
		status = write_extended(writer, path, entry, err);
	if (!status)
		status = ls_buffer_append(&writer->out, NULL, TAR_BLOCK, err);
	if (status)
		return status;
	put_header(writer->out.bytes + writer->out.length - TAR_BLOCK, path, types[entry->type], entry);
	writer->content_left = entry->size;
	writer->padding = (uint32_t)(-entry->size & (TAR_BLOCK - 1));
	return LS_OK;
}

/* ---- entries ---- */

/* "DIRECTORY/NAME", or either alone where the other is empty. */
static struct ls_bytes join(char *spelled, struct ls_bytes directory, const char *prefix, struct ls_bytes name)
{
	size_t length = directory.length;

	if (length) {
		memcpy(spelled, directory.bytes, length);
		spelled[length++] = '/';
	}
	memcpy(spelled + length, prefix, strlen(prefix));
	length += strlen(prefix);
	if (name.length)
		memcpy(spelled + length, name.bytes, name.length);
	return (struct ls_bytes){(const uint8_t *)spelled, length + name.length};
}

int ls_tar_write_entry(struct ls_tar_writer *writer, const struct ls_tar_entry *entry, struct ls_error *err)
{
	struct ls_bytes path = entry->path;
	char spelled[SPELLED_BYTES];
	int status = remember(writer, path, err);

	if (!status && !path.length && entry->type != LS_TAR_DIRECTORY)
		return refuse(writer, err, LS_INVALID, "the root is a directory");
	if (!status && path.length)
		status = check_path(writer, path, err);
	if (!status)
		status = check_link(writer, entry, err);
	if (!status)
		status = check_numbers(writer, entry, err);
	if (status)
		return status;
	if (!path.length)
		path = text_of("./");
	else if (entry->type == LS_TAR_DIRECTORY)
		path = join(spelled, path, "", (struct ls_bytes){0});
	return write_headers(writer, path, entry, err);
}

static int write_marker(struct ls_tar_writer *writer, struct ls_bytes path, struct ls_error *err)
{
	struct ls_tar_entry marker = {.type = LS_TAR_REGULAR};

	return write_headers(writer, path, &marker, err);
}

int ls_tar_write_opaque(struct ls_tar_writer *writer, struct ls_bytes directory, struct ls_error *err)
{
	char spelled[SPELLED_BYTES];
	int status = remember(writer, directory, err);

	if (!status && directory.length)
		status = check_path(writer, directory, err);
	if (status)
		return status;
	return write_marker(writer, join(spelled, directory, LS_WHITEOUT_OPAQUE, (struct ls_bytes){0}), err);
}

int ls_tar_write_whiteout(struct ls_tar_writer *writer, struct ls_bytes path, struct ls_error *err)
{
	struct ls_bytes directory = path, name = path;
	char spelled[SPELLED_BYTES];
	int status = remember(writer, path, err);

	if (!status)
		status = check_path(writer, path, err);
	if (status)
		return status;
	while (directory.length && path.bytes[directory.length - 1] != '/')
		directory.length--;
	name.bytes += directory.length;
	name.length -= directory.length;
	directory.length -= directory.length != 0;
	return write_marker(writer, join(spelled, directory, LS_WHITEOUT, name), err);
}

/* ---- content and the end ---- */

int ls_tar_write_data(struct ls_tar_writer *writer, const void *bytes, size_t length, struct ls_error *err)
{
	if (length > writer->content_left)
		return refuse(writer, err, LS_CORRUPT,
		              "its content goes on behind the size that was told, of which %" PRIu64
		              " bytes were to come, by %" PRIu64 " bytes",
		              writer->content_left, length - writer->content_left);
	writer->content_left -= length;
	return length ? ls_buffer_append(&writer->out, bytes, length, err) : LS_OK;
}

int ls_tar_write_data_end(struct ls_tar_writer *writer, struct ls_error *err)
{
	uint32_t padding = writer->padding;

	if (writer->content_left)
		return refuse(writer, err, LS_CORRUPT,
		              "its content ends %" PRIu64 " bytes before the size that was told", writer->content_left);
	writer->padding = 0;
	return ls_buffer_append(&writer->out, NULL, padding, err);
}

int ls_tar_write_end(struct ls_tar_writer *writer, struct ls_error *err)
{
	if (writer->content_left || writer->padding)
		return refuse(writer, err, LS_INVALID, "the archive ends before the end of its content");
	return ls_buffer_append(&writer->out, NULL, (size_t)2 * TAR_BLOCK, err);
}
