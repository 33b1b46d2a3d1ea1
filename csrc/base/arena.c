#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)256 << 10)
#define ALIGNMENT 8

struct ls_arena_chunk {
	struct ls_arena_chunk *next;
	size_t used, capacity;
	uint64_t bytes[]; /* aligned */
};

void *ls_arena_take(struct ls_arena *arena, size_t length)
{
	struct ls_arena_chunk *chunk = arena->chunks;
	size_t start;

	if (length > SIZE_MAX / 2)
		return NULL;
	length = (length + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
	if (!chunk || chunk->capacity - chunk->used < length) {
		size_t capacity = length > CHUNK_BYTES ? length : CHUNK_BYTES;

		chunk = malloc(sizeof(*chunk) + capacity);
		if (!chunk)
			return NULL;
		*chunk = (struct ls_arena_chunk){.next = arena->chunks, .capacity = capacity};
		arena->chunks = chunk;
	}
	start = chunk->used;
	chunk->used += length;
	return (uint8_t *)chunk->bytes + start;
}

void *ls_arena_copy(struct ls_arena *arena, const void *bytes, size_t length)
{
	void *copy = ls_arena_take(arena, length);

	if (copy && length)
		memcpy(copy, bytes, length);
	return copy;
}

static void free_chunks(struct ls_arena_chunk *chunk)
{
	while (chunk) {
		struct ls_arena_chunk *next = chunk->next;

		free(chunk);
		chunk = next;
	}
}

void ls_arena_reset(struct ls_arena *arena)
{
	if (!arena->chunks)
		return;
	free_chunks(arena->chunks->next);
	arena->chunks->next = NULL;
	arena->chunks->used = 0;
}

void ls_arena_free(struct ls_arena *arena)
{
	free_chunks(arena->chunks);
	arena->chunks = NULL;
}
