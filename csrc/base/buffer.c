#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_BYTES 4096

int ls_array_reserve(void *array, size_t *capacity, size_t need, size_t item_bytes, const char *what,
                     struct ls_error *err)
{
	size_t room = need > 2 * *capacity ? need : 2 * *capacity;
	void *items;

	if (need <= *capacity)
		return LS_OK;
	/* Copied, as a pointer to one type may not be read as one to another. */
	memcpy(&items, array, sizeof(items));
	items = reallocarray(items, room, item_bytes);
	if (!items)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for %zu %s", room, what);
	memcpy(array, &items, sizeof(items));
	*capacity = room;
	return LS_OK;
}

int ls_buffer_reserve(struct ls_buffer *buffer, size_t extra, struct ls_error *err)
{
	size_t need;

	if (__builtin_add_overflow(buffer->length, extra, &need))
		return ls_fail(err, LS_NO_MEMORY, "a buffer of more than %zu bytes was asked for", SIZE_MAX);
	if (need <= buffer->capacity)
		return LS_OK;
	need = need > FIRST_BYTES ? need : FIRST_BYTES;
	return ls_array_reserve(&buffer->bytes, &buffer->capacity, need, 1, "bytes of a buffer", err);
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
