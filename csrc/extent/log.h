/* The log of a writable layer (docs/format/log.md): a header, then records, each a record header and a payload. Everything is
 * little-endian and begins at a multiple of LS_LOG_ALIGN. Nothing in a log is ever overwritten, so (id, length) names a state.
 *
 * The log comes from disk: a record that a crash left incomplete ends it, and one that was written whole but makes no sense is
 * LS_CORRUPT. No state: safe for many threads. */
#ifndef LS_LOG_H
#define LS_LOG_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define LS_LOG_MAGIC "LSLOG\n\0"
#define LS_LOG_VERSION 1u
#define LS_LOG_ALIGN 8
#define LS_LOG_ID_BYTES 16
#define LS_LOG_MAX_PAYLOAD (UINT32_C(1) << 26)
#define LS_LOG_MAX_NAME 255
#define LS_LOG_MAX_TARGET 4095
#define LS_LOG_MAX_XATTR 65536
#define LS_LOG_FIRST_NEW_INODE (UINT64_C(1) << 32)

struct ls_log_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t reserved;
	uint8_t id[LS_LOG_ID_BYTES];
	uint8_t base_id[LS_LOG_ID_BYTES]; /* zeros: none */
	uint64_t base_length;             /* bytes of the base that count; 0 for none */
	uint8_t chain_id[32];             /* the image that inode numbers below LS_LOG_FIRST_NEW_INODE are of */
	uint8_t more_reserved[36];
	uint32_t checksum; /* XXH32 of the bytes before it, seed 0 */
};
_Static_assert(sizeof(struct ls_log_header) == 128, "format");

enum ls_log_type {
	LS_LOG_WRITE = 1,
	LS_LOG_PUNCH,
	LS_LOG_TRUNCATE,
	LS_LOG_CREATE,
	LS_LOG_ATTRIBUTES,
	LS_LOG_ENTRY,
	LS_LOG_REMOVE,
	LS_LOG_XATTR,
	LS_LOG_XATTR_REMOVE,
	LS_LOG_SOURCE_LOG,
	LS_LOG_EXTENTS,
};

enum ls_log_attribute {
	LS_LOG_SET_MODE = 1,
	LS_LOG_SET_UID = 2,
	LS_LOG_SET_GID = 4,
	LS_LOG_SET_MTIME = 8,
};

/* In `flags`: the next record belongs to the same operation. */
#define LS_LOG_MORE 1
/* In `flags`: all that is before the record was on the disk when this was written. */
#define LS_LOG_SYNCED 2

struct ls_log_record {
	uint32_t header_checksum; /* XXH32 of the rest of the header */
	uint32_t payload_checksum;
	uint32_t payload_length;
	uint8_t type;
	uint8_t flags;
	uint16_t name_length; /* bytes of an xattr's name, which begins the payload */
	uint64_t inode;
	uint64_t offset;
	uint64_t value;
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t mode;
	uint32_t uid;
	uint32_t gid;
};
_Static_assert(sizeof(struct ls_log_record) == 64, "format");

/* Zeros that follow a payload. */
static inline size_t ls_log_padding(size_t payload_length)
{
	return -payload_length % LS_LOG_ALIGN;
}

/* Bytes of a whole record. */
static inline size_t ls_log_record_bytes(size_t payload_length)
{
	return sizeof(struct ls_log_record) + payload_length + ls_log_padding(payload_length);
}

/* Set the checksum of a header that is filled in. */
void ls_log_seal_header(struct ls_log_header *header);

/* Copy the header of a log out and check it: LS_CORRUPT, LS_UNSUPPORTED for a newer version. */
int ls_log_read_header(const uint8_t *log, size_t length, struct ls_log_header *header, struct ls_error *err);

/* LS_INVALID, and what is wrong, where a record makes no sense or has a field that its type does not have; `payload` are its
 * payload_length bytes, which are not looked at for LS_LOG_WRITE. */
int ls_log_check(const struct ls_log_record *record, const uint8_t *payload, struct ls_error *err);

/* Set the checksums of a record that is filled in and will stand at byte `position` of the log of that id. They depend on both,
 * so that blocks of another file or of an earlier end of this one do not pass for records. */
void ls_log_seal(struct ls_log_record *record, const uint8_t *payload, const uint8_t id[LS_LOG_ID_BYTES],
                 uint64_t position);

struct ls_log_scan {
	uint64_t end;     /* where the last whole operation ends */
	uint64_t later;   /* where, behind that, the next whole record is, if what is between is not one; else 0 */
	char reason[128]; /* why it ends there; empty where the log does */
};

/* Find where the valid part of a log ends. Data (LS_LOG_WRITE) that ends at byte `checked` or before is not compared with its
 * checksum. LS_CORRUPT for a record that is whole and makes no sense, and where the log ends before a record that says that all
 * before it was on the disk: no crash does either; as ls_log_read_header. */
int ls_log_find_end(const uint8_t *log, size_t length, uint64_t checked, struct ls_log_scan *scan,
                    struct ls_error *err);

/* Copy the record out that begins at byte *position and move *position to the next one; its payload is at
 * log + *position + sizeof(*record) as it was before. `end` is what ls_log_find_end found. Checksums are not compared again, but nothing
 * outside of [0, end) is looked at whatever is there now: LS_CORRUPT. */
int ls_log_next(const uint8_t *log, uint64_t end, uint64_t *position, struct ls_log_record *record,
                struct ls_error *err);

#endif
