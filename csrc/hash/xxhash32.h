/* XXH32 of a buffer, written from the xxHash specification (doc/xxhash_spec.md of the xxHash project, version 0.1.1,
 * "XXH32 Algorithm Description"). EROFS hashes the names of extended attributes with it. */
#ifndef LS_XXHASH32_H
#define LS_XXHASH32_H

#include <stddef.h>
#include <stdint.h>

uint32_t ls_xxhash32(const void *bytes, size_t length, uint32_t seed);

#endif
