/* Strings of bytes that belong to somebody else, and extended attributes; what is asked of such strings. */
#ifndef LS_BYTES_H
#define LS_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct ls_bytes {
	const uint8_t *bytes;
	size_t length;
};

struct ls_xattr {
	struct ls_bytes name;
	struct ls_bytes value;
};

/* The bytewise order, in which what begins another comes before it. */
static inline int ls_compare(const void *a, size_t a_length, const void *b, size_t b_length)
{
	int order = memcmp(a, b, a_length < b_length ? a_length : b_length);

	return order ? order : (a_length > b_length) - (a_length < b_length);
}

static inline int ls_equal(const void *a, size_t a_length, const void *b, size_t b_length)
{
	return a_length == b_length && (!a_length || !memcmp(a, b, a_length));
}

static inline int ls_begins_with(const void *name, size_t length, const char *prefix)
{
	size_t n = strlen(prefix);

	return length >= n && !memcmp(name, prefix, n);
}

static inline int ls_is_zero(const void *bytes, size_t length)
{
	const uint8_t *first = bytes;

	return !length || (!*first && !memcmp(first, first + 1, length - 1));
}

/* "." or "..". */
static inline int ls_is_dots(const void *name, size_t length)
{
	return length && length <= 2 && !memcmp(name, "..", length);
}

/* What can stand in a directory: neither empty nor dots, without '/' and NUL. */
static inline int ls_is_name(const void *name, size_t length)
{
	return length && !ls_is_dots(name, length) && !memchr(name, '/', length) && !memchr(name, 0, length);
}

/* Write two digits for each byte, without a zero byte behind; returns where they end. */
static inline char *ls_hex(char *out, const uint8_t *bytes, size_t length)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < length; i++) {
		*out++ = digits[bytes[i] >> 4];
		*out++ = digits[bytes[i] & 15];
	}
	return out;
}

/* Write them; returns where they end. */
static inline uint8_t *ls_put(uint8_t *at, const void *bytes, size_t length)
{
	if (length)
		memcpy(at, bytes, length);
	return at + length;
}

#endif
