#include "log.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "extents.h"
#include "hash/xxhash32.h"

/* Header */

static uint32_t header_checksum(const struct ls_log_header *header)
{
	return ls_xxhash32(header, offsetof(struct ls_log_header, checksum), 0);
}

void ls_log_seal_header(struct ls_log_header *header)
{
	header->checksum = header_checksum(header);
}

int ls_log_read_header(const uint8_t *log, size_t length, struct ls_log_header *header, struct ls_error *err)
{
	if (length < sizeof(*header))
		return ls_fail(err, LS_CORRUPT, "a log of %zu bytes is shorter than its header", length);
	memcpy(header, log, sizeof(*header));
	if (memcmp(header->magic, LS_LOG_MAGIC, sizeof(header->magic)) != 0)
		return ls_fail(err, LS_CORRUPT, "this is not a log of a writable layer");
	if (header->checksum != header_checksum(header))
		return ls_fail(err, LS_CORRUPT, "the header of a log is damaged");
	if (header->version != LS_LOG_VERSION)
		return ls_fail(err, LS_UNSUPPORTED, "a log has version %u; this layerstore reads version %u",
		               header->version, LS_LOG_VERSION);
	if (header->reserved || !ls_is_zero(header->more_reserved, sizeof(header->more_reserved)))
		return ls_fail(err, LS_CORRUPT, "a log has something in the reserved part of its header");
	if (ls_is_zero(header->id, sizeof(header->id)) ||
	    ls_is_zero(header->base_id, sizeof(header->base_id)) != !header->base_length)
		return ls_fail(err, LS_CORRUPT, "a log names no id, or half a base");
	return LS_OK;
}

/* What a record may hold */

enum field {
	OFFSET = 1,
	VALUE = 2,
	MTIME = 4,
	MODE = 8,
	OWNER = 16,
	NAME = 32,
	PAYLOAD = 64,
	INODE = 128,
};

static const struct {
	const char *name;
	uint8_t fields;
} types[] = {
    [LS_LOG_WRITE] = {"write", INODE | OFFSET | MTIME | PAYLOAD},
    [LS_LOG_PUNCH] = {"punch", INODE | OFFSET | VALUE | MTIME},
    [LS_LOG_TRUNCATE] = {"truncate", INODE | VALUE | MTIME},
    [LS_LOG_CREATE] = {"create", INODE | VALUE | MTIME | MODE | OWNER | PAYLOAD},
    [LS_LOG_ATTRIBUTES] = {"attributes", INODE | VALUE | MTIME | MODE | OWNER},
    [LS_LOG_ENTRY] = {"entry", INODE | VALUE | MTIME | PAYLOAD},
    [LS_LOG_REMOVE] = {"remove", INODE | MTIME | PAYLOAD},
    [LS_LOG_XATTR] = {"xattr", INODE | NAME | PAYLOAD},
    [LS_LOG_XATTR_REMOVE] = {"xattr remove", INODE | NAME | PAYLOAD},
    [LS_LOG_SOURCE_LOG] = {"source log", VALUE | PAYLOAD},
    [LS_LOG_EXTENTS] = {"extents", INODE | PAYLOAD},
};

static uint8_t fields_of(const struct ls_log_record *record)
{
	return (record->inode ? INODE : 0) | (record->offset ? OFFSET : 0) | (record->value ? VALUE : 0) |
	       (record->mtime_seconds || record->mtime_nanoseconds ? MTIME : 0) | (record->mode ? MODE : 0) |
	       (record->uid || record->gid ? OWNER : 0) | (record->name_length ? NAME : 0) |
	       (record->payload_length ? PAYLOAD : 0);
}

static int check_range(uint64_t offset, uint64_t length)
{
	return length && offset <= LS_EXTENT_MAX_SIZE && length <= LS_EXTENT_MAX_SIZE - offset;
}

static int check_file_type(const struct ls_log_record *record, const uint8_t *payload)
{
	size_t length = record->payload_length;

	switch (record->mode & S_IFMT) {
	case S_IFLNK:
		return !record->value && length && length <= LS_LOG_MAX_TARGET && !memchr(payload, 0, length);
	case S_IFCHR:
	case S_IFBLK:
		return !length;
	case S_IFREG:
	case S_IFDIR:
	case S_IFIFO:
	case S_IFSOCK:
		return !length && !record->value;
	default:
		return 0;
	}
}

static int check_create(const struct ls_log_record *record, const uint8_t *payload)
{
	return record->inode >= LS_LOG_FIRST_NEW_INODE && !(record->mode & ~(uint32_t)(S_IFMT | 07777)) &&
	       check_file_type(record, payload);
}

