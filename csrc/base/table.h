/* A hash table from keys to numbers. The keys are the caller's, and so is comparing them: of each the table has a hash and
 * the number. Open addressing with linear probing, at most two thirds full; nothing is taken out of it. Where somebody
 * else chooses the keys the hash must be a keyed one (hash/siphash.h). Zero-initialise before first use. Not safe for use by
 * two threads at once while it changes.
 *
 * Two tables are their own: that of an index, whose bytes are a format (index/index.h), and that of the store's
 * digests (content/digests.h), which is looked up in batches that fetch slots ahead, and is kept half empty for that. */
#ifndef LS_TABLE_H
#define LS_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define LS_TABLE_FREE UINT32_MAX

struct ls_table_slot {
	uint32_t hash;
	uint32_t number; /* LS_TABLE_FREE when free */
};

struct ls_table {
	struct ls_table_slot *slots;
	uint32_t mask; /* there are a power of two of them, one more than this */
	uint32_t count;
};

/* Is the key that of a number in the table? */
typedef int ls_table_is(const void *key, uint32_t number);

/* Make room for one more. LS_NO_MEMORY, LS_LIMIT; the table is then as before. */
int ls_table_reserve(struct ls_table *table, struct ls_error *err);
void ls_table_free(struct ls_table *table);

/* The slot of the key, or the free one where it belongs; in a table that has had room for something. Inlined, so that
 * comparing is no call. */
__attribute__((always_inline)) static inline struct ls_table_slot *
ls_table_find(const struct ls_table *table, uint32_t hash, ls_table_is *is, const void *key)
{
	for (uint32_t at = hash & table->mask;; at = (at + 1) & table->mask) {
		struct ls_table_slot *slot = &table->slots[at];

		if (slot->number == LS_TABLE_FREE || (slot->hash == hash && is(key, slot->number)))
			return slot;
	}
}

/* Have the slot that was found for a key lead to this number. For a free one there must be room. */
static inline void ls_table_put(struct ls_table *table, struct ls_table_slot *slot, uint32_t hash, uint32_t number)
{
	table->count += slot->number == LS_TABLE_FREE;
	*slot = (struct ls_table_slot){hash, number};
}

/* Number keys in the order in which they first come: a new one gets the count of those before it. */
__attribute__((always_inline)) static inline int ls_table_number(struct ls_table *table, uint32_t hash, ls_table_is *is,
                                                                 const void *key, uint32_t *number,
                                                                 struct ls_error *err)
{
	int status = ls_table_reserve(table, err);
	struct ls_table_slot *slot;

	if (status)
		return status;
	slot = ls_table_find(table, hash, is, key);
	if (slot->number == LS_TABLE_FREE)
		ls_table_put(table, slot, hash, table->count);
	*number = slot->number;
	return LS_OK;
}

#endif
