/* Memory that is taken piece by piece and given back all at once. Zero-initialise before first use. Not safe for use by
 * two threads at once. */
#ifndef LS_ARENA_H
#define LS_ARENA_H

#include <stddef.h>

struct ls_arena_chunk;

struct ls_arena {
	struct ls_arena_chunk *chunks; /* the one that is filled first */
};

/* `length` bytes, aligned to 8, that stay where they are; NULL when out of memory. */
void *ls_arena_take(struct ls_arena *arena, size_t length);

/* A copy of `length` bytes. */
void *ls_arena_copy(struct ls_arena *arena, const void *bytes, size_t length);

/* Give back all that was taken, and keep a part of it for what comes. */
void ls_arena_reset(struct ls_arena *arena);

void ls_arena_free(struct ls_arena *arena);

#endif
