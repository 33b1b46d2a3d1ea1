/* What two contents have in common at their beginnings and at their ends. Thread-safe; no global state. */
#ifndef LS_ENDS_H
#define LS_ENDS_H

#include <stddef.h>
#include <stdint.h>

/* How many bytes are equal from the first on, at most `most`. */
size_t ls_equal_head(const uint8_t *a, const uint8_t *b, size_t most);

/* How many bytes are equal before `a_end` and `b_end`, going backwards, at most `most`. */
size_t ls_equal_tail(const uint8_t *a_end, const uint8_t *b_end, size_t most);

#endif
