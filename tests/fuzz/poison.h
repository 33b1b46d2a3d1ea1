/* Memory that is lent for a while: reading or writing past its end, or when it was taken back, is seen as it is for what
 * malloc gives, and costs a hundredth. No piece is lent twice before the others were. */
#ifndef POISON_H
#define POISON_H

#include <sanitizer/asan_interface.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "require.h"

#define LENT_BYTES ((size_t)1 << 20)
#define LENT_APART 16 /* bytes between two pieces; a multiple of the 8 that AddressSanitizer sees as one */

static _Alignas(16) uint8_t lent[LENT_BYTES];
static size_t lent_next;

/* A copy of the bytes, whose end is exact. */
static uint8_t *lend(const uint8_t *bytes, size_t length)
{
	size_t taken = (length + 7) / 8 * 8 + LENT_APART;
	uint8_t *copy;

	REQUIRE(taken <= LENT_BYTES / 2);
	if (!lent_next)
		ASAN_POISON_MEMORY_REGION(lent, LENT_BYTES);
	if (lent_next + taken > LENT_BYTES)
		lent_next = 0;
	copy = lent + lent_next;
	lent_next += taken;
	ASAN_UNPOISON_MEMORY_REGION(copy, length);
	memcpy(copy, bytes, length);
	return copy;
}

static void take_back(uint8_t *copy, size_t length)
{
	ASAN_POISON_MEMORY_REGION(copy, length);
}

#endif
