/* Status codes and the error record of the C core.
 *
 * Every function that can fail returns an `enum ls_status` as int (LS_OK is 0) and fills the
 * caller's `struct ls_error` when it fails. The record is plain memory of the caller: nothing
 * to free, nothing global. The message is one sentence without a final full stop that names
 * what was being done and to what; `layerstore/_core/status.pyx` translates it, in one place,
 * to a Python exception. */
#ifndef LS_STATUS_H
#define LS_STATUS_H

#include <stddef.h>

enum ls_status {
	LS_OK = 0,
	LS_SYSTEM,      /* a system call failed: sys_errno says how            -> OSError */
	LS_NO_MEMORY,   /* an allocation failed                                -> MemoryError */
	LS_CORRUPT,     /* stored or received bytes are not what they must be  -> CorruptError */
	LS_INVALID,     /* input that is well-formed but not acceptable        -> InvalidInput */
	LS_LIMIT,       /* a named limit was exceeded                          -> LimitExceeded */
	LS_NOT_FOUND,   /* what was asked for is not there                     -> NotFound */
	LS_UNSUPPORTED, /* this machine or kernel cannot do it                 -> Unsupported */
};

struct ls_error {
	int status;
	int sys_errno;
	char message[1024];
};

/* Fill `err` (which may be NULL) and return `status`. */
__attribute__((format(printf, 3, 4))) int ls_fail(struct ls_error *err, int status, const char *format, ...);

/* Fill `err` with LS_SYSTEM and the present errno, and return LS_SYSTEM. */
__attribute__((format(printf, 2, 3))) int ls_fail_errno(struct ls_error *err, const char *format, ...);

/* Copy `length` bytes of `bytes` to `out` (of `capacity` bytes, at least 5) so that they can stand in a
 * message: printable ASCII as it is, everything else as \xNN, cut with "..." when too long. Returns out. */
char *ls_printable(char *out, size_t capacity, const void *bytes, size_t length);

/* The same for a path or name in the arguments of a message: a string that lives as long as the block it stands in. */
#define LS_SHOWN(bytes, length) ls_printable((char[320]){0}, 320, bytes, length)
#define LS_SHOWN_TEXT(text) LS_SHOWN(text, strlen(text))

#endif
