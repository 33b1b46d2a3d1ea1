#include "extents.h"

#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"

#define HALF (LS_EXTENT_BLOCK / 2)

struct extent {
	uint64_t start;
	uint64_t source;
};

struct ls_extent_block {
	uint32_t references; /* atomic; more than 1: nobody may change the block */
	uint16_t count;
	uint16_t capacity;
	struct extent extents[];
};

/* A place between extents: before extent `index` of a block, or after its last one. */
struct place {
	size_t slot;
	size_t index;
};

static int is_constant(uint64_t source)
{
	return source >= LS_EXTENT_IMAGE;
}

/* What the byte at `position`, in or behind an extent, comes from if the extent reaches there. */
static uint64_t source_at(struct extent extent, uint64_t position)
{
	return is_constant(extent.source) ? extent.source : extent.source + (position - extent.start);
}

static int continues(struct extent before, struct extent extent)
{
	return source_at(before, extent.start) == extent.source;
}

int ls_piece_check(const struct ls_piece *piece, struct ls_error *err)
{
	uint64_t offset = piece->source & (LS_EXTENT_LOG_BYTES - 1);

	if (piece->start > LS_EXTENT_MAX_SIZE || piece->length > LS_EXTENT_MAX_SIZE - piece->start)
		return ls_fail(err, LS_LIMIT, "%llu bytes at byte %llu of a file pass the largest size, 2^63 - 1 bytes",
		               (unsigned long long)piece->length, (unsigned long long)piece->start);
	if (is_constant(piece->source))
		return LS_OK;
	if (piece->source >> LS_EXTENT_LOG_SHIFT >= LS_EXTENT_MAX_LOGS)
		return ls_fail(err, LS_INVALID, "%#llx is no source of bytes: logs have numbers below %u",
		               (unsigned long long)piece->source, LS_EXTENT_MAX_LOGS);
	/* The byte behind a range must not look like the first one of the next log. */
	if (piece->length >= LS_EXTENT_LOG_BYTES - offset)
		return ls_fail(err, LS_INVALID,
		               "%llu bytes at byte %llu of a log pass its largest size, 2^48 - 1 bytes",
		               (unsigned long long)piece->length, (unsigned long long)offset);
	return LS_OK;
}

/* Blocks */

static size_t block_bytes(size_t capacity)
{
	return sizeof(struct ls_extent_block) + capacity * sizeof(struct extent);
}

/* Most files that change have a few extents: blocks begin small. */
static size_t rounded_capacity(size_t count)
{
	size_t capacity = 2;

	while (capacity < count)
		capacity *= 2;
	return capacity;
}

static struct ls_extent_block *new_block(const struct extent *extents, size_t count, size_t capacity)
{
	struct ls_extent_block *block = malloc(block_bytes(capacity));

	if (!block)
		return NULL;
	block->references = 1;
	block->count = (uint16_t)count;
	block->capacity = (uint16_t)capacity;
	memcpy(block->extents, extents, count * sizeof(*extents));
	return block;
}

static void release(struct ls_extent_block *block)
{
	if (__atomic_sub_fetch(&block->references, 1, __ATOMIC_ACQ_REL) == 0)
		free(block);
}

static int no_memory(const struct ls_extents *map, struct ls_error *err)
{
	return ls_fail(err, LS_NO_MEMORY, "out of memory changing an extent map of %llu extents",
	               (unsigned long long)map->count);
}

/* Make a block this map's own, with room for `count` extents. */
static int own_block(struct ls_extents *map, size_t slot, size_t count, struct ls_error *err)
{
	struct ls_extent_block *block = map->slots[slot].block, *other;
	int is_shared = __atomic_load_n(&block->references, __ATOMIC_ACQUIRE) > 1;
	size_t capacity = rounded_capacity(count > block->count ? count : block->count);

	if (!is_shared && block->capacity >= count)
		return LS_OK;
	if (is_shared)
		other = new_block(block->extents, block->count, capacity);
	else
		other = realloc(block, block_bytes(capacity));
	if (!other)
		return no_memory(map, err);
	other->capacity = (uint16_t)capacity;
	if (is_shared)
		release(block);
	map->slots[slot].block = other;
	return LS_OK;
}