static int check_attributes(const struct ls_log_record *record)
{
	uint64_t set = record->value;

	return set && set <= (LS_LOG_SET_MODE | LS_LOG_SET_UID | LS_LOG_SET_GID | LS_LOG_SET_MTIME) &&
	       record->mode <= 07777;
}

static int check_name(const uint8_t *name, size_t length)
{
	return length <= LS_LOG_MAX_NAME && ls_is_name(name, length);
}

static int check_xattr(const struct ls_log_record *record, const uint8_t *payload)
{
	size_t name = record->name_length, length = record->payload_length;

	return name && name <= LS_LOG_MAX_NAME && name <= length && !memchr(payload, 0, name) &&
	       length - name <= (record->type == LS_LOG_XATTR ? LS_LOG_MAX_XATTR : 0);
}

static int check_extents(const struct ls_log_record *record, const uint8_t *payload)
{
	struct ls_piece piece;

	for (size_t at = 0; at < record->payload_length; at += sizeof(piece)) {
		if (record->payload_length - at < sizeof(piece))
			return 0;
		memcpy(&piece, payload + at, sizeof(piece));
		if (!piece.length || ls_piece_check(&piece, NULL))
			return 0;
	}
	return record->payload_length > 0;
}

static int check_type(const struct ls_log_record *record, const uint8_t *payload)
{
	switch (record->type) {
	case LS_LOG_WRITE:
		return check_range(record->offset, record->payload_length);
	case LS_LOG_PUNCH:
		return check_range(record->offset, record->value);
	case LS_LOG_TRUNCATE:
		return record->value <= LS_EXTENT_MAX_SIZE;
	case LS_LOG_CREATE:
		return check_create(record, payload);
	case LS_LOG_ATTRIBUTES:
		return check_attributes(record);
	case LS_LOG_ENTRY:
	case LS_LOG_REMOVE:
		return check_name(payload, record->payload_length);
	case LS_LOG_XATTR:
	case LS_LOG_XATTR_REMOVE:
		return check_xattr(record, payload);
	case LS_LOG_SOURCE_LOG:
		return record->value && record->value < LS_EXTENT_MAX_LOGS && record->payload_length == LS_LOG_ID_BYTES;
	default:
		return check_extents(record, payload);
	}
}

int ls_log_check(const struct ls_log_record *record, const uint8_t *payload, struct ls_error *err)
{
	if (record->type < LS_LOG_WRITE || record->type > LS_LOG_EXTENTS)
		return ls_fail(err, LS_INVALID, "%u is no type of a record", record->type);
	if (record->payload_length > LS_LOG_MAX_PAYLOAD)
		return ls_fail(err, LS_INVALID, "a record's payload of %u bytes passes the limit, %u bytes",
		               record->payload_length, LS_LOG_MAX_PAYLOAD);
	if (record->flags & ~(LS_LOG_MORE | LS_LOG_SYNCED) || record->mtime_nanoseconds >= 1000000000 ||
	    fields_of(record) & ~types[record->type].fields)
		return ls_fail(err, LS_INVALID, "a record (%s) has a field that its type does not have",
		               types[record->type].name);
	if (!check_type(record, payload))
		return ls_fail(
		    err, LS_INVALID,
		    "a record (%s, inode %llu, offset %llu, value %llu, mode %#o, payload of %u bytes) makes "
		    "no sense",
		    types[record->type].name, (unsigned long long)record->inode, (unsigned long long)record->offset,
		    (unsigned long long)record->value, record->mode, record->payload_length);
	return LS_OK;
}

/* Checksums */

static uint32_t seed_of(const uint8_t *id, uint64_t position)
{
	return (id[0] | (uint32_t)id[1] << 8 | (uint32_t)id[2] << 16 | (uint32_t)id[3] << 24) +
	       (uint32_t)(position / LS_LOG_ALIGN);
}

static uint32_t record_checksum(const struct ls_log_record *record, uint32_t seed)
{
	size_t from = offsetof(struct ls_log_record, payload_checksum);

	return ls_xxhash32((const uint8_t *)record + from, sizeof(*record) - from, seed);
}

void ls_log_seal(struct ls_log_record *record, const uint8_t *payload, const uint8_t id[LS_LOG_ID_BYTES],
                 uint64_t position)
{
	uint32_t seed = seed_of(id, position);

	record->payload_checksum = ls_xxhash32(payload, record->payload_length, seed);
	record->header_checksum = record_checksum(record, seed);
}

/* Reading */

/* A log, or what of it is read. */
struct span {
	const uint8_t *bytes;
	size_t length;
	uint64_t checked;
	const uint8_t *id;
};

