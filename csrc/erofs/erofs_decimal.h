/* Decimal spellings, for names of slots and paths to them: printf was half of the time of a tree. */
#ifndef LS_EROFS_DECIMAL_H
#define LS_EROFS_DECIMAL_H

#include <stdint.h>

#define EROFS_DECIMAL_BYTES 10

/* Write the number without a zero byte; returns its length, at most EROFS_DECIMAL_BYTES. */
static inline uint16_t erofs_decimal(char *out, uint32_t number)
{
	char reversed[EROFS_DECIMAL_BYTES];
	uint16_t length = 0;

	do {
		reversed[length++] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	for (uint16_t i = 0; i < length; i++)
		out[i] = reversed[length - 1 - i];
	return length;
}

#endif
