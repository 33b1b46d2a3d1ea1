#include "erofs_intern.h"

#include <stdlib.h>
#include <string.h>

#include "hash/siphash.h"

static uint32_t *find_slot(const struct erofs_intern *intern, struct erofs_string string)
{
	uint32_t mask = intern->slot_count - 1;
	uint32_t at = (uint32_t)ls_siphash13(intern->key, string.bytes, string.length) & mask;

	for (; intern->slots[at]; at = (at + 1) & mask) {
		const struct erofs_string *other = &intern->strings[intern->slots[at] - 1];

		if (other->length == string.length && !memcmp(other->bytes, string.bytes, string.length))
			break;
	}
	return &intern->slots[at];
}

static int grow(struct erofs_intern *intern, struct ls_error *err)
{
	uint32_t capacity = intern->capacity ? intern->capacity * 2 : 64;
	struct erofs_string *strings;
	uint32_t *slots;

	if (capacity > UINT32_MAX / 4)
		return ls_fail(err, LS_LIMIT, "writing an EROFS image: more than 2^30 distinct extended attributes");
	strings = realloc(intern->strings, capacity * sizeof(*strings));
	if (!strings)
		return ls_fail(err, LS_NO_MEMORY, "writing an EROFS image: out of memory for %u extended attributes",
		               capacity);
	intern->strings = strings;
	slots = calloc((size_t)capacity * 2, sizeof(*slots));
	if (!slots)
		return ls_fail(err, LS_NO_MEMORY, "writing an EROFS image: out of memory for %u extended attributes",
		               capacity);
	free(intern->slots);
	intern->slots = slots;
	intern->slot_count = capacity * 2;
	intern->capacity = capacity;
	for (uint32_t i = 0; i < intern->count; i++)
		*find_slot(intern, intern->strings[i]) = i + 1;
	return LS_OK;
}

int erofs_intern(struct erofs_intern *intern, struct erofs_string string, uint32_t *number, struct ls_error *err)
{
	int status = intern->count == intern->capacity ? grow(intern, err) : LS_OK;
	uint32_t *slot;

	if (status)
		return status;
	slot = find_slot(intern, string);
	if (!*slot) {
		intern->strings[intern->count++] = string;
		*slot = intern->count;
	}
	*number = *slot - 1;
	return LS_OK;
}

void erofs_intern_free(struct erofs_intern *intern)
{
	free(intern->strings);
	free(intern->slots);
}
