/* Arrays that grow, and one of bytes that knows its length: a buffer. The memory is owned by the buffer: ls_buffer_free
 * releases it, or the caller takes `bytes` (free(3) it) and zeroes the struct. Zero-initialise before first use.
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

/* Make room for `need` items in all: `array` points to the pointer to them, of malloc or NULL, and *capacity is how many
 * there is room for. That at least doubles, so that adding items one by one takes linear time. `what` names the items in
 * the message. LS_NO_MEMORY leaves all as it is. */
int ls_array_reserve(void *array, size_t *capacity, size_t need, size_t item_bytes, const char *what,
                     struct ls_error *err);

#endif
