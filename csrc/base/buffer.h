/* A growable byte buffer. The memory is owned by the buffer: ls_buffer_free releases it, or the
 * caller takes `bytes` (free(3) it) and zeroes the struct. Zero-initialise before first use.
 * Not safe for use by two threads at once. */
#ifndef LS_BUFFER_H
#define LS_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

struct ls_buffer {
	uint8_t *bytes;
	size_t length;
	size_t capacity;
};

/* Make room for `extra` more bytes beyond `length`. */
int ls_buffer_reserve(struct ls_buffer *buffer, size_t extra, struct ls_error *err);

/* Append `length` bytes; NULL `bytes` appends zeros. */
int ls_buffer_append(struct ls_buffer *buffer, const void *bytes, size_t length, struct ls_error *err);

void ls_buffer_free(struct ls_buffer *buffer);

#endif
