#include "table.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 64u
#define MOST_SLOTS (1u << 31)

static int is_another(const void *key, uint32_t number)
{
	(void)key, (void)number;
	return 0;
}

int ls_table_reserve(struct ls_table *table, struct ls_error *err)
{
	size_t slots = table->slots ? ((size_t)table->mask + 1) * 2 : FIRST_SLOTS;
	struct ls_table grown = {.mask = (uint32_t)(slots - 1), .count = table->count};

	if (table->slots && table->count < table->mask / 3 * 2)
		return LS_OK;
	if (slots > MOST_SLOTS)
		return ls_fail(err, LS_LIMIT, "a table of %u entries is full", table->count);
	grown.slots = malloc(slots * sizeof(*grown.slots));
	if (!grown.slots)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for a table of more than %u entries", table->count);
	memset(grown.slots, 0xff, slots * sizeof(*grown.slots));
	for (size_t i = 0; table->slots && i <= table->mask; i++)
		if (table->slots[i].number != LS_TABLE_FREE)
			*ls_table_find(&grown, table->slots[i].hash, is_another, NULL) = table->slots[i];
	free(table->slots);
	*table = grown;
	return LS_OK;
}

void ls_table_free(struct ls_table *table)
{
	free(table->slots);
	*table = (struct ls_table){0};
}
