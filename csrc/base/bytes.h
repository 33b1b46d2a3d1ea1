/* Strings of bytes that belong to somebody else, and extended attributes. */
#ifndef LS_BYTES_H
#define LS_BYTES_H

#include <stddef.h>
#include <stdint.h>

struct ls_bytes {
	const uint8_t *bytes;
	size_t length;
};

struct ls_xattr {
	struct ls_bytes name;
	struct ls_bytes value;
};

#endif
