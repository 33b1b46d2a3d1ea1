/* A bounded walk over the bytes of a tar archive that arrive in spans of any size.
 *
 * Formats: POSIX ustar and pax (IEEE 1003.1-2017, pax "Extended Description"; global headers
 * included), GNU (long names 'L', long links 'K', base-256 numbers, old sparse 'S') and GNU sparse
 * in its pax forms 0.0, 0.1 and 1.0 (GNU tar manual, "Sparse Formats"), and v7. Names are bytes.
 * pax records used: path, linkpath, size, uid, gid, mtime (to the nanosecond, the rest cut off),
 * SCHILY.xattr.*, GNU.sparse.* (these two not in a global header: LS_INVALID); others are passed over.
 * Where archives contradict themselves or the standards, the walk reads them as Go's archive/tar does, and
 * so docker and containerd: a GNU long name wins over pax, of two pax headers before one entry the later one replaces
 * the former (GNU tar and bsdtar agree), and types other than regular files have no content whatever their size says.
 * A global header between a pax header and its entry takes nothing from it (GNU tar); records of several global headers
 * add up (POSIX). Volume labels ('V') are passed over; other types are refused
 * (LS_INVALID). Nothing in an archive is trusted: arithmetic is checked, every limit has a name, header
 * checksums are verified.
 *
 * The walk copies headers only. Content is handed on as pointers into the caller's span.
 *
 *     struct ls_tar *tar; struct ls_tar_event event;
 *     ls_tar_new(&tar, &limits, &err);
 *     for each span:  ls_tar_feed(tar, bytes, length);
 *                     while ((status = ls_tar_next(tar, &event, &err)) == LS_OK && event.kind != LS_TAR_NEED_MORE) ...
 *     ls_tar_finish(tar, &err);
 *     ls_tar_free(tar);
 *
 * Every byte fed belongs to exactly one RAW or DATA event, in order, so that the archive can be
 * written again from them. Not safe for use by two threads at once. After an error only ls_tar_free
 * is allowed. */
#ifndef LS_TAR_H
#define LS_TAR_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

struct ls_tar_limits {
	size_t path_bytes;     /* a path or link target: 4,096 */
	size_t name_bytes;     /* one component of a path, a whiteout's ".wh." not counted: 255 */
	size_t extended_bytes; /* pax and GNU long-name data before one entry; all global headers: 1 MiB each */
	size_t sparse_extents; /* extents of one sparse file, empty ones counted: 65,536 */
	uint64_t file_bytes;   /* logical size of one file: 1 TiB */
	uint64_t entries;      /* entries of one archive: 16 Mi */
	int nameless;          /* an entry of no name is handed out, with an empty path: 0, it is LS_INVALID */
};

/* The values above. */
extern const struct ls_tar_limits ls_tar_default_limits;

enum ls_tar_type {
	LS_TAR_REGULAR,
	LS_TAR_HARDLINK,
	LS_TAR_SYMLINK,
	LS_TAR_CHAR,
	LS_TAR_BLOCK,
	LS_TAR_DIRECTORY,
	LS_TAR_FIFO,
};

struct ls_tar_extent {
	uint64_t offset; /* in the logical file */
	uint64_t length;
};

/* Pointers stay valid until the next call of ls_tar_next. The path is as the archive has it: neither
 * cleaned nor checked for "..", but without NUL, not empty (see nameless), and within path_bytes and name_bytes. */
struct ls_tar_entry {
	enum ls_tar_type type;
	uint32_t mode; /* permission bits, setuid, setgid, sticky: 07777 */
	uint32_t uid, gid;
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t device_major, device_minor;
	uint64_t size;        /* regular: logical bytes, else 0 */
	uint64_t stored_size; /* bytes of DATA that follow: equal to size unless sparse */
	struct ls_bytes path;
	struct ls_bytes link;          /* target of a symlink or hard link */
	const struct ls_xattr *xattrs; /* sorted by name, the last of equal names kept */
	size_t xattr_count;
	const struct ls_tar_extent *extents; /* sparse only: ascending, apart, within size, summing to stored_size */
	size_t extent_count;
	int is_sparse;     /* a sparse file may have no extents at all */
	uint64_t position; /* of the entry's first header in the archive, bytes */
};

enum ls_tar_event_kind {
	LS_TAR_NEED_MORE, /* the span is used up: feed another, or finish */
	LS_TAR_RAW,       /* `bytes`: the next bytes of the archive that are not content (headers, padding, end) */
	LS_TAR_ENTRY,     /* `entry`: all of an entry but its content; its RAW bytes came before */
	LS_TAR_DATA,      /* `bytes`: the next stored bytes of the last entry's content (never empty) */
};

struct ls_tar_event {
	enum ls_tar_event_kind kind;
	struct ls_bytes bytes;
	const struct ls_tar_entry *entry;
};

struct ls_tar;

int ls_tar_new(struct ls_tar **tar, const struct ls_tar_limits *limits, struct ls_error *err);
void ls_tar_free(struct ls_tar *tar);

/* Hand over the next span; it must stay valid and unchanged until NEED_MORE. */
void ls_tar_feed(struct ls_tar *tar, const void *bytes, size_t length);
int ls_tar_next(struct ls_tar *tar, struct ls_tar_event *event, struct ls_error *err);

/* Say that no span will follow; call it after NEED_MORE. LS_CORRUPT when the archive stops inside a header
 * or content, or between an extended header and its entry. An archive without its two zero blocks is
 * accepted when it stops between entries (or in the padding of the last), and an empty one too. The first
 * zero block is the end marker; what is after it is RAW, zeros or not (tar implementations pass over it). */
int ls_tar_finish(struct ls_tar *tar, struct ls_error *err);

#endif
