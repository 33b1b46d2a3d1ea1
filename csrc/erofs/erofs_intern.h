/* Numbers byte strings in the order in which they are first seen. Keyed (SipHash-1-3), so that an image cannot be
 * made to collide in it. Strings are borrowed. */
#ifndef LS_EROFS_INTERN_H
#define LS_EROFS_INTERN_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

struct erofs_string {
	const uint8_t *bytes;
	size_t length;
};

struct erofs_intern {
	const uint8_t *key; /* LS_SIPHASH_KEY_BYTES, borrowed */
	struct erofs_string *strings;
	uint32_t count;
	uint32_t capacity;
	uint32_t *slots; /* string numbers + 1, 0 when free; a power of two of them */
	uint32_t slot_count;
};

/* The number of `string`; count grows by one when it is new. LS_NO_MEMORY. */
int erofs_intern(struct erofs_intern *intern, struct erofs_string string, uint32_t *number, struct ls_error *err);
void erofs_intern_free(struct erofs_intern *intern);

#endif