/* Slots */

static int reserve_slot(struct ls_extents *map, struct ls_error *err)
{
	return ls_array_reserve(&map->slots, &map->slot_capacity, map->slot_count + 1, sizeof(*map->slots),
	                        "blocks of an extent map", err);
}

/* There is room for it. */
static void insert_slot(struct ls_extents *map, size_t at, struct ls_extent_block *block)
{
	struct ls_extent_slot *slot = map->slots + at;

	memmove(slot + 1, slot, (map->slot_count - at) * sizeof(*slot));
	*slot = (struct ls_extent_slot){block->extents[0].start, block};
	map->slot_count++;
}

static void remove_slots(struct ls_extents *map, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++)
		release(map->slots[i].block);
	memmove(map->slots + first, map->slots + end, (map->slot_count - end) * sizeof(*map->slots));
	map->slot_count -= end - first;
}

/* Divide a full block. Where extents are appended the first one stays full, since nothing comes between them later. */
static int split(struct ls_extents *map, struct place at, struct ls_error *err)
{
	struct ls_extent_block *block = map->slots[at.slot].block, *upper;
	size_t kept = at.slot + 1 == map->slot_count && at.index == block->count ? block->count - 1u : HALF;
	int status = reserve_slot(map, err);

	if (!status)
		status = own_block(map, at.slot, block->count, err);
	if (status)
		return status;
	block = map->slots[at.slot].block;
	upper = new_block(block->extents + kept, block->count - kept, LS_EXTENT_BLOCK);
	if (!upper)
		return no_memory(map, err);
	block->count = (uint16_t)kept;
	insert_slot(map, at.slot + 1, upper);
	return LS_OK;
}

/* Join a block with the next one when both are small, so that blocks stay filled. Without memory they stay apart. */
static void join(struct ls_extents *map, size_t slot)
{
	struct ls_extent_block *block, *next;
	size_t count;

	if (slot + 1 >= map->slot_count)
		return;
	next = map->slots[slot + 1].block;
	count = (size_t)map->slots[slot].block->count + next->count;
	if (count > HALF || own_block(map, slot, count, NULL))
		return;
	block = map->slots[slot].block;
	memcpy(block->extents + block->count, next->extents, next->count * sizeof(*next->extents));
	block->count = (uint16_t)count;
	remove_slots(map, slot + 1, slot + 2);
}

/* Finding */

/* Entries in order, each beginning with the number that it is ordered by. */
struct entries {
	const void *first;
	size_t stride;
	size_t count;
};

static uint64_t number(const struct entries *entries, size_t i)
{
	return *(const uint64_t *)((const char *)entries->first + i * entries->stride);
}

/* How many of the entries have a number below `position`. All of them lie in [low, end), and `position` about there.
 *
 * A search by halves touches another line of memory at nearly every step, and most of them are not cached: in a large file that
 * takes longer than all else but the copying of a read. So it begins where `position` would be were all equally far apart, as
 * they are in a file that was written by the block, and goes away from there in steps that double. */
