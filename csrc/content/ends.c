#include "ends.h"

#include <string.h>

#define BLOCK_BYTES 256

size_t ls_equal_head(const uint8_t *a, const uint8_t *b, size_t most)
{
	size_t at = 0;

	while (most - at >= BLOCK_BYTES && !memcmp(a + at, b + at, BLOCK_BYTES))
		at += BLOCK_BYTES;
	while (at < most && a[at] == b[at])
		at++;
	return at;
}

size_t ls_equal_tail(const uint8_t *a_end, const uint8_t *b_end, size_t most)
{
	size_t at = 0;

	while (most - at >= BLOCK_BYTES && !memcmp(a_end - at - BLOCK_BYTES, b_end - at - BLOCK_BYTES, BLOCK_BYTES))
		at += BLOCK_BYTES;
	while (at < most && a_end[-1 - (ptrdiff_t)at] == b_end[-1 - (ptrdiff_t)at])
		at++;
	return at;
}