/* What is wrong with the record at `position` in a way that a crash explains, NULL for nothing. Nothing of `record` is to be
 * believed then. */
static const char *read_record(const struct span *log, size_t position, struct ls_log_record *record)
{
	uint32_t seed = seed_of(log->id, position);
	size_t left = log->length - position;

	if (left < sizeof(*record))
		return "the log ends in the header of a record";
	memcpy(record, log->bytes + position, sizeof(*record));
	if (record->header_checksum != record_checksum(record, seed))
		return "the header of a record is damaged";
	if (record->payload_length > LS_LOG_MAX_PAYLOAD)
		return NULL;
	if (left < ls_log_record_bytes(record->payload_length))
		return "the log ends in the payload of a record";
	if (record->type == LS_LOG_WRITE && position + ls_log_record_bytes(record->payload_length) <= log->checked)
		return NULL;
	if (record->payload_checksum !=
	    ls_xxhash32(log->bytes + position + sizeof(*record), record->payload_length, seed))
		return "the payload of a record is damaged";
	return NULL;
}

/* Whether a whole record that makes sense is at `position`; such bytes that are none are not worth a checksum. */
static int is_record(const struct span *log, size_t position, struct ls_log_record *record)
{
	const uint8_t *at = log->bytes + position;

	return at[offsetof(struct ls_log_record, type)] - 1u < LS_LOG_EXTENTS &&
	       at[offsetof(struct ls_log_record, flags)] <= (LS_LOG_MORE | LS_LOG_SYNCED) &&
	       !read_record(log, position, record) && !ls_log_check(record, at + sizeof(*record), NULL);
}

/* Look for whole records behind the one that is damaged, at `position`: whether one says that this was on the disk. */
static int was_synced(const struct span *log, size_t position, uint64_t *later)
{
	struct ls_log_record record;

	for (position += LS_LOG_ALIGN; position + sizeof(record) <= log->length;) {
		if (!is_record(log, position, &record)) {
			position += LS_LOG_ALIGN;
			continue;
		}
		if (!*later)
			*later = position;
		if (record.flags & LS_LOG_SYNCED)
			return 1;
		position += ls_log_record_bytes(record.payload_length);
	}
	return 0;
}

int ls_log_find_end(const uint8_t *log, size_t length, uint64_t checked, struct ls_log_scan *scan, struct ls_error *err)
{
	struct ls_log_header header;
	struct span span = {log, length, checked, header.id};
	size_t position = sizeof(header);
	int status = ls_log_read_header(log, length, &header, err);

	*scan = (struct ls_log_scan){.end = position};
	while (!status && position < length) {
		struct ls_log_record record;
		struct ls_error cause;
		const char *damage = read_record(&span, position, &record);

		if (damage) {
			snprintf(scan->reason, sizeof(scan->reason), "%s at byte %zu", damage, position);
			if (!was_synced(&span, position, &scan->later))
				return LS_OK;
			return ls_fail(
			    err, LS_CORRUPT,
			    "a log is damaged, after it was whole on the disk: %s; restore it from a copy, or "
			    "roll back to a snapshot that was made before",
			    scan->reason);
		}
		if (ls_log_check(&record, log + position + sizeof(record), &cause))
			return ls_fail(err, LS_CORRUPT, "a log is damaged at byte %zu: %.900s", position,
			               cause.message);
		position += ls_log_record_bytes(record.payload_length);
		if (!(record.flags & LS_LOG_MORE))
			scan->end = position;
	}
	if (!status && scan->end < length)
		snprintf(scan->reason, sizeof(scan->reason), "the log ends in an operation that begins at byte %llu",
		         (unsigned long long)scan->end);
	return status;
}

int ls_log_next(const uint8_t *log, uint64_t end, uint64_t *position, struct ls_log_record *record,
                struct ls_error *err)
{
	uint64_t at = *position;
	struct ls_error cause;

	if (at > end || end - at < sizeof(*record))
		return ls_fail(err, LS_CORRUPT, "a log has no record at byte %llu", (unsigned long long)at);
	memcpy(record, log + at, sizeof(*record));
	if (record->payload_length > LS_LOG_MAX_PAYLOAD || end - at < ls_log_record_bytes(record->payload_length))
		return ls_fail(err, LS_CORRUPT, "a record changed at byte %llu of a log while it was read",
		               (unsigned long long)at);
	if (ls_log_check(record, log + at + sizeof(*record), &cause))
		return ls_fail(err, LS_CORRUPT, "a log is damaged at byte %llu: %.900s", (unsigned long long)at,
		               cause.message);
	*position = at + ls_log_record_bytes(record->payload_length);
	return LS_OK;
}