static size_t entries_before(const struct entries *entries, uint64_t low, uint64_t end, uint64_t position)
{
	size_t from = 0, to = entries->count, step = 2, guess;

	if (!to || position <= low)
		return 0;
	guess = (size_t)((position - low) / ((end - low) / to + 1));
	if (guess >= to)
		guess = to - 1;
	if (number(entries, guess) < position) {
		from = guess + 1;
		for (; from + step < to && number(entries, from + step) < position; step *= 2)
			from += step + 1;
		if (from + step < to)
			to = from + step;
	} else {
		to = guess;
		for (; to > step && number(entries, to - step) >= position; step *= 2)
			to -= step;
		if (to > step)
			from = to - step + 1;
	}
	while (from < to) {
		size_t middle = from + (to - from) / 2;

		if (number(entries, middle) < position)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}

/* Where the extents of a slot end. */
static uint64_t end_of_slot(const struct ls_extents *map, size_t slot)
{
	return slot + 1 < map->slot_count ? map->slots[slot + 1].first : map->size;
}

static size_t slots_before(const struct ls_extents *map, uint64_t position)
{
	struct entries slots = {map->slots, sizeof(*map->slots), map->slot_count};

	return entries_before(&slots, 0, map->size, position);
}

static size_t extents_before(const struct ls_extents *map, size_t slot, uint64_t position)
{
	const struct ls_extent_block *block = map->slots[slot].block;
	struct entries extents = {block->extents, sizeof(*block->extents), block->count};

	return entries_before(&extents, map->slots[slot].first, end_of_slot(map, slot), position);
}

/* The place before the first extent that begins at `position` or later; the extent before that place is in the same block,
 * unless there is none. */
static struct place find(const struct ls_extents *map, uint64_t position)
{
	size_t slot = slots_before(map, position);

	if (!slot)
		return (struct place){0, 0};
	return (struct place){slot - 1, extents_before(map, slot - 1, position)};
}

static struct extent before(const struct ls_extents *map, struct place place)
{
	return map->slots[place.slot].block->extents[place.index - 1];
}

/* Changing */

/* The extents to put in; one that only continues what is before it is left out. */
struct insertion {
	struct extent extents[2];
	size_t count;
};

static void put(struct insertion *insertion, const struct extent *previous, struct extent extent)
{
	if (insertion->count)
		previous = &insertion->extents[insertion->count - 1];
	if (!previous || !continues(*previous, extent))
		insertion->extents[insertion->count++] = extent;
}

static void replace_in_block(struct ls_extent_block *block, size_t from, size_t to, const struct insertion *insertion)
{
	struct extent *at = block->extents + from;

	memmove(at + insertion->count, block->extents + to, (block->count - to) * sizeof(*at));
	memcpy(at, insertion->extents, insertion->count * sizeof(*at));
	block->count = (uint16_t)(block->count - (to - from) + insertion->count);
}

static int add_first_block(struct ls_extents *map, const struct insertion *insertion, struct ls_error *err)
{
	struct ls_extent_block *block;
	int status = reserve_slot(map, err);

	if (status)
		return status;
	block = new_block(insertion->extents, insertion->count, rounded_capacity(insertion->count));
	if (!block)
		return no_memory(map, err);
	insert_slot(map, 0, block);
	map->count = insertion->count;
	return LS_OK;
}

/* A block whose extents changed: have its slot say so, or go. Returns how many slots are left of it. */
static size_t settle(struct ls_extents *map, size_t slot)
{
	struct ls_extent_block *block = map->slots[slot].block;

	if (!block->count) {
		remove_slots(map, slot, slot + 1);
		return 0;
	}
	map->slots[slot].first = block->extents[0].start;
	return 1;
}

/* Replace what is between two places that lie in different blocks, where there is room. */
static int replace_across(struct ls_extents *map, struct place from, struct place to, const struct insertion *insertion,
                          struct ls_error *err)
{
	static const struct insertion nothing;
	struct ls_extent_block *first, *last;
	int status = own_block(map, from.slot, from.index + insertion->count, err);

	if (!status)
		status = own_block(map, to.slot, 0, err);
	if (status)
		return status;
	first = map->slots[from.slot].block;
	last = map->slots[to.slot].block;
	map->count -= first->count - from.index + to.index - insertion->count;
	for (size_t i = from.slot + 1; i < to.slot; i++)
		map->count -= map->slots[i].block->count;
	replace_in_block(first, from.index, first->count, insertion);
	replace_in_block(last, 0, to.index, &nothing);
	settle(map, to.slot);
	remove_slots(map, from.slot + 1, to.slot);
	if (settle(map, from.slot))
		join(map, from.slot + 1);
	return LS_OK;
}

/* Replace the extents that begin in [from, to) by others, which lie there too. */
static int replace(struct ls_extents *map, uint64_t from, uint64_t to, const struct insertion *insertion,
                   struct ls_error *err)
{
	struct place first = find(map, from), last = find(map, to);
	struct ls_extent_block *block = map->slots[first.slot].block;
	size_t removed = (first.slot == last.slot ? last.index : block->count) - first.index;
	int status;

	if (block->count - removed + insertion->count > LS_EXTENT_BLOCK) {
		status = split(map, first, err);
		return status ? status : replace(map, from, to, insertion, err);
	}
	if (first.slot != last.slot) {
		status = replace_across(map, first, last, insertion, err);
	} else {
		status = own_block(map, first.slot, block->count - removed + insertion->count, err);
		if (!status) {
			replace_in_block(map->slots[first.slot].block, first.index, last.index, insertion);
			map->count = map->count - removed + insertion->count;
			settle(map, first.slot);
		}
	}
	if (!status && (first.slot != last.slot || removed > insertion->count)) {
		join(map, first.slot);
		if (first.slot)
			join(map, first.slot - 1);
	}
	return status;
}

static int set_range(struct ls_extents *map, uint64_t start, uint64_t end, uint64_t source, struct ls_error *err)
{
	uint64_t from = start < map->size ? start : map->size;
	struct insertion insertion = {.count = 0};
	struct place place = find(map, from);
	struct extent previous;
	int status;

	if (place.index)
		previous = before(map, place);
	if (start > map->size)
		put(&insertion, place.index ? &previous : NULL, (struct extent){map->size, LS_EXTENT_ZERO});
	put(&insertion, place.index ? &previous : NULL, (struct extent){start, source});
	if (end < map->size) {
		struct extent behind = {end, source_at(before(map, find(map, end + 1)), end)};
		struct extent range = {start, source};

		put(&insertion, &range, behind);
	}
	status = map->slot_count ? replace(map, from, end + 1, &insertion, err) : add_first_block(map, &insertion, err);
	if (!status && end > map->size)
		map->size = end;
	return status;
}

int ls_extents_write(struct ls_extents *map, const struct ls_piece *piece, struct ls_error *err)
{
	int status = ls_piece_check(piece, err);

	if (status || !piece->length)
		return status;
	return set_range(map, piece->start, piece->start + piece->length, piece->source, err);
}

int ls_extents_write_many(struct ls_extents *map, const struct ls_piece *pieces, size_t n, struct ls_error *err)
{
	for (size_t i = 0; i < n; i++) {
		struct ls_error cause;
		int status = ls_extents_write(map, &pieces[i], &cause);

		if (status)
			return ls_fail(err, status, "write %zu of %zu: %.900s", i, n, cause.message);
	}
	return LS_OK;
}

int ls_extents_punch(struct ls_extents *map, uint64_t start, uint64_t length, struct ls_error *err)
{
	struct ls_piece piece = {start, length, LS_EXTENT_ZERO};
	int status = ls_piece_check(&piece, err);

	if (status || !length || start >= map->size)
		return status;
	return set_range(map, start, length < map->size - start ? start + length : map->size, LS_EXTENT_ZERO, err);
}

int ls_extents_truncate(struct ls_extents *map, uint64_t size, struct ls_error *err)
{
	static const struct insertion nothing;
	int status = LS_OK;

	if (size > LS_EXTENT_MAX_SIZE)
		return ls_fail(err, LS_LIMIT, "a file of %llu bytes passes the largest size, 2^63 - 1 bytes",
		               (unsigned long long)size);
	if (size > map->size)
		return set_range(map, map->size, size, LS_EXTENT_ZERO, err);
	if (size < map->size)
		status = replace(map, size, map->size, &nothing, err);
	if (!status)
		map->size = size;
	return status;
}

/* Whole maps */

int ls_extents_clone(struct ls_extents *clone, const struct ls_extents *map, struct ls_error *err)
{
	*clone = (struct ls_extents){0};
	if (!map->slot_count)
		return LS_OK;
	clone->slots = malloc(map->slot_count * sizeof(*map->slots));
	if (!clone->slots)
		return ls_fail(err, LS_NO_MEMORY, "out of memory cloning an extent map of %llu extents",
		               (unsigned long long)map->count);
	clone->size = map->size;
	clone->count = map->count;
	clone->slot_count = clone->slot_capacity = map->slot_count;
	memcpy(clone->slots, map->slots, map->slot_count * sizeof(*map->slots));
	for (size_t i = 0; i < map->slot_count; i++)
		__atomic_add_fetch(&map->slots[i].block->references, 1, __ATOMIC_RELAXED);
	return LS_OK;
}

void ls_extents_free(struct ls_extents *map)
{
	for (size_t i = 0; i < map->slot_count; i++)
		release(map->slots[i].block);
	free(map->slots);
	*map = (struct ls_extents){0};
}

/* Where an extent ends. */
static uint64_t end_of(const struct ls_extents *map, struct place at)
{
	const struct ls_extent_block *block = map->slots[at.slot].block;

	if (at.index + 1 < block->count)
		return block->extents[at.index + 1].start;
	return end_of_slot(map, at.slot);
}

static struct place after(const struct ls_extents *map, struct place at)
{
	if (at.index + 1 < map->slots[at.slot].block->count)
		return (struct place){at.slot, at.index + 1};
	return (struct place){at.slot + 1, 0};
}

size_t ls_extents_lookup(const struct ls_extents *map, uint64_t start, uint64_t end, struct ls_piece *pieces,
                         size_t capacity)
{
	struct place at;
	size_t n = 0;

	if (end > map->size)
		end = map->size;
	if (start >= end)
		return 0;
	/* The first extent begins at 0: there is always one before this place. */
	at = find(map, start + 1);
	at.index--;
	while (n < capacity && start < end) {
		uint64_t stop = end_of(map, at);
		struct extent extent = map->slots[at.slot].block->extents[at.index];

		if (stop > end)
			stop = end;
		pieces[n++] = (struct ls_piece){start, stop - start, source_at(extent, start)};
		start = stop;
		at = after(map, at);
	}
	return n;
}

static int log_of(uint64_t source, uint32_t *number)
{
	*number = (uint32_t)(source >> LS_EXTENT_LOG_SHIFT);
	return !is_constant(source);
}

uint32_t ls_extents_log_count(const struct ls_extents *map)
{
	uint32_t count = 0, number;

	for (struct place at = {0, 0}; at.slot < map->slot_count; at = after(map, at))
		if (log_of(map->slots[at.slot].block->extents[at.index].source, &number) && number >= count)
			count = number + 1;
	return count;
}

void ls_extents_add_live(const struct ls_extents *map, uint64_t *live)
{
	uint32_t number;

	for (struct place at = {0, 0}; at.slot < map->slot_count; at = after(map, at)) {
		struct extent extent = map->slots[at.slot].block->extents[at.index];

		if (log_of(extent.source, &number))
			live[number] += end_of(map, at) - extent.start;
	}
}

/* Checking */

static int blocks_are_sound(const struct ls_extents *map)
{
	for (size_t i = 0; i < map->slot_count; i++) {
		const struct ls_extent_block *block = map->slots[i].block;

		if (!block->references || !block->count || block->count > block->capacity ||
		    block->capacity > LS_EXTENT_BLOCK || map->slots[i].first != block->extents[0].start)
			return 0;
		if (i + 1 < map->slot_count && block->count + map->slots[i + 1].block->count <= HALF)
			return 0;
	}
	return map->slot_count <= map->slot_capacity;
}

int ls_extents_is_sound(const struct ls_extents *map)
{
	struct extent previous = {0};
	uint64_t count = 0;

	if (!blocks_are_sound(map) || !map->size != !map->slot_count)
		return 0;
	for (struct place at = {0, 0}; at.slot < map->slot_count; at = after(map, at)) {
		struct extent extent = map->slots[at.slot].block->extents[at.index];
		uint64_t end = end_of(map, at);
		struct ls_piece piece = {extent.start, end - extent.start, extent.source};

		if (end <= extent.start || ls_piece_check(&piece, NULL))
			return 0;
		if (count ? continues(previous, extent) : extent.start != 0)
			return 0;
		previous = extent;
		count++;
	}
	return count == map->count;
}
