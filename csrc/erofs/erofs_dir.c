#include "erofs_dir.h"

#include <string.h>

static uint32_t entry_bytes(size_t name_length)
{
	return (uint32_t)(sizeof(struct erofs_dirent) + name_length);
}

void erofs_dir_size_add(struct erofs_dir_size *size, size_t name_length)
{
	uint32_t bytes = entry_bytes(name_length);

	if (size->last + bytes > size->block_bytes) {
		size->full++;
		size->last = 0;
	}
	size->last += bytes;
}

static void write_block(struct erofs_dir_writer *writer, uint8_t *block)
{
	uint32_t offset = writer->count * (uint32_t)sizeof(struct erofs_dirent);

	for (uint32_t i = 0; i < writer->count; i++) {
		const struct erofs_dir_entry *entry = &writer->entries[i];
		struct erofs_dirent dirent = {.nid = entry->nid, .name_offset = (uint16_t)offset, .type = entry->type};

		memcpy(block + i * sizeof(dirent), &dirent, sizeof(dirent));
		memcpy(block + offset, entry->name, entry->name_length);
		offset += entry->name_length;
	}
	writer->count = 0;
	writer->used = 0;
}

/* Field by field: clearing the 7 KiB of entries would cost more than writing a small directory. */
void erofs_dir_writer_init(struct erofs_dir_writer *writer, uint32_t block_bytes, uint8_t *blocks, uint8_t *last)
{
	writer->block_bytes = block_bytes;
	writer->blocks = blocks;
	writer->last = last;
	writer->used = 0;
	writer->count = 0;
}

void erofs_dir_writer_add(struct erofs_dir_writer *writer, const struct erofs_dir_entry *entry)
{
	uint32_t bytes = entry_bytes(entry->name_length);

	if (writer->used + bytes > writer->block_bytes) {
		write_block(writer, writer->blocks);
		writer->blocks += writer->block_bytes;
	}
	writer->entries[writer->count++] = *entry;
	writer->used += bytes;
}

void erofs_dir_writer_finish(struct erofs_dir_writer *writer)
{
	write_block(writer, writer->last ? writer->last : writer->blocks);
}
