#include "buffer.h"

#include <stdlib.h>
#include <string.h>

int ls_buffer_reserve(struct ls_buffer *buffer, size_t extra, struct ls_error *err)
{
	size_t need, capacity;
	uint8_t *bytes;

	if (__builtin_add_overflow(buffer->length, extra, &need))
		return ls_fail(err, LS_NO_MEMORY, "a buffer of more than %zu bytes was asked for", SIZE_MAX);
	if (need <= buffer->capacity)
		return LS_OK;
	capacity = buffer->capacity ? buffer->capacity : 4096;
	while (capacity < need)
		capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
	bytes = realloc(buffer->bytes, capacity);
	if (!bytes)
		return ls_fail(err, LS_NO_MEMORY, "out of memory growing a buffer to %zu bytes", capacity);
	buffer->bytes = bytes;
	buffer->capacity = capacity;
	return LS_OK;
}

int ls_buffer_append(struct ls_buffer *buffer, const void *bytes, size_t length, struct ls_error *err)
{
	int status = ls_buffer_reserve(buffer, length, err);

	if (status)
		return status;
	if (!length)
		return LS_OK;
	if (bytes)
		memcpy(buffer->bytes + buffer->length, bytes, length);
	else
		memset(buffer->bytes + buffer->length, 0, length);
	buffer->length += length;
	return LS_OK;
}

void ls_buffer_free(struct ls_buffer *buffer)
{
	free(buffer->bytes);
	*buffer = (struct ls_buffer){0};
}
